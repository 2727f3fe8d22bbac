"""Images that a program hands over: paths, bytes, PIL's and NumPy's, as files that everything else can read."""

import dataclasses
import hashlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from PIL import Image

from detector_bridge.images import upright_rgb
from vigor_jax.errors import InputError
from vigor_jax.records import ImageFile

ImageLike: TypeAlias = str | os.PathLike[str] | bytes | bytearray | Image.Image | np.ndarray

KINDS = "a path, bytes of an image file, a PIL image or a uint8 array [height, width, 3]"


@dataclasses.dataclass(frozen=True)
class MemoryImage:
    """An image file in memory, named by what is in it.

    Attributes:
      content: the file's bytes.
      name: the beginning of their SHA-256.
    """

    content: bytes = dataclasses.field(repr=False)
    name: str

    @classmethod
    def of(cls, content: bytes) -> "MemoryImage":
        return cls(content, f"sha256:{hashlib.sha256(content).hexdigest()[:16]}")

    def read_bytes(self) -> bytes:
        return self.content

    def __str__(self) -> str:
        return self.name


class GivenImage(NamedTuple):
    """An image that was handed over.

    Attributes:
      file: which reads it.
      name: its path as it was given, or `sha256:...`.
    """

    file: ImageFile
    name: str

    def is_called(self, name: str) -> bool:
        """Whether a name is one of this image: `./0.jpg` and `0.jpg` are the same."""
        return bool(name) and Path(name) == Path(self.name)


def image_files(images: ImageLike | Sequence[ImageLike]) -> list[GivenImage]:
    """Images in their order; files are not read yet, but all of them are there.

    Raises:
      InputError: there are none, one is of no kind that is taken, or there is no such file.
    """
    if isinstance(images, str | os.PathLike | bytes | bytearray | Image.Image | np.ndarray):
        return [_file(images, "images")]
    if not isinstance(images, Sequence):
        raise InputError(f"images: expected {KINDS}, or a list of these, got {type(images).__name__}")
    if not images:
        raise InputError("images: expected at least one, got an empty list")
    return [_file(image, f"images[{number}]") for number, image in enumerate(images)]


def _file(image: Any, where: str) -> GivenImage:
    if isinstance(image, str | os.PathLike):
        return GivenImage(_path(image, where), os.fspath(image))
    if isinstance(image, bytes | bytearray):
        return _in_memory(bytes(image))
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise InputError(
                f"{where}: expected a uint8 array [height, width, 3], got {image.dtype} {list(image.shape)}"
                + ("; give a list of images" if image.ndim == 4 else "")
            )
        image = Image.fromarray(np.ascontiguousarray(image))
    if not isinstance(image, Image.Image):
        raise InputError(f"{where}: expected {KINDS}, got {type(image).__name__}")
    if not all(image.size):
        raise InputError(f"{where}: the image has {image.width} x {image.height} pixels; expected at least one")
    buffer = io.BytesIO()
    try:  # as the same picture is when it is read from its file; PNG loses nothing
        upright_rgb(image).save(buffer, "png", compress_level=1)
    except Exception as error:  # closed, cut off, or damaged: whatever the format's code happens to raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{where}: the PIL image cannot be read ({reason}); open it again, or give its path") from None
    return _in_memory(buffer.getvalue())


def _in_memory(content: bytes) -> GivenImage:
    file = MemoryImage.of(content)
    return GivenImage(file, file.name)


def _path(image: Any, where: str) -> Path:
    path = Path(image)
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
    except (OSError, ValueError) as error:  # a name that is too long, or has a NUL
        raise InputError(f"{where}: no such image, {str(image)[:80]!r} ({error})"[:300]) from None
    if is_folder:
        raise InputError(f"{where}: {path} is a folder; list its files")
    if not is_file:
        raise InputError(f"{where}: {path}: no such image; check the path")
    return path
