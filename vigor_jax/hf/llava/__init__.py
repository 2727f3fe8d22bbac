"""LLaVA's checkpoints: llava-hf for transformers, and the original layout."""
