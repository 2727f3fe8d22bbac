"""Preference data of every form as one record: `scan_preferences`. docs/preferences.md shows the forms."""

import dataclasses
import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from vigor_jax.data.images.store import Images, open_images
from vigor_jax.data.preferences.check import checked, image_path
from vigor_jax.data.preferences.embedded import EmbeddedImage
from vigor_jax.data.preferences.forms import FORMS, Form, find_form
from vigor_jax.data.preferences.parsed import Skipped, name_of, short
from vigor_jax.data.preferences.source import rows_of
from vigor_jax.data.records.bad_rows import BadRow, bad_row
from vigor_jax.data.records.json_rows import JsonRow
from vigor_jax.errors import InputError
from vigor_jax.records import ImageFile, Preference

# Rows that are looked at for the form, and keys that may name an image.
_FIRST_ROWS = 100
_IMAGE_KEYS = ("image", "images", "img_path", "image_path")


class PreferenceRow(NamedTuple):
    """A row that can be used.

    Attributes:
      preference: what it says.
      image: its image, in the image folder or in the file itself; None if the row is text alone. Two images in files
        themselves may have one name, and differ in `str`.
      number: its line in the file, from 1, or index, from 0.
      label: the same in words, such as "line 7".
    """

    preference: Preference
    image: ImageFile | None
    number: int
    label: str

    @property
    def title(self) -> str:
        """What messages call it."""
        name = self.preference.name
        return self.label if not name else f"{self.label} (id {name!r})"

    def digest(self) -> bytes:
        """8 bytes that stand for all that is learned from it, but the image's pixels."""
        content = repr(dataclasses.astuple(dataclasses.replace(self.preference, name="")))
        return hashlib.blake2b(content.encode(), digest_size=8).digest()

    def key(self) -> bytes:
        """8 bytes that tell it from the other rows of its file, also if images in the file itself share a name."""
        if not isinstance(self.image, EmbeddedImage):
            return self.digest()
        place = f"{self.image.rows.path.name} {self.image.column} {self.image.row}"
        return hashlib.blake2b(self.digest() + place.encode(), digest_size=8).digest()


class Scan(NamedTuple):
    """What a file holds.

    Attributes:
      rows: those that can be used, in the order of the file.
      bad: those that are wrong, in the order of the file.
      total: rows in all.
      skipped: what was left out and is not wrong, by its name: "ties", "responses whose rating is no number", ...
      form: of the file, one of `FORMS`.
    """

    rows: list[PreferenceRow]
    bad: list[BadRow]
    total: int
    skipped: dict[str, int]
    form: str


class _Found(NamedTuple):
    """A row before its image is looked for: `names` are those that it may have, the first that exists is meant."""

    row: PreferenceRow
    names: tuple[str, ...]


def scan_preferences(path: Path, images: str | Path | None, form: str | None = None) -> Scan:
    """Reads preferences, and tells the rows that cannot be used from those that can.

    No image is read: of images in the file itself, `PreferenceRow.image` reads the bytes when it is asked for them.
    Keys that a form does not know are ignored.

    Args:
      path: JSON, JSON lines or Parquet; or a folder of such files, of which Parquet is preferred.
      images: where the images are, a folder or any other place of `open_images`; None if they are in the file itself,
        or no row has one. An image in the file itself is taken first.
      form: what the file is, one of `FORMS`; by default its rows say it.

    Raises:
      InputError: there are no rows, the file is of no form (says which it resembles, and what is missing), no image
        folder is given where one is needed, or it has none of several images.
    """
    path = Path(path)
    place = None if images is None else open_images(images)
    name = _form(path, form)
    found: list[_Found] = []
    bad: list[BadRow] = []
    skipped: Counter[str] = Counter()
    total = 0
    for row in rows_of(path):
        total += 1
        record: Any = None
        try:
            record = row.record()
            found.append(_read(record, row, FORMS[name], place, skipped))
        except Skipped as skip:
            skipped[str(skip)] += 1
        except InputError as error:
            bad.append(bad_row(path, row.number, row.label, _id(record), str(error)))
    for each in found:
        if each.names and place is None:
            preference = each.row.preference
            reason = f"has an image ({each.names[0]}) but no image folder is given; set the image folder"
            raise InputError(bad_row(path, each.row.number, each.row.label, preference.name or None, reason).message)
    rows, absent = _with_images(path, found, place)
    return Scan(rows, sorted([*bad, *absent], key=lambda row: row.number), total, dict(skipped), name)


