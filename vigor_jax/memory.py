"""What is said when the memory of a device or of the machine is full: one line."""

import re

# As XLA says it: on CPUs and GPUs of an array, on TPUs of a program. TensorStore says so of disks, in a `ValueError`.
_FULL = re.compile(r"RESOURCE_EXHAUSTED: (.*(?:memory|allocat).*)", re.IGNORECASE)


def describe(error: BaseException) -> str | None:
    """An error of full memory in one line, with how much was wanted; None if it is of another kind."""
    if isinstance(error, MemoryError):
        return ": ".join(filter(None, ("the machine's memory is full", " ".join(str(error).split()))))
    found = _FULL.search(str(error)) if isinstance(error, RuntimeError) else None
    return f"a device's memory is full: {found[1].strip().rstrip('.')}" if found else None
