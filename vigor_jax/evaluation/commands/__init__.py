"""What `python -m vigor_jax.evaluate` offers."""
