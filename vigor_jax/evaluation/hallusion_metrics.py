"""What is written of HallusionBench."""

from collections.abc import Sequence

import numpy as np

from vigor_jax.evaluation.benchmarks import hallusion
from vigor_jax.evaluation.benchmarks.hallusion import HallusionQuestion, Outcome
from vigor_jax.evaluation.metrics import Metrics, plain_rates, rated


def hallusion_metrics(questions: Sequence[HallusionQuestion], outcomes: Sequence[Outcome]) -> Metrics:
    """Figures of HallusionBench, over all and of each of its two categories."""
    found = rated(np.array(list(hallusion.count(questions, outcomes).values())), hallusion.rates)
    for category in ("VD", "VS"):
        own = [(one, outcome) for one, outcome in zip(questions, outcomes, strict=True) if one.category == category]
        if own:
            counts = sum(hallusion.count(*zip(*own, strict=True)).values())
            found[category] = plain_rates(hallusion.rates(np.asarray(counts)))
    return {**found, "questions": len(questions), "unclear": sum(outcome == "unclear" for outcome in outcomes)}
