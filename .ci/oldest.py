"""Prints the oldest versions that pyproject.toml allows, of what the package itself needs.

    python .ci/oldest.py > lowest && uv pip compile pyproject.toml --extra test -c lowest --python-version 3.11 \
        --no-annotate --custom-compile-command "see .ci/oldest.py" -o .ci/oldest.txt

makes the constraints of the gate's oldest environment. tokenizers is left to the transformers that the tests compare
with.
"""

import re
import tomllib
from pathlib import Path

LEFT_OUT = {"tokenizers"}
TORCH = "torch==2.13.0"  # as the README installs it


def oldest() -> dict[str, str]:
    """Package → oldest version."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    servers = [name for name in project["optional-dependencies"]["detector"] if name.startswith("grpcio")]
    pairs = (re.fullmatch(r"([\w-]+)>=([\d.]+)", requirement) for requirement in project["dependencies"] + servers)
    return {pair[1]: pair[2] for pair in pairs if pair and pair[1] not in LEFT_OUT}


if __name__ == "__main__":
    for name, version in oldest().items():
        print(f"{name}=={version}")
    print(TORCH)
