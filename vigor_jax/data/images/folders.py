"""All files below a local folder, links followed, and a count of what is no file that can be read."""

import functools
import logging
import os
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

logger = logging.getLogger(__name__)

_KINDS_NAMED = 12
_Identity = tuple[int, int]  # device and inode


class FolderWalk:
    """Goes through a folder however deep it is, hidden files and folders included.

    A link to a folder is followed, inside the root or out of it. A circular one, to a folder that it is in, is not; and
    none is followed twice, so that folders which link to each other end. A folder that two links lead to has both
    names.

    Args:
      root: a folder, or a link to one.

    Attributes:
      problems: what was passed over so far, by kind, such as "broken link".
      second_names: how many files so far are in a folder that was seen before under another name.
    """

    def __init__(self, root: str | Path) -> None:
        self._root = str(root)
        self.problems: Counter[str] = Counter()
        self.second_names = 0

    def __iter__(self) -> Iterator[str]:
        """Paths of the plain files, each beginning with the root; in no order."""
        # Folders come before links to folders, so that names without links are found first; all in the order of names,
        # so that every process finds the same.
        waiting = deque([(self._root, _around(self._root))])
        seen: set[_Identity] = set()
        followed: set[_Identity] = set()
        while waiting:
            folder, around = waiting.popleft()
            folders: list[os.DirEntry[str]] = []
            below = []
            try:
                identity = _identity(os.stat(folder))
                is_seen = identity in seen
                seen.add(identity)
                with os.scandir(folder) as entries:
                    for entry in entries:
                        if (kind := _kind(entry)) == "file":
                            self.second_names += is_seen
                            yield entry.path
                        elif kind == "folder":
                            folders.append(entry)
                        else:
                            self.problems[kind] += 1
                for entry in sorted(folders, key=lambda entry: entry.name):
                    if _identity(entry.stat()) in around:
                        self.problems["circular link"] += 1
                    elif not entry.is_symlink():
                        below.append((entry.path, around | {_identity(entry.stat())}))
                    elif (link := _identity(entry.stat(follow_symlinks=False))) not in followed:
                        followed.add(link)
                        waiting.append((entry.path, around | _around(entry.path)))
            except OSError:  # may not be read, or is gone
                self.problems["unreadable folder"] += 1
            waiting.extendleft(reversed(below))


def file_names(folder: Path) -> set[str]:
    """Names of the plain files in one folder, and of links to some; none if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if _kind(entry) == "file"}
    except (OSError, ValueError):  # the latter for a name with a zero byte
        return set()


def kind_of(file: str) -> str:
    """What `count` calls a file that is no image: its suffix, in lower case."""
    return PurePosixPath(file).suffix.lower() or "suffixless file"


def count(numbers: Mapping[str, int]) -> str:
    """`{".jp2": 3, "broken link": 2}` → `3 .jp2, 2 broken links`; the most frequent first, and of many no more."""
    ordered = sorted(numbers.items(), key=lambda pair: (-pair[1], pair[0]))
    named = [f"{n} {what}{'' if n == 1 or what.startswith('.') else 's'}" for what, n in ordered[:_KINDS_NAMED]]
    if rest := sum(n for _, n in ordered[_KINDS_NAMED:]):
        named.append(f"{rest} of other kinds")
    return ", ".join(named)


@functools.cache
def tell(message: str) -> None:
    """Logs once what every stage finds out about one folder."""
    logger.info(message)


def tell_left_out(place: str | Path, found: int, left_out: Mapping[str, int]) -> None:
    """Says how many images a place has and what else it holds, if anything."""
    if others := count(left_out):
        tell(f"{place}: {found} image{'s' * (found > 1)}; left out: {others}")


def _kind(entry: os.DirEntry[str]) -> str:
    try:
        if entry.is_file():
            return "file"
        if entry.is_dir():
            return "folder"
        if not entry.is_symlink():
            return "special file"
        entry.stat()
    except OSError:  # nothing at its end, or itself
        return "broken link"
    return "special file"


def _identity(status: os.stat_result) -> _Identity:
    return status.st_dev, status.st_ino


def _around(folder: str) -> frozenset[_Identity]:
    """A folder and all that it is in."""
    real = Path(os.path.realpath(folder))
    return frozenset(_identity(os.stat(path)) for path in (real, *real.parents))
