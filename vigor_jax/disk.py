"""Room on disks, and what goes wrong with files, in one line."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from vigor_jax.errors import InputError

# What the user can do. Errors that are not here are defects, or no matter of disks.
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
    errno.ENOTEMPTY: "something else is in that folder; choose another place",
    errno.ENOENT: "check the path",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.ELOOP: "check the links on that path",
    errno.EIO: "check the disk",
    errno.ESTALE: "check the shared file system",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "raise the limit on open files",
}
# Those that a write raises, without a path.
_OF_WRITES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE)


def describe(error: OSError) -> str | None:
    """An error of a file or a disk in one line: where, what, and what to do; None if it is of another kind."""
    place = error.filename2 or error.filename
    if error.errno not in _ADVICE or (place is None and error.errno not in _OF_WRITES):
        return None
    where = "" if place is None else f"{os.fsdecode(place) if isinstance(place, bytes) else place}: "
    return " ".join(f"{where}{os.strerror(error.errno)}; {_ADVICE[error.errno]}".splitlines())


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """A context in which a write that fails names a path, which `write`, `flush` and `fsync` leave out.

    Raises:
      OSError: as it was, with `filename`.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _OF_WRITES and error.filename is None:
            error.filename = str(path)
        raise


def check_room(path: Path, needed: int, what: str) -> None:
    """Refuses to begin what the disk has no room for.

    Args:
      path: where it is to be written; need not exist.
      needed: bytes.
      what: to be written, as the message calls it.

    Raises:
      InputError: fewer bytes are free.
    """
    usage = shutil.disk_usage(_existing(path))
    if usage.total and usage.free < needed:  # some remote file systems tell no sizes
        raise no_room(path, needed, what)


def no_room(path: Path, needed: int, what: str) -> InputError:
    """The refusal of `check_room`; also for writes that found the disk full."""
    free = shutil.disk_usage(_existing(path)).free
    return InputError(
        f"{path}: {what} needs {_size(needed)}, and {_size(free)} are free there; make room and give the same command "
        "again, or choose another place"
    )


def _existing(path: Path) -> Path:
    """The path itself, or the nearest folder above it that exists."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.exists())


def _size(count: int) -> str:
    """`1.50 GB`."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} bytes"
