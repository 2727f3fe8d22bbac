"""Preferences written as our own file, and in the forms of others; docs/preferences.md says what each can hold."""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from vigor_jax.data.preferences.parsed import CONTEXT_LENGTH, WHOLE, short
from vigor_jax.data.records.store import write_atomically, write_file
from vigor_jax.data.text.conversation import IMAGE_PLACEHOLDER
from vigor_jax.errors import InputError
from vigor_jax.records import ImageFile, Preference

# A preference and its image: None if it has none, or if the form names images and does not hold them.
Located: TypeAlias = tuple[Preference, ImageFile | None]

# An image of any row can be read by decoding this many, and as many are held when they are written.
ROWS_PER_GROUP = 64

_OURS = (CONTEXT_LENGTH, WHOLE)
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_PART = pa.struct([("type", pa.string()), ("text", pa.string())])
_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.list_(_PART))]))


class _Pair(NamedTuple):
    """Two answers, each with the context before it."""

    preference: Preference
    image: ImageFile | None
    chosen: str
    rejected: str

    @property
    def columns(self) -> dict[str, Any]:
        """What our own columns say of it."""
        return {CONTEXT_LENGTH: len(self.preference.context), WHOLE: self.preference.whole}


def write_preferences(path: str | Path, preferences: Iterable[Preference]) -> None:
    """Writes `preferences.parquet`: one row a preference, as `vigor_jax.records.Preference` has it.

    The file appears when it is complete; equal preferences give equal bytes (with one version of pyarrow).

    Args:
      path: local or remote.
      preferences: maybe none.

    Raises:
      InputError: one has a name or a number of ratings that nobody could read again.
    """
    write_file(path, map(_sound, preferences), Preference)


def to_trl(path: str | Path, located: Iterable[Located]) -> None:
    """Writes TRL's conversational preference type, one row a pair.

    Parquet holds the images, as `datasets` reads them; JSON lines (any other suffix) name them. A context is a part of
    both answers, as TRL can learn from it.

    Raises:
      InputError: an image that Parquet is to hold is not given, or cannot be read.
    """
    pairs = list(_pairs(located))
    extra = _extra(pairs)
    if PurePosixPath(str(path)).suffix == ".parquet":
        columns = {"images": pa.list_(_IMAGE), "prompt": _MESSAGES, "chosen": _MESSAGES, "rejected": _MESSAGES}
        _write_parquet(path, {**columns, "id": pa.string(), **extra}, pairs, lambda pair: _trl(pair, _held(pair)))
    else:
        rows = (_trl(pair, pair.preference.image) for pair in pairs)
        _write_lines(path, [{key: row[key] for key in row if key in extra or key not in _OURS} for row in rows])


def _trl(pair: _Pair, image: Any) -> dict[str, Any]:
    preference = pair.preference
    texts = [*preference.history, preference.prompt]
    if preference.image and not any(IMAGE_PLACEHOLDER in question for question in texts[::2]):
        texts[0] = f"{IMAGE_PLACEHOLDER}\n{texts[0]}"
    roles = itertools.cycle(("user", "assistant"))
    return {
        "images": [image] if preference.image else [],
        "prompt": [{"role": role, "content": _parts(text, role)} for role, text in zip(roles, texts, strict=False)],
        "chosen": [{"role": "assistant", "content": _parts(pair.chosen, "assistant")}],
        "rejected": [{"role": "assistant", "content": _parts(pair.rejected, "assistant")}],
        "id": preference.name,
        **pair.columns,
    }


def _parts(text: str, role: str) -> list[dict[str, str | None]]:
    """A message's parts: the image, which of all texts only a question may have, and text."""
    parts: list[dict[str, str | None]] = []
    if role == "user" and IMAGE_PLACEHOLDER in text:
        parts.append({"type": "image", "text": None})
        text = text.replace(IMAGE_PLACEHOLDER, "").strip()
    return [*parts, {"type": "text", "text": text}] if text or not parts else parts


def to_rlaif_v(path: str | Path, located: Iterable[Located]) -> None:
    """Writes RLAIF-V's Parquet with its images, as `datasets` reads it, one row a pair.

    A context is a part of both answers, as in TRL's form.

    Raises:
      InputError: a preference has a history or no image, or its image cannot be read.
    """
    pairs = list(_pairs(located))
    for pair in pairs:
        if pair.preference.history:
            raise _refused(pair, "rlaif_v has one question, and this one has a history; write trl")
        if not pair.preference.image:
            raise _refused(pair, "rlaif_v is about images, and this one has none; write trl")
    texts = ("question", "chosen", "rejected", "origin_dataset", "origin_split", "idx", "image_path")
    columns = {"ds_name": pa.string(), "image": _IMAGE, **dict.fromkeys(texts, pa.string()), **_extra(pairs)}
    _write_parquet(path, columns, pairs, _rlaif_v)


def _rlaif_v(pair: _Pair) -> dict[str, Any]:
    preference = pair.preference
    return {
        "ds_name": "vigor_jax",
        "image": _held(pair),
        "question": preference.prompt or IMAGE_PLACEHOLDER,
        "chosen": pair.chosen,
        "rejected": pair.rejected,
        "origin_dataset": "",
        "origin_split": "",
        "idx": preference.name,
        "image_path": preference.image,
        **pair.columns,
    }


