"""Where shards of images are: a file, a folder or a pattern, on a local disk or behind any fsspec URL, as files.

A pattern has `*`, `?`, `[0-9]` or `**` as in a shell, and WebDataset's braces, `{00000..00099}` and `{train,val}`.
What follows `#` are options, `KEY=VALUE&KEY=VALUE`.
"""

import io
import posixpath
import re
import urllib.parse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
from braceexpand import braceexpand

from vigor_jax.data.images.folders import FolderWalk
from vigor_jax.errors import InputError

OPTIONS = ("image", "name", "names")

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
# What a store calls the state of a file, the surest first.
_VERSIONS = ("generation", "etag", "ETag", "md5Hash", "content_md5", "mtime", "LastModified", "updated", "created")


class File(NamedTuple):
    """A file as it was when it was listed.

    Attributes:
      system: fsspec's, which reads it.
      path: as that system has it.
      url: as a person has it.
      size: in bytes.
      version: differs once the file is written again, as far as the system can tell.
    """

    system: Any
    path: str
    url: str
    size: int
    version: str

    @property
    def is_local(self) -> bool:
        return is_local(self.system)


class Ranges(io.RawIOBase):
    """A remote file by ranges: unlike the file objects of some systems, two of one file do not share a position."""

    def __init__(self, file: File) -> None:
        self._file, self._position = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.size}[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        end = min(self._position + len(view), self._file.size)
        if end <= self._position:
            return 0
        found = self._file.system.cat_file(self._file.path, start=self._position, end=end)
        view[: len(found)] = found
        self._position += len(found)
        return len(found)


class Place(NamedTuple):
    """A place without its options.

    Attributes:
      location: path, pattern or URL.
      options: of `OPTIONS`.
    """

    location: str
    options: Mapping[str, str]

    @property
    def is_pattern(self) -> bool:
        return any(letter in self.location for letter in "*?[{") and not self._is_there

    @property
    def _is_there(self) -> bool:
        return "://" not in self.location and Path(self.location).exists()


def parse(place: str | Path) -> Place:
    """Takes the options off; `#` in the name of a file that exists is part of the name.

    Raises:
      InputError: an option is unknown or malformed.
    """
    text = str(place)
    location, mark, fragment = text.partition("#")
    if not mark or ("://" not in text and Path(text).exists()):
        return Place(text, {})
    options: dict[str, str] = {}
    for part in fragment.split("&"):
        key, equals, value = part.partition("=")
        if key not in OPTIONS or not equals or not value:
            raise InputError(f"images: {text}: expected {', '.join(OPTIONS)}=VALUE behind #, got {part!r}")
        options[key] = urllib.parse.unquote(value)
    return Place(location, options)


def open_system(location: str) -> tuple[Any, str]:
    """fsspec's system for a path or URL, and the path in it.

    Raises:
      InputError: the scheme is unknown, or its package is not installed.
    """
    try:
        return fsspec.core.url_to_fs(location)
    except (ImportError, ValueError) as error:
        raise InputError(f"images: {location} cannot be opened ({' '.join(str(error).split())})") from error


def is_local(system: Any) -> bool:
    """Whether a system is the local disk."""
    protocol = system.protocol
    return "file" in ((protocol,) if isinstance(protocol, str) else protocol)


def list_folder(location: str) -> list[File]:
    """All files below a folder, however deep, by path; none if it is not there. Local links are followed."""
    system, path = open_system(location)
    if is_local(system):
        files = FolderWalk(path) if Path(path).is_dir() else ()
        return _files(system, {file: system.info(file) for file in files})
    try:
        found = system.find(path, detail=True)
    except FileNotFoundError:
        return []
    return _files(system, found)


def list_pattern(location: str) -> list[File]:
    """The files that a path or a pattern names, each once, by path.

    Raises:
      InputError: nothing matches, or a file that braces name is not there.
    """
    found: dict[str, File] = {}
    exact = []
    for one in expand(location):
        if any(letter in one for letter in "*?["):
            system, path = open_system(one)
            found |= {file.path: file for file in _files(system, system.glob(path, detail=True))}
        else:
            exact.append(one)
    found |= {file.path: file for file in list_files(exact)}
    if not found:
        raise InputError(f"images: nothing matches {location}; check the path")
    return [found[path] for path in sorted(found)]


def expand(pattern: str) -> list[str]:
    """`a-{08..10}.tar` → `a-08.tar`, `a-09.tar`, `a-10.tar`; `{train,val}.tar` → `train.tar`, `val.tar`; as in Bash.

    Raises:
      InputError: a range runs backwards.
    """
    for bounds in _RANGE.finditer(pattern):
        if int(bounds[2]) < int(bounds[1]):
            raise InputError(f"images: {pattern}: expected {{LOW..HIGH}}, got {bounds[0]}")
    try:
        return list(dict.fromkeys(braceexpand(pattern, escape=False)))
    except ValueError:  # unbalanced braces, which are part of a name
        return [pattern]


def list_files(locations: Iterable[str]) -> list[File]:
    """Files by their names; each folder is listed once, since a question a shard takes minutes in a bucket.

    Raises:
      InputError: one is not there.
    """
    found, listed = [], dict[str, dict[str, Any]]()
    for location in locations:
        system, path = open_system(location)
        parent = posixpath.dirname(path)
        if parent not in listed:
            try:
                listed[parent] = {info["name"]: info for info in system.ls(parent, detail=True)}
            except (OSError, NotImplementedError):
                listed[parent] = {}  # some systems list nothing, and still have files
        try:
            found += _files(system, {path: listed[parent].get(path) or system.info(path)}, is_named=True)
        except OSError as error:
            raise InputError(f"images: {location} is not there; check the path, or take it out of the list") from error
    return found


def _files(system: Any, found: Mapping[str, Mapping[str, Any]], *, is_named: bool = False) -> list[File]:
    """The files among what was found; `is_named` if a link without a file at its end is an error, which is OSError."""
    files = []
    for path, info in sorted(found.items()):
        if info.get("islink"):  # a listing describes the link, this the file that it leads to
            try:
                info = system.info(path)
            except OSError:
                if is_named:
                    raise
                continue
        if info["type"] == "file":
            url = path if is_local(system) else system.unstrip_protocol(path)
            if info["size"] is None:
                raise InputError(f"images: {url}: its server does not say how long it is; copy it, and take the copy")
            files.append(File(system, path, url, info["size"], _version(info)))
    return files


def _version(info: Mapping[str, Any]) -> str:
    return next((f"{key} {info[key]}" for key in _VERSIONS if info.get(key) is not None), "")
