"""Images, wherever they are: a folder, tar shards as WebDataset has them, Parquet; on a disk or in a bucket.

    photos/                                    a folder of image files, searched however deep; or one image
    shards/                                    a folder of .tar files (or else of .parquet files), the same
    gs://BUCKET/train-{00000..00999}.tar       a pattern
    s3://BUCKET/images/*.parquet#name=key      a pattern, with an option

What an image is called says `TarShards` or `ParquetShards`; in a folder it is the path below it. All names are
different: if two shards hold the same, that is refused, and the option `names=shard` calls images SHARD/NAME instead.

Their order is the shards' by path and within each the file's own; a folder's is that of the names.

Memory for a million images: in shards 2 MB once they are open, as their index is on disk and mapped (`image_index`),
and as names are read up to its 50 MB, which all processes of a host share; some 650 MB in a folder while it is listed.
"""

import abc
import dataclasses
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from vigor_jax.data.images import parquet_shards, tar_shards
from vigor_jax.data.images import places as image_places
from vigor_jax.data.images.folders import FolderWalk, file_names, kind_of, tell_left_out
from vigor_jax.data.images.index import Shards, open_index, shard_names
from vigor_jax.data.images.places import File, Place
from vigor_jax.data.images.preprocessing import SUFFIXES, find_images
from vigor_jax.data.records.store import join
from vigor_jax.errors import InputError
from vigor_jax.records import ImageFile

_KINDS = (tar_shards.SUFFIX, parquet_shards.SUFFIX)
_COMPRESSED = (".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip")


class Images(Mapping[str, ImageFile], abc.ABC):
    """Name → image, in a stable order; may be read by many threads at once.

    Attributes:
      place: as it was given.
    """

    place: str

    @abc.abstractmethod
    def names(self, start: int = 0, stop: int | None = None) -> Iterator[str]:
        """The names from number `start` up to and without `stop`, in order."""

    @abc.abstractmethod
    def file(self, name: str) -> ImageFile:
        """What reads an image when it is asked for its bytes; it is not looked for before."""

    @abc.abstractmethod
    def read(self, name: str) -> bytes:
        """An image's bytes.

        Raises:
          InputError: there is no such image, or it cannot be read.
        """

    @abc.abstractmethod
    def missing(self, names: Iterable[str]) -> list[str]:
        """Those of some names that no image has, in their order."""

    def __iter__(self) -> Iterator[str]:
        return self.names()

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and not self.missing([name])

    def __getitem__(self, name: str) -> ImageFile:
        if name not in self:
            raise KeyError(name)
        return self.file(name)

    # Two stores are the same if they are one object; comparing millions of images helps nobody.
    __eq__ = object.__eq__
    __hash__ = object.__hash__


@dataclasses.dataclass(frozen=True, slots=True)
class StoredImage:
    """An image that is not a file; an `ImageFile`."""

    images: Images
    name: str

    def read_bytes(self) -> bytes:
        return self.images.read(self.name)

    def __str__(self) -> str:
        return join(self.images.place, self.name)


class Folder(Images):
    """A folder, or a single image. Any file in it can be read; listed are those that end as images do."""

    def __init__(self, place: str, *, limit: int = 0) -> None:
        self.place, self._path, self._limit = place, Path(place), limit

    @cached_property
    def _names(self) -> list[str]:
        return list(find_images(self._path))[: self._limit or None]

    def names(self, start: int = 0, stop: int | None = None) -> Iterator[str]:
        return iter(self._names[start:stop])

    def __len__(self) -> int:
        return len(self._names)

    def file(self, name: str) -> Path:
        return self._path if name == self._path.name and self._path.is_file() else self._path / name

    def read(self, name: str) -> bytes:
        try:
            return self.file(name).read_bytes()
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise InputError(f"{self.file(name)}: cannot read the image ({reason}); check the image folder") from error

    def missing(self, names: Iterable[str]) -> list[str]:
        """Each folder within is listed once, since a million `stat` calls take minutes."""
        wanted = [(name, self.file(name)) for name in names]
        if len(wanted) == 1:
            return [name for name, file in wanted if not os.path.isfile(file)]  # False where a name is too long
        folders = {file.parent for _, file in wanted}
        present = {folder: file_names(folder) for folder in folders}
        return [name for name, file in wanted if file.name not in present[file.parent]]


class Bucket(Images):
    """Image files below a URL, listed once; for a few millions, more belong in shards."""

    def __init__(self, place: str, files: Iterable[File], root: str, *, limit: int = 0) -> None:
        self.place = place
        named = {file.path.removeprefix(root).lstrip("/") or file.path.rpartition("/")[2]: file for file in files}
        self._files = dict(sorted(named.items()))
        self._names = list(self._files)[: limit or None]

    def names(self, start: int = 0, stop: int | None = None) -> Iterator[str]:
        return iter(self._names[start:stop])

    def __len__(self) -> int:
        return len(self._names)

    def file(self, name: str) -> StoredImage:
        return StoredImage(self, name)

    def read(self, name: str) -> bytes:
        if name not in self._files:
            raise _unknown(name, self)
        file = self._files[name]
        try:
            return file.system.cat_file(file.path)
        except OSError as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"{file.url}: cannot read the image ({reason}); check the bucket") from error

    def missing(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if name not in self._files]


