"""Opens a part after comparing it with its seal; what goes wrong is one line with the part and its stage."""

import contextlib
import functools
import io
import logging
import posixpath
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from vigor_jax.data.records import seal
from vigor_jax.data.records.seal import Seal
from vigor_jax.errors import InputError

logger = logging.getLogger(__name__)

_STAGES = {"candidates": "sample", "verdicts": "score", "selections": "select", "targets": "select"}
# What pyarrow raises on bytes that are no Parquet file (some of it by way of Python's own exceptions).
_UNREADABLE = (pa.ArrowException, OSError, ValueError, LookupError, ArithmeticError)


@contextlib.contextmanager
def open_part(folder: str | Path, name: str, *, whole: bool) -> Iterator[tuple[pq.ParquetFile, Seal | None]]:
    """A part and its seal, after comparing its footer or the whole of it with the seal.

    Args:
      folder: local or remote.
      name: of the file.
      whole: whether all bytes are compared, or those of the footer only.

    Yields:
      The file, and its seal; None in place of that for the part of a version that wrote none.

    Raises:
      InputError: the part is missing or damaged, or was written under another name.
    """
    system, path = fsspec.core.url_to_fs(str(folder))
    is_local = "file" in ((system.protocol,) if isinstance(system.protocol, str) else system.protocol)
    with contextlib.ExitStack() as opened:
        with refusing_damage(folder, name):
            if is_local and Path(path, name).is_fifo():  # opening it would wait for ever
                raise seal.DamagedPartError("it is a named pipe")
            source = opened.enter_context(system.open(posixpath.join(path, name), "rb"))
            if whole and not is_local:
                source = io.BytesIO(source.read())  # which would come twice over the network otherwise
            footer = seal.Footer.read(source)
            found = footer.seal()
            if found is None:
                _warn_without_seal(str(folder))
            elif found.part != name:
                raise seal.DamagedPartError(f"it was written as {found.part}")
            elif whole:
                footer.check_data(source)
            source.seek(0)
            file = opened.enter_context(pq.ParquetFile(source, page_checksum_verification=True))
        yield file, found


@contextlib.contextmanager
def refusing_damage(folder: str | Path, name: str) -> Iterator[None]:
    """A context in which a part is read: what goes wrong becomes one line that names the part and its stage.

    Raises:
      InputError: the part is missing or damaged.
    """
    path = posixpath.join(str(folder), name)
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such part; run the stage {_stage(folder)}") from None
    except seal.DamagedPartError as error:
        raise InputError(f"{path}: the part is damaged: {error}; {make_again(folder)}") from None
    except _UNREADABLE as error:
        if isinstance(error, OSError) and error.errno:
            raise InputError(f"{path}: the part cannot be read ({error.strerror})") from None
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: the part is damaged: {reason}; {make_again(folder)}") from None


def _stage(folder: str | Path) -> str:
    """The stage that writes a folder, by its name."""
    above, name = str(folder).rstrip("/").split("/")[-2:] if "/" in str(folder) else ("", str(folder))
    return _STAGES.get(name) or _STAGES.get(above) or "that writes it"


def make_again(folder: str | Path) -> str:
    """What to do about a part that cannot be used."""
    return f"remove it and run the stage {_stage(folder)} again, which makes what is missing and nothing else"


@functools.cache
def _warn_without_seal(folder: str) -> None:
    logger.warning("%s: parts of an earlier version, without checksums: damage may stay unnoticed in them", folder)
