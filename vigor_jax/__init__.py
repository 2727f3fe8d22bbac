"""ViGoR in JAX: vision-language models that say only what they see."""

__version__ = "0.1.0"  # the only place: pyproject.toml reads it from here
