"""Images in tar files, as WebDataset writes them: found by reading headers alone, read by their place in the file."""

import io
import tarfile
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from vigor_jax.data.images.places import File, Ranges
from vigor_jax.data.images.preprocessing import SUFFIXES
from vigor_jax.errors import InputError

SUFFIX = ".tar"
COLUMNS = (("offset", pa.int64()), ("size", pa.int64()), ("checksum", pa.int32()))

_BLOCK = tarfile.BLOCKSIZE
# A bucket answers slowly and then fast: headers that lie closer than this come with one request.
_READ_AHEAD = 4 << 20


class TarShards:
    """Reads tar files.

    An image is a member whose name ends as an image's file does, in whatever case; the rest of a WebDataset sample
    (`.json`, `.txt`) is passed over. It is called by its path in the shard, without `./` or `/` before it, so that
    `tar -C photos` gives the names that the folder `photos` has. WebDataset's key is that path up to the first dot of
    its last part: sample `a/17` with the extension `jpg` is the image `a/17.jpg`.
    """

    columns = COLUMNS

    def scan(self, file: File) -> tuple[list[str], list[list[Any]]]:
        """Names of the images of a shard, in its order, and a list of values for each column.

        Raises:
          InputError: it is no whole, uncompressed tar, or an image in it is a link.
        """
        names: list[str] = []
        offsets: list[int] = []
        sizes: list[int] = []
        checksums: list[int] = []
        try:
            with _open(file) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # else it keeps them all
                    name = member.name.removeprefix("./").lstrip("/")
                    if PurePosixPath(name).suffix.lower() not in SUFFIXES or member.isdir():
                        continue
                    if not member.isreg() or member.issparse():
                        raise InputError(
                            f"{file.url}: {name} is a link or no plain file; make the shard with tar --dereference "
                            "--hard-dereference"
                        )
                    names.append(_check(name, file))
                    offsets.append(member.offset_data)
                    sizes.append(member.size)
                    checksums.append(member.chksum)
                stream.seek(tar.offset)  # `tarfile` takes what is no header for the end
                is_whole = stream.read(_BLOCK) == bytes(_BLOCK)
        except (tarfile.TarError, OSError, EOFError) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"{file.url}: not a whole tar file without compression ({reason}); write it again"
            ) from error
        if not is_whole:
            where = names[-1] if names else "its first members"
            raise InputError(f"{file.url}: the tar is cut off or damaged behind {where}; write it again")
        return names, [offsets, sizes, checksums]

    def read(self, file: File, row: int, name: str, values: dict[str, int]) -> bytes:
        """An image's bytes; its header is compared with what it was when the shard was scanned.

        Raises:
          InputError: the shard has changed since, or cannot be read.
        """
        start, size = values["offset"], values["size"]
        try:
            found = file.system.cat_file(file.path, start=start - _BLOCK, end=start + size)
            header = tarfile.TarInfo.frombuf(found[:_BLOCK], tarfile.ENCODING, "surrogateescape")
        except (tarfile.TarError, OSError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(
                f"{file.url}: image {name} cannot be read ({reason}); if the shard was changed meanwhile, start again"
            ) from error
        if len(found) != _BLOCK + size or header.chksum != values["checksum"]:
            raise InputError(
                f"{file.url}: image {name} is not where it was; the shard was changed meanwhile, start again"
            )
        return found[_BLOCK:]


def _open(file: File) -> Any:
    if file.is_local:
        return open(file.path, "rb")
    return io.BufferedReader(Ranges(file), _READ_AHEAD)


def _check(name: str, file: File) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputError(f"{file.url}: the member name {name!a} is not UTF-8; rename it") from None
    return name
