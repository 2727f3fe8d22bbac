"""What is written of Object HalBench."""

from collections.abc import Sequence

from vigor_jax.evaluation.benchmarks import object_halbench
from vigor_jax.evaluation.benchmarks.object_halbench import CheckedAnswer
from vigor_jax.evaluation.metrics import Metrics, counted, plain_rates, rows_of


def halbench_metrics(answers: Sequence[CheckedAnswer]) -> Metrics:
    """Figures of Object HalBench's answers."""
    counts = object_halbench.count(answers)
    total = rows_of(counts).sum(0)
    numbers = dict(zip(object_halbench.COUNTS, total.tolist(), strict=True))
    told = ("answers", "with_objects", "mentions", "hallucinated", "hallucinated_answers")
    figures = {**plain_rates(object_halbench.rates(total)), **{name: numbers[name] for name in told}}
    return {**figures, **counted(counts, object_halbench.rates)}
