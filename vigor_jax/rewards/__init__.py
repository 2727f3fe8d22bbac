"""Reward streams, and what selection and refinement make of their verdicts."""
