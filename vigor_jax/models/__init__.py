"""Neural networks, in JAX and Flax only."""
