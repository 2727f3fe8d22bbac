"""The seal of a part: which one it is, what it was made of, and a digest of every byte, all in the Parquet footer.

Readers such as pandas and duckdb see one more pair of key and value. It is JSON with fixed widths:
`{"part", "made_with", "made_of", "data", "footer"}`. `data` is the SHA-256 of the bytes before the footer. `footer` is
that of the footer (with zeros in its own place) and of the eight bytes that end the file; since the footer holds
`data`, it covers the whole file and names it. Parquet's own page checksums leave out the footer and the page headers.
"""

import dataclasses
import hashlib
import io
import json
import re
from typing import Any, BinaryIO, Self

KEY = "vigor_jax.seal"

_ZEROS = "0" * 64
_DIGESTS = re.compile(rb'"data": "([0-9a-f]{64})", "footer": "([0-9a-f]{64})"\}')
_MAGIC = b"PAR1"
_TAIL = 8  # the length of the footer, and the magic bytes
_BLOCK = 1 << 20


class DamagedPartError(ValueError):
    """The bytes of a part are not those that were written; the message says how that shows."""


@dataclasses.dataclass(frozen=True)
class Seal:
    """What a part says of itself.

    Attributes:
      part: name of the file that it was written as.
      made_with: names the settings that it was made with; "" where the writer gave none.
      made_of: names the parts that it was made of, by their digests; "" where the writer gave none.
      digest: SHA-256 in hexadecimal; names the bytes of the whole file.
    """

    part: str
    made_with: str = ""
    made_of: str = ""
    digest: str = ""


class SealedFile(io.RawIOBase):
    """Passes a Parquet file on while it is written, and puts the seal into its footer.

    `seal` gives what belongs into the file's metadata, `finish` writes the rest once the Parquet writer is closed.
    """

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file
        self._data = hashlib.sha256()
        self._held: bytearray | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if self._held is None:
            self._data.update(data)
            self._file.write(data)
        else:
            self._held += data
        return len(data)

    def seal(self, seal: Seal) -> dict[str, str]:
        """Holds back from here on what is written; the footer is in it."""
        self._held = bytearray()
        own = {"part": seal.part, "made_with": seal.made_with, "made_of": seal.made_of}
        return {KEY: json.dumps(own | {"data": _ZEROS, "footer": _ZEROS})}

    def finish(self) -> None:
        """Writes what was held back, with the digests in it."""
        assert self._held is not None
        length = int.from_bytes(self._held[-_TAIL:-4], "little") + _TAIL
        more, footer = bytes(self._held[:-length]), bytes(self._held[-length:])
        self._data.update(more)
        (found,) = _DIGESTS.finditer(footer)
        for group, digest in (1, self._data), (2, None):
            start, end = found.span(group)
            value = (digest or hashlib.sha256(footer)).hexdigest().encode()
            footer = footer[:start] + value + footer[end:]
        self._file.write(more + footer)


@dataclasses.dataclass(frozen=True)
class Footer:
    """The end of a Parquet file: the footer and the eight bytes after it.

    Attributes:
      content: the bytes.
      start: where they begin in the file.
    """

    content: bytes
    start: int

    @classmethod
    def read(cls, file: BinaryIO) -> Self:
        """Of a file that can be sought in.

        Raises:
          DamagedPartError: the file does not end as a Parquet file does.
        """
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - _TAIL))
        tail = file.read(_TAIL)
        length = int.from_bytes(tail[:4], "little") + _TAIL
        if tail[4:] != _MAGIC or length + len(_MAGIC) > size:
            raise DamagedPartError("it is not a Parquet file: its end is missing")
        file.seek(size - length)
        return cls(file.read(length), size - length)

    def seal(self) -> Seal | None:
        """The seal, if the footer is as it was written; None in parts of versions that wrote no seals.

        Raises:
          DamagedPartError: it is not.
        """
        found = list(_DIGESTS.finditer(self.content))
        if not found and KEY.encode() not in self.content:
            return None
        if len(found) != 1 or KEY.encode() not in self.content:
            raise DamagedPartError("its seal cannot be read")
        start, end = found[0].span(2)
        cleared = self.content[:start] + _ZEROS.encode() + self.content[end:]
        digest = found[0][2].decode()
        if hashlib.sha256(cleared).hexdigest() != digest:
            raise DamagedPartError("its footer has another SHA-256 than when it was written")
        begin = self.content.rindex(b'{"part": ', 0, start)
        own = json.loads(self.content[begin:end] + b'"}')
        return Seal(own["part"], own["made_with"], own["made_of"], digest)

    def check_data(self, file: BinaryIO) -> None:
        """Compares the bytes before the footer with the seal.

        Raises:
          DamagedPartError: they have changed.
        """
        found = _DIGESTS.search(self.content)
        assert found
        file.seek(0)
        digest, left = hashlib.sha256(), self.start
        while left and (block := file.read(min(_BLOCK, left))):
            digest.update(block)
            left -= len(block)
        if digest.hexdigest() != found[1].decode():
            raise DamagedPartError("its bytes have another SHA-256 than when they were written")
