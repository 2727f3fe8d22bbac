"""Prints the oldest JAX, and what comes with it, that pyproject.toml allows, as constraints for pip."""

import re
import tomllib
from pathlib import Path

FAMILY = ("flax", "jax", "jsonargparse", "orbax-checkpoint")


def oldest() -> dict[str, str]:
    """Package → oldest version."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    pairs = (re.fullmatch(r"([\w-]+)>=([\d.]+)", requirement) for requirement in project["dependencies"])
    return {pair[1]: pair[2] for pair in pairs if pair and pair[1] in FAMILY}


if __name__ == "__main__":
    for name, version in oldest().items():
        print(f"{name}=={version}")
