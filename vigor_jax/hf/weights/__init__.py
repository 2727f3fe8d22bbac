"""Weights as files: safetensors and pickled PyTorch tensors, read and checked without running code."""
