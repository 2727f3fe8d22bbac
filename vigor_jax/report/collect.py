"""A run directory's figures as plain data; `reading.py` reads the records next to them."""

import dataclasses
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml  # type: ignore[import-untyped]

from vigor_jax.data.images.store import Folder, open_images
from vigor_jax.data.text.box_text import without_boxes
from vigor_jax.errors import InputError
from vigor_jax.evaluation.card.card import Value
from vigor_jax.json_fields import show
from vigor_jax.report.annotators import annotation_files, judgments_of
from vigor_jax.report.settings import describe_settings
from vigor_jax.report.word_scores import ObjectFiles

logger = logging.getLogger(__name__)

MODELS = ("base", "tuned")


@dataclasses.dataclass(frozen=True)
class Figures:
    """What a run says in its small files.

    Attributes:
      name: of the run, as the page calls it.
      directory: of the run.
      records: folder or URL of candidates, verdicts and selections.
      images: where the images that were described are, None if the run does not say or they are not there.
      evaluation: model ("base", "tuned") → its `metrics.json`; empty if there was no evaluation.
      caption_words: model → words of each caption that CHAIR was computed of.
      reward_model: the last line of `metrics/reward_eval.jsonl`, None if the run trained no reward model.
      summary: `summary.json`, None before the selection.
      settings: label → lines; see `describe_settings`.
      ppo: lines of `metrics/ppo.jsonl`; empty if the run has no PPO.
      ppo_images: where the images are that PPO asked about, as `images`.
      objects: where it is said what is in these, None if nothing says so.
      dpo: lines of `metrics/dpo.jsonl`; empty if the run did not learn from preferences.
      judgments: source of annotations → the file that says what each person said, where it is next to them.
    """

    name: str
    directory: Path
    records: str
    images: str | None
    evaluation: dict[str, dict[str, Any]]
    caption_words: dict[str, list[int]]
    reward_model: dict[str, Any] | None
    summary: dict[str, Any] | None
    settings: dict[str, list[str]]
    ppo: list[dict[str, Any]]
    ppo_images: str | None
    objects: ObjectFiles | None
    dpo: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    judgments: dict[str, Path] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Row:
    """A figure of several models.

    Attributes:
      label: what it is.
      unit: how it is written.
      better: which direction is good; "" where neither is.
      cells: by model.
      change: tuned - base, None unless both exist.
      verdict: "better" or "worse" where the two intervals do not overlap, else "".
    """

    label: str
    unit: Literal["percent", "number"]
    better: Literal["lower", "higher", ""]
    cells: dict[str, Value]
    change: float | None
    verdict: Literal["better", "worse", ""]


def expand(run_dirs: Sequence[Path]) -> dict[str, Path]:
    """Name → directory of each run: a run of several rounds is as many runs, and no two have one name.

    Raises:
      InputError: there is no such directory.
    """
    found: list[Path] = []
    for directory in run_dirs:
        if not directory.is_dir():
            raise InputError(f"report: {directory} is no directory; name a run's, such as runs/demo")
        rounds = sorted(directory.glob("round-[0-9]*"), key=lambda path: (len(path.name), path.name))
        found += rounds if rounds and not (directory / "candidates").exists() else [directory]
    distinct = dict.fromkeys(path.resolve() for path in found)
    depth = 1
    while len({_name(path, depth) for path in distinct}) < len(distinct):
        depth += 1
    # A round says little without its run.
    return {_name(path, max(depth, 2 if path.name.startswith("round-") else 1)): path for path in distinct}


