"""What `import vigor_jax` gives apart from the policy itself; docs/api.md shows it at work."""
