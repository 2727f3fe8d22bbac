"""The exception that means "what you gave is wrong", and hints for it."""

import difflib
from collections.abc import Iterable

# Below this similarity a nearest name says more about the list than about the slip.
ALIKE = 0.65
_MOST_LISTED = 24


class InputError(ValueError):
    """A config, file, folder or argument that the user gave cannot be used.

    The message is one line that says what was expected, what was found, where, and how to fix it. Commands print
    it to stderr without a traceback and exit with code 2; every exception that is not of this module is a
    defect and keeps its traceback, but for those that `cli.run` names.
    """


class RunEndedError(RuntimeError):
    """What was asked for cannot continue, though all that the user gave could be used: numbers are not finite any more,
    or memory is full.

    The message is one line that says what happened, where, and what to change. Commands print it to stderr without a
    traceback and exit with code 3; a run's `log.txt` has the traceback. What was kept before stays.
    """


class StaleError(InputError):
    """What a run has made is of something else than what there is today; with `run.overwrite` a run makes it again.

    Attributes:
      what: differs.
    """

    def __init__(self, what: str, back: str) -> None:
        """`back` says how to go back to what it was made of, such as "go back to that value"."""
        super().__init__(f"{what}; {back}, choose another run directory, or give --run.overwrite true to begin again")
        self.what = what


def nearest(name: str, known: Iterable[str], *, noun: str = "known one", quoted: bool = False) -> str:
    """What to say about an unknown name: the known one that it resembles, or all known ones if it resembles none.

    Of dotted keys ("sft.epochz") each part is compared, since a long common start hides that the ends have nothing in
    common; and if none is alike, those of the same section are listed.

    Args:
      name: the unknown one.
      known: all known ones.
      noun: what they are called.
      quoted: whether names stand in quotation marks.

    Returns:
      "the nearest known one is sft.epochs" or "known ones are a, b, c".
    """
    names = list(dict.fromkeys(known))

    def show(one: str) -> str:
        return repr(one) if quoted else one

    section = name.rpartition(".")[0]
    own = [one for one in names if one.rpartition(".")[0] == section]
    # A section that is there is meant: "train_reward.data" is not "train_preference_reward.data".
    meant = own if section and own else names
    best = max(meant, key=lambda one: _likeness(name, one), default=None)
    if best is not None and _likeness(name, best)[0] >= ALIKE:
        return f"the nearest {noun} is {show(best)}"
    listed = own or names
    rest = f" and {len(listed) - _MOST_LISTED} more" if len(listed) > _MOST_LISTED else ""
    return f"{noun}s are {', '.join(map(show, listed[:_MOST_LISTED]))}{rest}"


def _likeness(name: str, other: str) -> tuple[float, float]:
    """How alike the least alike parts of two dotted names are, then the whole names; each in [0, 1]."""
    whole = difflib.SequenceMatcher(None, name.lower(), other.lower()).ratio()
    one, two = name.lower().split("."), other.lower().split(".")
    if len(one) != len(two):
        # A section is missing or one too many: only the same last part speaks for a slip.
        return (whole if one[-1] == two[-1] else 0.0), whole
    return min(difflib.SequenceMatcher(None, a, b).ratio() for a, b in zip(one, two, strict=True)), whole


def some(names: Iterable[str], most: int = 10) -> str:
    """A list of names for a message: those that fit, then how many more there are."""
    names = list(names)
    shown = [name if name.isprintable() and len(name) <= 200 else f"{name[:200]!r}" for name in names[:most]]
    return ", ".join(shown) + (f" and {len(names) - most} more" if len(names) > most else "")
