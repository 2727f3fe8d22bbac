"""Meshes, processes and the compiler."""
