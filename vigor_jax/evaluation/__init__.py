"""Benchmarks: their questions, their parsers and their figures; nothing here imports JAX."""
