"""Whole CLIP checkpoints of transformers, vision and text, which say how well words fit images."""
