"""Images that are in a file of preferences, as files in a folder: for forms that name images."""

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from vigor_jax.data.preferences.embedded import EmbeddedImage
from vigor_jax.data.preferences.write import Located
from vigor_jax.disk import naming


def unpack_images(located: Iterable[Located], folder: Path) -> Iterator[Located]:
    """Writes images that are in the file itself into a folder, and says what they are called there.

    An image keeps its name; another image of the same name gets a few digits of its SHA-256 behind it. Images that are
    in the folder already are not written again, so the same command may be given twice.

    Raises:
      InputError: an image cannot be read.
      OSError: it cannot be written.
    """
    for preference, image in located:
        if isinstance(image, EmbeddedImage):
            name = _write(image.read_bytes(), folder, preference.image)
            yield dataclasses.replace(preference, image=name), folder / name
        else:
            yield preference, image


def _write(content: bytes, folder: Path, name: str) -> str:
    path = PurePosixPath(name)
    digest = hashlib.sha256(content).hexdigest()[:8]
    for candidate in (name, path.with_name(f"{path.stem}-{digest}{path.suffix}").as_posix()):
        file = folder / candidate
        if file.is_file() and file.read_bytes() != content:
            continue
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            hidden = file.with_name(f".{file.name}.tmp")
            with naming(file):
                hidden.write_bytes(content)
            os.replace(hidden, file)
        return candidate
    raise AssertionError(f"two images have the digest {digest}")
