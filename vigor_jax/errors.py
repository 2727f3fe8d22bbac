"""The one exception that means "what you gave is wrong", and how errors of disks are told."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path


class InputError(ValueError):
    """A config, file, folder or argument that the user gave cannot be used.

    The message is one line that says what was expected, what was found, where, and how to mend it. Commands print
    it to stderr without a traceback and exit with code 2; every other exception is a defect and keeps its traceback.
    """


# What the user can do about errors of files and disks. Those that are not here are defects, or were met elsewhere.
_ADVICE = {
    errno.ENOSPC: "make room there and give the same command again",
    errno.EDQUOT: "make room in your quota there and give the same command again",
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f), or choose another place",
    errno.EROFS: "choose a place that can be written",
    errno.EACCES: "check the permissions, or choose another place",
    errno.EPERM: "check the permissions, or choose another place",
    errno.ENOTDIR: "a file stands where a folder is needed; choose another place",
    errno.EISDIR: "a folder stands where a file is needed; choose another place",
    errno.EEXIST: "something else has that name; choose another place",
    errno.ENOENT: "check the path",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.ELOOP: "check the links on that path",
    errno.EIO: "check the disk",
    errno.ESTALE: "check the shared file system",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "raise the limit on open files (ulimit -n)",
}
# Those that a write raises, without a path.
_WITHOUT_PATH = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE)


def describe(error: OSError) -> str | None:
    """An error of a file or a disk in one line: where, what, and what to do; None if it is of another kind."""
    if error.errno not in _ADVICE:
        return None
    place = error.filename2 or error.filename
    if place is None and error.errno not in _WITHOUT_PATH:
        return None
    where = f"{os.fsdecode(place) if isinstance(place, bytes) else place}: " if place is not None else ""
    return f"{where}{error.strerror or os.strerror(error.errno)}; {_ADVICE[error.errno]}"


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """A context whose errors of disks name the path, which `write` and `flush` leave out."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise
