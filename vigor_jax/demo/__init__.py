"""The demo: drawn scenes whose truth is known, and a small LLaVA that learns to describe them."""