class ShardedImages(Images):
    """The images of some shards."""

    def __init__(self, place: str, files: list[File], kind: Shards, options: Mapping[str, str], *, limit: int = 0):
        settings: dict[str, Any] = {key: value for key, value in options.items() if key != "names"}
        if isinstance(kind, tar_shards.TarShards):  # which members are images
            settings["suffixes"] = SUFFIXES
        self.place, self._files, self._kind = place, files, kind
        self._index = open_index(files, kind, qualify="names" in options, settings=settings)
        if not len(self._index):
            raise InputError(f"images: no member of the shards of {place} ends in one of {' '.join(SUFFIXES)}")
        self._prefixes = [f"{name}/" for name in shard_names(files)] if "names" in options else [""] * len(files)
        self._count = min(limit or len(self._index), len(self._index))

    def names(self, start: int = 0, stop: int | None = None) -> Iterator[str]:
        return self._index.names(*slice(start, stop).indices(self._count)[:2])

    def __len__(self) -> int:
        return self._count

    def file(self, name: str) -> StoredImage:
        return StoredImage(self, name)

    def read(self, name: str) -> bytes:
        number = self._index.find(name)
        if number is None:
            raise _unknown(name, self)
        entry = self._index.entry(number)
        inside = name.removeprefix(self._prefixes[entry.shard])
        return self._kind.read(self._files[entry.shard], entry.row, inside, entry.values)

    def missing(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if self._index.find(name) is None]


def open_images(place: str | Path, *, limit: int = 0) -> Images:
    """Opens a place; see the module's docstring for what that may be.

    A local path at which there is nothing is opened as a folder, which complains when it is read.

    Args:
      place: path, pattern or URL.
      limit: list only this many images, the first; 0 lists all. Any image can be read.

    Raises:
      InputError: the place cannot be opened, or its shards cannot be used.
    """
    if not str(place).strip():  # a Path of it would be the working directory
        raise InputError("images: expected a folder, shards or an image, got nothing; is a variable empty?")
    where = image_places.parse(place)
    if where.location.startswith("file://"):
        where = where._replace(location=image_places.open_system(where.location)[1])
    if where.is_pattern:
        return _open_shards(where, str(place), image_places.list_pattern(where.location), limit)
    if "://" in where.location:
        return _open_url(where, str(place), limit)
    path = Path(where.location)
    if path.is_dir() and not _has_images(path):
        if shards := [file for file in image_places.list_folder(where.location) if _suffix(file.path) in _KINDS]:
            return _open_shards(where, str(place), shards, limit)
    elif path.is_file() and path.suffix.lower() in (*_KINDS, *_COMPRESSED):
        return _open_shards(where, str(place), image_places.list_files([where.location]), limit)
    return Folder(where.location, limit=limit)


def _open_url(where: Place, place: str, limit: int) -> Images:
    path = image_places.open_system(where.location)[1]
    if _suffix(path) in _KINDS:
        return _open_shards(where, place, image_places.list_pattern(where.location), limit)
    files = image_places.list_folder(where.location)
    if images := [file for file in files if _suffix(file.path) in SUFFIXES]:
        others = Counter(kind_of(file.path) for file in files if _suffix(file.path) not in SUFFIXES)
        tell_left_out(where.location, len(images), others)
        return Bucket(where.location, images, path, limit=limit)
    if shards := [file for file in files if _suffix(file.path) in _KINDS]:
        return _open_shards(where, place, shards, limit)
    raise InputError(f"images: no file below {where.location} ends in one of {' '.join((*SUFFIXES, *_KINDS))}")


def _open_shards(where: Place, place: str, files: list[File], limit: int) -> Images:
    """Tars if there are any: what lies next to them as Parquet, as img2dataset leaves it, describes them."""
    suffixes = {_suffix(file.path) for file in files}
    suffix = next((kind for kind in _KINDS if kind in suffixes), None)
    if suffix is None:
        example = files[0].url
        raise InputError(f"images: expected {' or '.join(_KINDS)} without compression, or images, got {example}")
    kind: Shards
    if suffix == tar_shards.SUFFIX:
        if odd := {"image", "name"} & where.options.keys():
            raise InputError(f"images: {place}: the option {min(odd)} is for Parquet, and these are tars")
        kind = tar_shards.TarShards()
    else:
        kind = parquet_shards.ParquetShards(where.options)
    if where.options.get("names", "shard") != "shard":
        raise InputError(f"images: {place}: expected names=shard, got names={where.options['names']}")
    chosen = [file for file in files if _suffix(file.path) == suffix]
    return ShardedImages(where.location, chosen, kind, where.options, limit=limit)


def _has_images(folder: Path) -> bool:
    """Stops at the first one, so it is quick where there are millions."""
    return any(_suffix(file) in SUFFIXES for file in FolderWalk(folder))


def _suffix(path: str) -> str:
    return PurePosixPath(path).suffix.lower()


def _unknown(name: str, images: Images) -> InputError:
    example = next(images.names(0, 1))
    return InputError(f"{images.place}: holds no image {name}; its {len(images)} images are called as {example}")
