"""Which image is meant: benchmarks, tools and COCO call the same one by a path, a file name, a stem or a number."""

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from types import MappingProxyType

from vigor_jax.errors import InputError

# COCO's file names, with the split as in 2014 or without as in 2017.
_COCO = re.compile(r"(?:COCO_[a-z]+\d+_)?(\d{12})", re.IGNORECASE)
_DIGITS = re.compile(r"(?<!\d)(\d{1,18})$")  # which is the longest id that anybody has


def bare_name(image: str) -> str:
    """What an image is called without its folder and suffix, and in COCO without the split, which 2017 leaves out."""
    stem = PurePath(image).stem
    coco = _COCO.fullmatch(stem)
    return coco[1] if coco else stem


def first(images: Iterable[str], limit: int) -> list[str]:
    """The first images by name, each once.

    Args:
        images: In any order.
        limit: How many at most; 0 takes all.

    Raises:
        InputError: `limit` is negative.
    """
    if limit < 0:
        raise InputError(f"limit: expected 0 for all images, or how many, got {limit}")
    return sorted(set(images))[: limit or None]


class ImageNames:
    """The images that are known, and what else they may be called.

    Args:
        names: Of the files, as the benchmark has them.
        ids: COCO's image id → file name, where the benchmark says so.
    """

    def __init__(self, names: Iterable[str], ids: Mapping[str, str] = MappingProxyType({})) -> None:
        self.names = dict.fromkeys(names)
        self._ids = ids
        self._bare: dict[str, list[str]] = {}
        self._tails: dict[str, list[str]] = {}
        self._numbers: dict[int, list[str]] = {}
        for name in self.names:
            path = PurePath(name)
            self._bare.setdefault(str(path.with_suffix("")) if path.name else name, []).append(name)
            for tail in {path.name, path.stem}:
                self._tails.setdefault(tail, []).append(name)
            if digits := _DIGITS.search(path.stem):
                self._numbers.setdefault(int(digits[1]), []).append(name)

    def find(self, called: str) -> list[str]:
        """The names that may be meant, mostly one or none.

        The first of these that finds some decides: the name itself, or with folders before it or another suffix; COCO's
        id of it; the file's name without its folder, with and without suffix; and of a number alone, or of a name of
        COCO's, the digits at the name's end.
        """
        if called in self.names:
            return [called]
        parts = [part for part in PurePath(called).parts if part != "images"]
        for start in range(len(parts)):
            if (tail := "/".join(parts[start:])) in self.names:
                return [tail]
        for start in range(len(parts) - 1):  # a name alone may be COCO's id
            if found := self._bare.get(str(PurePath(*parts[start:]).with_suffix(""))):
                return found
        number = int(called) if _DIGITS.fullmatch(called) else None
        if (coco_id := called if number is None else str(number)) in self._ids:
            return [self._ids[coco_id]]
        path = PurePath(called)
        for tail in (path.name, path.stem):
            if found := self._tails.get(tail):
                return found
        if number is not None:
            return self._numbers.get(number, [])
        if coco := _COCO.fullmatch(path.stem):
            return [name for name in self._numbers.get(int(coco[1]), ()) if _COCO.fullmatch(PurePath(name).stem)]
        return []