def collect(
    name: str, directory: Path, images: str | Path | None = None, objects: ObjectFiles | None = None
) -> Figures:
    """Reads the small files of a run; those that are not there are left out.

    Args:
      name: of the run.
      directory: of the run.
      images: where its images are, instead of what its config says.
      objects: what is in the images of PPO, instead of what its config says; without its list of words.

    Raises:
      InputError: a file is damaged, or the images are not there although they were given.
    """
    if images is not None and not _is_there(str(images)):
        raise InputError(f"report: --images {images} is no directory, and no shards are there")
    config = _read_config(directory / "config.yaml")
    evaluation, words = {}, {}
    for model in MODELS:
        folder = directory / "evaluation" / model
        if (folder / "metrics.json").exists():
            evaluation[model] = _read_json(folder / "metrics.json")
        if captions := _read_lines(folder / "captions.jsonl"):
            texts = [caption.get("text") for caption in captions]
            if not all(isinstance(text, str) for text in texts):
                raise InputError(f"{folder / 'captions.jsonl'}: a line has no text; run the stage evaluate again")
            words[model] = [len(without_boxes(str(text)).split()) for text in texts]
    lines = _read_lines(directory / "metrics" / "reward_eval.jsonl")
    summary = directory / "summary.json"
    records = str(_get(config, "run", "records") or directory)
    place = str(images) if images else _find_images(_get(config, "sample", "images"), directory)
    own = None if images else _get(config, "ppo", "images")
    return Figures(
        name=name,
        directory=directory,
        records=records,
        images=place,
        evaluation=evaluation,
        caption_words=words,
        reward_model=lines[-1] if lines else None,
        summary=_read_json(summary) if summary.exists() else None,
        settings=describe_settings(config, directory),
        ppo=_read_lines(directory / "metrics" / "ppo.jsonl"),
        ppo_images=_find_images(own, directory) if own else place,
        objects=_find_objects(config, directory, objects),
        dpo=_read_lines(directory / "metrics" / "dpo.jsonl"),
        judgments=_find_judgments(config, directory),
    )


