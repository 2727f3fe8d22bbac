"""What is written of boxes in answers: of captions with boxes, and of referring expressions."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from vigor_jax.evaluation.benchmarks import grounding, referring
from vigor_jax.evaluation.benchmarks.grounding import CheckedBoxes
from vigor_jax.evaluation.benchmarks.referring import Located
from vigor_jax.evaluation.bootstrap import bootstrap
from vigor_jax.evaluation.metrics import Metrics, plain_intervals


def grounding_metrics(captions: Sequence[CheckedBoxes]) -> Metrics:
    """Figures of the boxes in captions that were compared with their images."""
    counts = np.array(list(grounding.count(captions).values()))
    figures = dataclasses.asdict(grounding.compute_metrics(captions))
    return {**figures, "intervals": plain_intervals(bootstrap(counts, grounding.rates))}


def referring_metrics(parts: Mapping[str, Sequence[Located]]) -> Metrics:
    """Figures of each part of the referring expressions.

    Args:
      parts: by name, the answers that were compared with the true boxes.
    """
    return {
        part: {
            **dataclasses.asdict(referring.compute_metrics(answers)),
            "intervals": plain_intervals(bootstrap(np.array(list(referring.count(answers).values())), referring.rates)),
        }
        for part, answers in parts.items()
    }