def _form(path: Path, wanted: str | None) -> str:
    first = []
    rows = 0
    for row in itertools.islice(rows_of(path), _FIRST_ROWS):
        rows += 1
        try:
            record = row.record()
        except InputError as error:
            unreadable = f"{row.label}: {error}"
            continue
        if isinstance(record, dict):
            first.append((row.label, record))
        else:
            unreadable = f"{row.label}: expected an object, got {short(record)}"
    if not rows:
        raise InputError(f"{path}: no preferences; expected a JSON list, one JSON object a line, or rows of Parquet")
    if not first:
        raise InputError(f"{path}: none of its first {rows} rows is an object; {unreadable}")
    try:
        return find_form(first, wanted)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _id(record: Any) -> str | None:
    return name_of(record, "id", "name", "idx") or None if isinstance(record, Mapping) else None


def _read(record: Any, row: JsonRow, form: Form, place: Images | None, skipped: Counter[str]) -> _Found:
    if not isinstance(record, Mapping):
        raise InputError(f"expected an object, got {short(record)}")
    parsed = form.parse(record)
    given = _image(record)
    names: tuple[str, ...] = ()
    image = None
    if isinstance(given, EmbeddedImage):
        image = dataclasses.replace(given, name=_embedded_name(given, record))
    elif given or parsed.images:
        names = (given,) if given else parsed.images
        names = tuple(image_path(name, place) for name in names) if place is not None else names
    name = image.name if image else names[0] if names else ""
    preference = checked(parsed, name, record, needs_image=form.needs_image, needs_question=form.needs_question)
    skipped.update(parsed.left_out)
    return _Found(PreferenceRow(preference, image, row.number, row.label), names)


def _image(record: Mapping[str, Any]) -> EmbeddedImage | str | None:
    """The image of a row, or its name; None if it has none. The first key that says anything counts."""
    for key in _IMAGE_KEYS:
        value = record.get(key)
        if isinstance(value, list | tuple):
            if len(value) > 1:
                raise InputError(f"expected one image under {key!r}, got {len(value)}")
            value = value[0] if value else None
        if isinstance(value, EmbeddedImage):
            return value
        name = value.get("path") if isinstance(value, Mapping) else value
        if isinstance(name, str) and name:
            return name
        if name not in (None, ""):
            raise InputError(f"expected the name of an image under {key!r}, got {short(name)}")
    return None


def _embedded_name(image: EmbeddedImage, record: Mapping[str, Any]) -> str:
    """What an image in the file is called: its own name, one that the row has for it, or its file's and row's."""
    named = (record.get(key) for key in ("image_path", "img_path"))
    for name in (image.name, *named):
        if isinstance(name, str) and name:
            path = PurePosixPath(name)
            return path.name if path.is_absolute() or ".." in path.parts else path.as_posix()
    return f"{image.rows.path.stem}/{image.row}"


def _with_images(path: Path, found: Sequence[_Found], place: Images | None) -> tuple[list[PreferenceRow], list[BadRow]]:
    """The rows whose images exist, and the others."""
    wanted = list(dict.fromkeys(itertools.chain.from_iterable(each.names for each in found)))
    gone = set(place.missing(wanted)) if place is not None and wanted else set()
    rows: list[PreferenceRow] = []
    absent: list[PreferenceRow] = []
    for row, names in found:
        if not names or place is None:
            rows.append(row)
            continue
        name = next((name for name in names if name not in gone), None)
        if name is None:
            absent.append(row)
        else:
            preference = dataclasses.replace(row.preference, image=name)
            rows.append(row._replace(preference=preference, image=place.file(name)))
    if not absent or place is None:
        return rows, []
    named = sum(bool(each.names) for each in found)
    if len(absent) == named > 1:
        raise InputError(f"{path}: none of its {named} images exists; check the image folder {place.place}")
    return rows, list(_missing(path, absent, named, place))


def _missing(path: Path, absent: Sequence[PreferenceRow], named: int, place: Images) -> Iterator[BadRow]:
    for index, row in enumerate(absent):
        reason = f"image {place.file(row.preference.image)} does not exist"
        if not index:
            reason += f"; {len(absent)} of {named} images are missing; check the image folder {place.place}"
        yield bad_row(path, row.number, row.label, row.preference.name or None, reason)
