"""The one exception that means "what you gave is wrong"."""

from collections.abc import Iterable


class InputError(ValueError):
    """A config, file, folder or argument that the user gave cannot be used.

    The message is one line that says what was expected, what was found, where, and how to mend it. Commands print
    it to stderr without a traceback and exit with code 2; every other exception is a defect and keeps its traceback.
    """


def some(names: Iterable[str], most: int = 10) -> str:
    """A list of names for a message: those that fit, then how many more there are."""
    names = list(names)
    shown = [name if name.isprintable() and len(name) <= 200 else f"{name[:200]!r}" for name in names[:most]]
    return ", ".join(shown) + (f" and {len(names) - most} more" if len(names) > most else "")