def headline(evaluation: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """The figures that people quote, as far as the models have them.

    Args:
      evaluation: model → its `metrics.json`.
    """
    chair, pope, mme = (
        {model: metrics[name] for model, metrics in evaluation.items() if name in metrics}
        for name in ("chair", "pope", "mme")
    )
    rows = [
        _row("CHAIR_i", "percent", "lower", chair, "chair_i"),
        _row("CHAIR_i, first three mentions", "percent", "lower", chair, "chair_first"),
        _row("CHAIR_s", "percent", "lower", chair, "chair_s"),
        _row("Recall", "percent", "higher", chair, "recall"),
        _row("Words per caption", "number", "", chair, "words"),
    ]
    for split in dict.fromkeys(split for metrics in pope.values() for split in metrics if "accuracy" in metrics[split]):
        scores = {model: metrics[split] for model, metrics in pope.items() if split in metrics}
        rows.append(_row(f"POPE {split}, accuracy", "percent", "higher", scores, "accuracy"))
    means = {model: metrics["mean"] for model, metrics in pope.items() if "mean" in metrics}
    rows.append(_row("POPE mean, F1", "percent", "higher", means, "f1"))
    rows.append(_row("POPE mean, yes ratio", "percent", "", means, "yes_ratio"))
    scores = {model: _mme_scores(metrics) for model, metrics in mme.items()}
    for name in dict.fromkeys(name for values in scores.values() for name in values if name != "intervals"):
        rows.append(_row(f"MME {name}", "number", "higher", scores, name))
    return [row for row in rows if row.cells]


def _row(
    label: str,
    unit: Literal["percent", "number"],
    better: Literal["lower", "higher", ""],
    metrics: Mapping[str, Mapping[str, Any]],
    key: str,
) -> Row:
    cells = {}
    for model, values in metrics.items():
        if values.get(key) is not None:
            low, high = values.get("intervals", {}).get(key) or (None, None)
            cells[model] = Value(values[key], low, high)
    if not {"base", "tuned"} <= cells.keys():
        return Row(label, unit, better, cells, None, "")
    base, tuned = cells["base"], cells["tuned"]
    change = tuned.value - base.value
    verdict: Literal["better", "worse", ""] = ""
    if better and _apart(base, tuned):
        verdict = "better" if (change > 0) == (better == "higher") else "worse"
    return Row(label, unit, better, cells, change, verdict)


def _apart(one: Value, other: Value) -> bool:
    """Whether both have intervals, and these do not overlap."""
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return False
    return one.high < other.low or other.high < one.low


def _mme_scores(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The two sums where they are complete, else each subtask's score of 200."""
    sums = {name: metrics[name] for name in ("perception", "cognition") if metrics.get(name) is not None}
    subtasks = {
        name: values.get("score", values["accuracy"] + values["accuracy_plus"])
        for name, values in metrics["subtasks"].items()
    }
    return {**(sums or subtasks), "intervals": metrics.get("intervals", {})}


# Files


def _name(path: Path, depth: int) -> str:
    return "/".join(path.parts[-depth:])


def _find_objects(config: Any, directory: Path, given: ObjectFiles | None) -> ObjectFiles | None:
    """Files that say what is in the images of PPO; None if there are none.

    Those of the evaluation are meant only where it asks about the same folder: in another one, another image may have
    the same name.
    """
    entities = _get(config, "clip", "entities")
    entities = str(entities) if entities else None
    if given:
        return given._replace(entities=entities)
    own, asked = (_get(config, section, "images") for section in ("ppo", "evaluate"))
    own = own or _get(config, "sample", "images")
    if not (own and asked and os.path.normpath(str(own)) == os.path.normpath(str(asked))):
        return None
    names, table = _get(config, "evaluate", "objects"), _get(config, "evaluate", "synonyms")
    names = names if isinstance(names, list) else []
    found = {str(name): _find_file(str(name), directory) for name in (*names, *([table] if table else []))}
    if missing := [name for name, path in found.items() if path is None]:
        logger.warning("%s: the file of objects %s is not there; give --objects", directory, missing[0])
        return None
    objects = tuple(path for name in names if (path := found[str(name)]))
    return ObjectFiles(objects, found[str(table)] if table else None, entities) if objects else None


def _find_judgments(config: Any, directory: Path) -> dict[str, Path]:
    """Of each source of the reward model, if it has any."""
    section = config.get("train_reward") if isinstance(config, dict) else None
    found = {name: _find_file(judgments_of(file), directory) for name, file in annotation_files(section)}
    return {name: path for name, path in found.items() if path}


def _find_file(name: str, directory: Path) -> Path | None:
    """A file that a config names, from here or from any folder above the run."""
    places = (Path(name), *(base / name for base in directory.resolve().parents))
    return next((place for place in places if place.is_file()), None)


def _find_images(name: Any, directory: Path) -> str | None:
    """The place that a config names, from here or from any folder above the run; None if it is nowhere."""
    if not name:
        return None
    bases = () if "://" in str(name) else directory.resolve().parents
    for place in (str(name), *(str(base / str(name)) for base in bases)):
        if _is_there(place):
            return place
    logger.warning("%s: the images' folder %s is not there; give --images", directory, name)
    return None


def _is_there(place: str) -> bool:
    try:
        images = open_images(place)
    except InputError:
        return False
    return not isinstance(images, Folder) or Path(place).is_dir()


def _get(config: Any, section: str, key: str) -> Any:
    values = config.get(section) if isinstance(config, dict) else None
    return values.get(key) if isinstance(values, dict) else None


def _read_config(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: expected YAML, got something else ({' '.join(str(error).split())})") from error


def _read_json(path: Path) -> dict[str, Any]:
    return _parse(path, path.read_bytes())


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """Of JSON lines; a last one that a kill left half-written does not count."""
    return [_parse(path, line) for line in (path.read_bytes().split(b"\n")[:-1] if path.exists() else [])]


def _parse(path: Path, content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: malformed JSON ({error}); run the stage that writes it again") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, got {show(value)}; run the stage that writes it again")
    return value
