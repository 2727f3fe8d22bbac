"""Shares as text that never says "all" or "none" where it is only nearly so."""


def percent(share: float, digits: int = 0, *, most_digits: int = 3) -> str:
    """A share of 1 as a number of percent, without the sign: 0.999 → "99.9", and 1 → "100".

    Args:
      share: in [0, 1]; others are written as they are.
      digits: after the point, where that tells it from 0 and 100.
      most_digits: after the point; what needs more is "<0.001" or ">99.999".
    """
    for count in range(digits, most_digits + 1):
        text = f"{100 * share:.{count}f}"
        if not 0 < share < 1 or 0 < float(text) < 100:
            return text
    least = 10.0**-most_digits
    return f"<{least:.{most_digits}f}" if share < 0.5 else f">{100 - least:.{most_digits}f}"
