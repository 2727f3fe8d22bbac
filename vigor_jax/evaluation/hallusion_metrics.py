"""What is written of HallusionBench."""

from collections.abc import Sequence

from vigor_jax.evaluation.benchmarks import hallusion
from vigor_jax.evaluation.benchmarks.hallusion import HallusionQuestion, Outcome
from vigor_jax.evaluation.metrics import Metrics, counted, plain_rates, rows_of


def hallusion_metrics(questions: Sequence[HallusionQuestion], outcomes: Sequence[Outcome]) -> Metrics:
    """Figures of HallusionBench, over all and of each of its two categories."""
    counts = hallusion.count(questions, outcomes)
    found = {**plain_rates(hallusion.rates(rows_of(counts).sum(0))), **counted(counts, hallusion.rates)}
    for category in ("VD", "VS"):
        own = [(one, outcome) for one, outcome in zip(questions, outcomes, strict=True) if one.category == category]
        if own:
            found[category] = plain_rates(hallusion.rates(rows_of(hallusion.count(*zip(*own, strict=True))).sum(0)))
    return {**found, "questions": len(questions), "unclear": sum(outcome == "unclear" for outcome in outcomes)}