def to_sentinel(path: str | Path, located: Iterable[Located]) -> None:
    """Writes what SENTINEL's data generation writes, JSON lines, one row a pair; images are named.

    White space between a context and what continues it becomes one space, as SENTINEL has it.

    Raises:
      InputError: a preference has a history, no image or no question; nothing but a space can part its context from
        what continues it, and there is none; or two responses differ in white space only.
    """
    _write_lines(path, [_sentinel(pair) for pair in _pairs(located)])


def _sentinel(pair: _Pair) -> dict[str, Any]:
    preference = pair.preference
    if preference.history:
        raise _refused(pair, "sentinel has one question, and this one has a history; write trl")
    if not preference.image or not preference.prompt:
        raise _refused(pair, "sentinel is a question about an image, and this one lacks one of them; write trl")
    context, start = preference.context, len(preference.context)
    responses = (pair.chosen[start:], pair.rejected[start:])
    if context:
        if not all(context[-1].isspace() or response[:1].isspace() for response in responses):
            raise _refused(pair, "sentinel has a space between the context and what continues it, and here is none")
        context, responses = context.rstrip(), (responses[0].lstrip(), responses[1].lstrip())
        if responses[0] == responses[1]:
            raise _refused(pair, "the responses differ in white space only, which sentinel does not keep")
    is_sentence = bool(context) or not preference.whole
    row: dict[str, Any] = {
        "image_id": PurePosixPath(preference.image).stem,
        "image_path": preference.image,
        "question": preference.prompt,
        "context": context if is_sentence else None,
        "y_win": responses[0],
        "y_lose": responses[1],
        "id": preference.name,
    }
    return row | ({WHOLE: True} if is_sentence and preference.whole else {})


WRITERS: dict[str, Callable[[str | Path, Iterable[Located]], None]] = {
    "trl": to_trl,
    "rlaif_v": to_rlaif_v,
    "sentinel": to_sentinel,
    "own": lambda path, located: write_preferences(path, (preference for preference, _ in located)),
}


def _pairs(located: Iterable[Located]) -> Iterator[_Pair]:
    for preference, image in located:
        for better, worse in _sound(preference).pairs():
            texts = (preference.context + preference.responses[index] for index in (better, worse))
            yield _Pair(preference, image, *texts)


def _sound(preference: Preference) -> Preference:
    if len(preference.responses) != len(preference.ratings) or len(preference.history) % 2:
        raise InputError(
            f"preference of image {short(preference.image)}: expected a rating for each response, and an answer for "
            f"each question of the history, got {len(preference.responses)} responses, {len(preference.ratings)} "
            f"ratings and a history of {len(preference.history)} texts"
        )
    return preference


def _refused(pair: _Pair, reason: str) -> InputError:
    preference = pair.preference
    name = f" (id {preference.name!r})" if preference.name else ""
    return InputError(f"preference of image {short(preference.image)}{name}: {reason}")


def _held(pair: _Pair) -> dict[str, Any] | None:
    preference = pair.preference
    if not preference.image:
        return None
    if pair.image is None:
        raise _refused(pair, "Parquet holds the images, and this one is not given; give the image folder")
    try:
        return {"bytes": pair.image.read_bytes(), "path": preference.image}
    except OSError as error:
        raise _refused(pair, f"{pair.image} cannot be read ({error.strerror}); check the image folder") from error


def _extra(pairs: Iterable[_Pair]) -> dict[str, pa.DataType]:
    """Our own columns, if a pair says anything in them."""
    if all(not pair.preference.context and pair.preference.whole for pair in pairs):
        return {}
    return {CONTEXT_LENGTH: pa.int64(), WHOLE: pa.bool_()}


def _write_parquet(
    path: str | Path,
    columns: dict[str, pa.DataType],
    pairs: Iterable[_Pair],
    row: Callable[[_Pair], dict[str, Any]],
) -> None:
    features = json.dumps({"info": {"features": {name: _feature(kind) for name, kind in columns.items()}}})
    schema = pa.schema(list(columns.items()), metadata={"huggingface": features})
    remaining = iter(pairs)
    with (
        write_atomically(path) as file,
        pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=False, write_page_checksum=True) as writer,
    ):
        while group := list(itertools.islice(remaining, ROWS_PER_GROUP)):
            rows = list(map(row, group))
            arrays = [pa.array([each[name] for each in rows], kind) for name, kind in columns.items()]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def _feature(kind: pa.DataType) -> Any:
    """A column's type as `datasets` calls it."""
    if kind == _IMAGE:
        return {"_type": "Image"}
    if pa.types.is_list(kind):
        return [_feature(kind.value_type)]
    if pa.types.is_struct(kind):
        return {field.name: _feature(field.type) for field in kind}
    return {"dtype": str(kind), "_type": "Value"}


def _write_lines(path: str | Path, rows: Iterable[dict[str, Any]]) -> None:
    with write_atomically(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
