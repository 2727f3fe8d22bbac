"""The SHA-256 of a file that is not Parquet, in a file next to it that `sha256sum --check` reads too."""

import hashlib
import posixpath
from collections.abc import Sequence
from pathlib import Path

import fsspec

from vigor_jax.data.records.store import write_atomically
from vigor_jax.errors import InputError

SUFFIX = ".sha256"
_BLOCK = 1 << 20


def write_checksum(path: str | Path) -> None:
    """Writes `PATH.sha256`; local or remote."""
    line = f"{_sha256(path)}  {posixpath.basename(str(path))}\n"
    with write_atomically(f"{path}{SUFFIX}") as file:
        file.write(line.encode())


def check_checksum(path: str | Path, *, stage: str) -> None:
    """Compares a file with its checksum, if it has one (earlier versions wrote none).

    Args:
      path: of the file.
      stage: that writes it.

    Raises:
      InputError: it has changed.
    """
    system, inner = fsspec.core.url_to_fs(f"{path}{SUFFIX}")
    if not system.exists(inner):
        return
    expected = system.cat_file(inner).split(maxsplit=1)[:1]
    if expected != [(found := _sha256(path)).encode()]:
        was = expected[0].decode(errors="replace")[:12] if expected else "nothing"
        raise InputError(
            f"{path}: expected SHA-256 {was}..., as in {path}{SUFFIX}, got {found[:12]}...: it has changed; run "
            f"the stage {stage}, which writes it again (a file of your own goes into sft.data)"
        )


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes; of a folder, of the names and the digests of the files in it, hidden ones aside."""
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
        return hashlib.sha256("".join(f"{file.name} {file_digest(file)}\n" for file in files).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_digest(paths: Sequence[Path]) -> str:
    """`file_digest` of one, or SHA-256 of those of several in their order."""
    digests = [file_digest(path) for path in paths]
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _sha256(path: str | Path) -> str:
    digest = hashlib.sha256()
    with fsspec.open(str(path), "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
