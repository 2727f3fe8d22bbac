"""Files of referring expressions, in the layouts that people have.

| file | layout |
| --- | --- |
| `refs(unc).p`, `refs(google).p`, `refs(umd).p` with `instances.json` next to it | that of the datasets' authors |
| JSON lines or a list: `img_path`, `expression`, `bbox`, `height`, `width` | Shikra's |
| the same: `image`, `sent`, `bbox`, `height`, `width` | Qwen-VL's and InternVL's |
| the same: `question_id`, `image`, `text`, `bbox`, `height`, `width` | LLaVA's questions: `text` is all that is asked |

A `bbox` is left, top, right, bottom in pixels in the last three, and left, top, width, height in `instances.json`.
"""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from vigor_jax.data.text.box_text import Box
from vigor_jax.errors import InputError, some
from vigor_jax.evaluation.benchmarks.referring import Expression
from vigor_jax.evaluation.json_records import read_json, read_records, short

PICKLES = (".p", ".pkl", ".pickle")
_IMAGES = ("img_path", "image", "image_path", "file_name")
_WORDS = ("expression", "sent", "text")
_REFS = {"ann_id": int, "image_id": int, "split": str, "sentences": list}


def read_expressions(
    paths: Sequence[Path], splits: Sequence[str] = (), instances: Path | None = None
) -> dict[str, list[Expression]]:
    """Reads expressions; the parts of a pickle are called by its folder and split, others by their file.

    Args:
        paths: Files; what is in them shows in their names and content.
        splits: Of pickles, and of lines that name one: only these. Default: all but "train".
        instances: Where the boxes of pickles are. Default: `instances.json` next to each.

    Returns:
        Part → its expressions, in their order.

    Raises:
        InputError: A file cannot be read or is something else, or nothing is left to ask about.
    """
    found: dict[str, list[Expression]] = {}
    for path in paths:
        read = _read_refs(path, instances) if path.suffix in PICKLES else _read_lines(path)
        own: dict[str, list[Expression]] = {}
        for split, part, expression in read:
            if not split or (split in splits if splits else split != "train"):
                own.setdefault(part, []).append(expression)
        if not own:
            there = some(dict.fromkeys(split for split, *_ in read)) or "none"
            raise InputError(f"{path}: expected expressions of {some(splits) or 'a split but train'}, got {there}")
        if again := own.keys() & found.keys():
            raise InputError(f"{path}: another file has the part {some(sorted(again))}, too; rename the file or folder")
        found |= own
    return found


def _read_refs(path: Path, instances: Path | None) -> list[tuple[str, str, Expression]]:
    refs = read_pickle(path)
    if not isinstance(refs, list):
        raise InputError(f"{path}: expected a list of refs, got a {type(refs).__name__}")
    place = instances or path.with_name("instances.json")
    images, boxes = _read_instances(place)
    folder = path.resolve().parent.name
    found: list[tuple[str, str, Expression]] = []
    for number, ref in enumerate(refs):
        where = f"{path}, ref {number}"
        if not isinstance(ref, dict) or not all(isinstance(ref.get(key), kind) for key, kind in _REFS.items()):
            raise InputError(f"{where}: expected {', '.join(_REFS)}, got {short(ref)}")
        if ref["image_id"] not in images or ref["ann_id"] not in boxes:
            raise InputError(f"{where}: {place} has no image {ref['image_id']} or no annotation {ref['ann_id']}")
        image, size = images[ref["image_id"]]
        for sentence in ref["sentences"]:
            words = sentence.get("sent") if isinstance(sentence, dict) else None
            if not isinstance(words, str):
                raise InputError(f"{where}: expected a sentence with its 'sent', got {short(sentence)}")
            called = str(sentence.get("sent_id", len(found)))
            expression = Expression(called, image, words.strip(), False, boxes[ref["ann_id"]], size)
            found.append((ref["split"], f"{folder}_{ref['split']}", expression))
    return found


_Images = dict[int, tuple[str, tuple[int, int]]]


def _read_instances(path: Path) -> tuple[_Images, dict[int, Box]]:
    """Image id → file and size; annotation id → box."""
    content = read_json(path)
    try:
        images = {
            image["id"]: (image["file_name"], _size(image["width"], image["height"])) for image in content["images"]
        }
        boxes = {}
        for annotation in content["annotations"]:
            left, top, width, height = map(float, annotation["bbox"])
            boxes[annotation["id"]] = (left, top, left + width, top + height)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: expected COCO's instances: images with a size, and annotations with a bbox ({error!r})"
        ) from error
    return images, boxes


def _read_lines(path: Path) -> list[tuple[str, str, Expression]]:
    found = []
    for number, (place, record) in enumerate(read_records(path, {"bbox": list})):
        image, words = (
            next((key for key in keys if isinstance(record.get(key), str)), None) for keys in (_IMAGES, _WORDS)
        )
        if image is None or words is None:
            raise InputError(
                f"{place}: expected an image under one of {', '.join(_IMAGES)} and words under one of "
                f"{', '.join(_WORDS)}, got {short(sorted(record))}"
            )
        try:
            left, top, right, bottom = map(float, record["bbox"])
            size = _size(record.get("width"), record.get("height"))
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{place}: expected bbox: left, top, right, bottom in pixels, and width and height of the image in "
                f"pixels ({error})"
            ) from error
        if not (left <= right and top <= bottom):
            raise InputError(f"{place}: expected bbox: left, top, right, bottom in pixels, got {record['bbox']}")
        split = record["split"] if isinstance(record.get("split"), str) else ""
        part = path.stem if not split or path.stem.endswith(split) else f"{path.stem}_{split}"
        called = str(record.get("question_id", record.get("id", number)))
        box = (left, top, right, bottom)
        expression = Expression(called, record[image], record[words].strip(), words == "text", box, size)
        found.append((split, part, expression))
    return found


def _size(width: Any, height: Any) -> tuple[int, int]:
    if not all(type(side) is int and side > 0 for side in (width, height)):
        raise ValueError(f"width {width!r}, height {height!r}")
    return width, height


class _PlainUnpickler(pickle.Unpickler):
    """Knows numbers, texts and the containers of Python; a pickle that names anything else could run code."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise InputError(f"it refers to {f'{module}.{name}'!r}, which no list of refs needs and which could run code")


def read_pickle(path: Path) -> Any:
    """What a pickle of numbers, texts, lists and dicts holds; Python 2 wrote those of the datasets.

    Raises:
        InputError: The file cannot be read, is no pickle, or holds anything else.
    """
    try:
        with path.open("rb") as file:
            return _PlainUnpickler(file, encoding="utf-8", errors="replace").load()
    except OSError as error:
        raise InputError(f"{path}: expected refs, cannot read the file ({error.strerror}); check the path") from error
    except InputError as error:
        raise InputError(f"{path}: {error}; give the file of the dataset's authors, or JSON lines") from None
    except Exception as error:  # damaged pickles raise nearly anything
        reason = type(error).__name__
        raise InputError(f"{path}: expected a pickle of refs, cannot read it ({reason}); download it again") from error
