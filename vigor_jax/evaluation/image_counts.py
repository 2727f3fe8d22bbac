"""What was counted on each image, in `counts.json` next to `metrics.json`: paired tests of two models need it.

A benchmark's metrics carry the counts under `COUNTS`, part → image → counts, until they are written to the two files.
The figures of a part are those of the same name in the metrics; the part "" is of the metrics themselves.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from vigor_jax.disk import naming
from vigor_jax.errors import InputError
from vigor_jax.json_fields import parse_json

COUNTS = "counts"
FILE = "counts.json"

# Image → what was counted on it.
ImageCounts: TypeAlias = Mapping[str, np.ndarray]
# Part of a benchmark → its images.
PartCounts: TypeAlias = Mapping[str, ImageCounts]


def take_counts(metrics: Mapping[str, Any]) -> tuple[dict[str, Any], PartCounts]:
    """The metrics without their counts, and these."""
    return {key: value for key, value in metrics.items() if key != COUNTS}, metrics.get(COUNTS, {})


def write_counts(path: Path, counts: Mapping[str, PartCounts]) -> None:
    """Writes the counts of benchmarks, an image a line.

    Args:
        path: JSON.
        counts: By benchmark.
    """
    lines = []
    for benchmark, parts in counts.items():
        inner = [
            f"{json.dumps(part)}: {{\n"
            + ",\n".join(f"{json.dumps(image)}: {json.dumps(own.tolist())}" for image, own in images.items())
            + "}"
            for part, images in parts.items()
        ]
        lines.append(f"{json.dumps(benchmark)}: {{{', '.join(inner)}}}")
    with naming(path):
        path.write_text("{" + ",\n".join(lines) + "}\n", encoding="utf-8")


def read_counts(path: Path) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """What `write_counts` wrote.

    Raises:
        InputError: The file is something else, or damaged.
    """
    content = parse_json(path.read_bytes(), path)
    try:
        return {
            benchmark: {part: _read_part(images) for part, images in parts.items()}
            for benchmark, parts in content.items()
        }
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{path}: expected counts by benchmark, part and image ({error}); evaluate again") from None


def _read_part(images: Mapping[str, Any]) -> dict[str, np.ndarray]:
    found = {image: np.asarray(own, np.float64) for image, own in images.items()}
    if len({own.shape for own in found.values()}) > 1:
        raise ValueError("not as many of each image")
    if not all(np.isfinite(own).all() for own in found.values()):
        raise ValueError("a count that is no number")
    return found
