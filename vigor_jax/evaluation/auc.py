"""How well scores tell good from bad."""

import numpy as np
from jaxtyping import Bool, Float


def auc(scores: Float[np.ndarray, "N"], is_good: Bool[np.ndarray, "N"]) -> float | None:
    """Probability that a good one scores above a bad one, a tie counting half; None where either kind is missing."""
    good, bad = scores[is_good], np.sort(scores[~is_good])
    if not good.size or not bad.size:
        return None
    below, not_above = (np.searchsorted(bad, good, side).mean() for side in ("left", "right"))
    return float((below + not_above) / (2 * bad.size))
