"""What is written of boxes in answers: of captions with boxes, and of referring expressions."""

import dataclasses
from collections.abc import Mapping, Sequence

from vigor_jax.evaluation.benchmarks import grounding, referring
from vigor_jax.evaluation.benchmarks.grounding import CheckedBoxes
from vigor_jax.evaluation.benchmarks.referring import Located
from vigor_jax.evaluation.bootstrap import bootstrap
from vigor_jax.evaluation.image_counts import COUNTS
from vigor_jax.evaluation.metrics import Metrics, counted, plain_intervals, rows_of


def grounding_metrics(captions: Sequence[CheckedBoxes]) -> Metrics:
    """Figures of the boxes in captions that were compared with their images."""
    figures = dataclasses.asdict(grounding.compute_metrics(captions))
    return {**figures, **counted(grounding.count(captions), grounding.rates)}


def referring_metrics(parts: Mapping[str, Sequence[Located]]) -> Metrics:
    """Figures of each part of the referring expressions.

    Args:
      parts: by name, the answers that were compared with the true boxes.
    """
    counts = {part: referring.count(answers) for part, answers in parts.items()}
    found: Metrics = {
        part: {
            **dataclasses.asdict(referring.compute_metrics(answers)),
            "intervals": plain_intervals(bootstrap(rows_of(counts[part]), referring.rates)),
        }
        for part, answers in parts.items()
    }
    return {**found, COUNTS: counts}
