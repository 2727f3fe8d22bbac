"""Reads a file of judgments in a public layout."""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from vigor_jax.data.images.store import Images, open_images
from vigor_jax.data.records.bad_rows import BadRow, bad_row
from vigor_jax.errors import InputError, nearest, some
from vigor_jax.feedback.public import mapped
from vigor_jax.feedback.public.layouts import LAYOUTS
from vigor_jax.feedback.public.parsed import (
    MEANINGS,
    Layout,
    LeftOut,
    Parsed,
    Row,
    annotate,
    check_meanings,
    short,
)
from vigor_jax.feedback.public.rows import any_rows
from vigor_jax.records import Annotation, ErrorType


@dataclasses.dataclass
class Read:
    """What a file holds.

    Attributes:
      layout: its name.
      annotations: in the order of the file, no two of the same description of an image.
      bad: rows that are wrong.
      total: rows of the file.
      left_out: rows that cannot become annotations, by the reason.
      counts: what the source's words became, "INACCURATE -> object", and how often.
    """

    layout: str
    annotations: list[Annotation] = dataclasses.field(default_factory=list)
    bad: list[BadRow] = dataclasses.field(default_factory=list)
    total: int = 0
    left_out: Counter[str] = dataclasses.field(default_factory=Counter)
    counts: Counter[str] = dataclasses.field(default_factory=Counter)


def read_public(
    path: Path,
    images: str | None = None,
    layout: str | None = None,
    paths: Mapping[str, str] = MappingProxyType({}),
    kinds: Mapping[str, str] = MappingProxyType({}),
    unnamed: ErrorType = "object",
) -> Read:
    """Reads judgments: JSON, JSON lines or Parquet, or a folder of these.

    Args:
      path: of the file.
      images: where the images are; None to believe the names.
      layout: its name; None to tell it by the keys.
      paths: of `--map`, for a layout that is none of ours.
      kinds: meanings of the source's words, over those that the layout has.
      unnamed: what an error is called of which the source does not say the kind.

    Raises:
      InputError: the file cannot be read, or its layout is unknown.
    """
    check_meanings(kinds)
    place = None if images is None else open_images(images)
    found, chosen, name = Read(""), None, ""
    seen: set[tuple[str, str]] = set()
    for row in any_rows(path):
        found.total += 1
        try:
            record = row.record()
            if not isinstance(record, Mapping):
                raise InputError(f"expected an object, got {short(record)}")
            if chosen is None:
                name, chosen = _mapped(paths) if paths else _layout(record, layout, f"{path}, {row.label}")
            parsed = chosen.parse(record)
            image = _image(parsed, place)
            meanings = {**chosen.meanings, **{label.lower(): meaning for label, meaning in kinds.items()}}
            counts: Counter[str] = Counter()
            annotation = annotate(parsed, image, meanings, unnamed, counts)
            if (image, parsed.text) in seen:
                raise LeftOut("descriptions that are in the file a second time")
            found.counts += counts
            seen.add((image, parsed.text))
            found.annotations.append(annotation)
        except LeftOut as reason:
            found.left_out[str(reason)] += 1
        except _UnknownLayoutError:
            raise
        except InputError as error:
            found.bad.append(bad_row(path, row.number, row.label, None, str(error)))
    if not found.total:
        raise InputError(f"{path}: expected judgments, got none")
    found.layout = name
    return found


class _UnknownLayoutError(InputError):
    """No layout fits the first row."""


def _mapped(paths: Mapping[str, str]) -> tuple[str, Layout]:
    meanings = {meaning: meaning for meaning in MEANINGS}
    return "mapped", Layout(lambda row: mapped.parse(row, paths), (), meanings)


def _layout(record: Row, wanted: str | None, where: str) -> tuple[str, Layout]:
    if wanted is not None:
        if wanted not in LAYOUTS:
            hint = nearest(wanted, LAYOUTS, noun="layout", quoted=True)
            raise _UnknownLayoutError(f"unknown layout {wanted!r} of judgments; {hint}")
        return wanted, LAYOUTS[wanted]
    for name, layout in LAYOUTS.items():
        if any(all(record.get(key) is not None for key in keys) for keys in layout.keys):
            return name, layout
    raise _UnknownLayoutError(
        f"{where}: expected one of the layouts {', '.join(LAYOUTS)}, got an object of "
        f"{some(sorted(map(str, record))) or 'nothing'}; name its parts by --map FIELD=PATH, which python -m "
        "vigor_jax.annotate inspect helps with"
    )


def _image(parsed: Parsed, place: Images | None) -> str:
    if place is None:
        return parsed.images[0]
    missing = set(place.missing(parsed.images))
    for name in parsed.images:
        if name not in missing:
            return name
    raise InputError(f"image {short(parsed.images[0])} is not in {place.place}; check --images")
