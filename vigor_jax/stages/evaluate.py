"""Asks the models before and after what the benchmarks ask, and compares: `evaluation/` in the run directory."""

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from vigor_jax.answering import Answerer, Question, read_answers
from vigor_jax.data.conversation import TEMPLATES
from vigor_jax.data.store import write_atomically
from vigor_jax.decoding import SamplingConfig
from vigor_jax.errors import InputError
from vigor_jax.evaluation import chair, mme, pope
from vigor_jax.evaluation.synonyms import Synonyms
from vigor_jax.hf.load import Source

logger = logging.getLogger(__name__)

FIRST = 3  # mentions of a caption that count for its beginning


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """What the models are asked, beside each other.

    Attributes:
      images: folder of the images that CHAIR's captions and POPE's questions are about.
      objects: what is in each image, which turns CHAIR on: JSON {image: [object, ...]}, or COCO's instances and
        captions; several files add to each other.
      synonyms: CHAIR's table of names; by default the objects' own names and their plurals.
      pope: files of POPE questions.
      mme: MME's folder.
      prompt: what captions are asked for with.
      template: the conversation format that the model was trained with.
      limit: only so many images for CHAIR, the first by name; 0 takes all that have objects.
      base: whether the model before is asked, too.
      captions: how captions are drawn.
      answers: how answers are.
    """

    images: Path | None = None
    objects: tuple[Path, ...] = ()
    synonyms: Path | None = None
    pope: tuple[Path, ...] = ()
    mme: Path | None = None
    prompt: str = "Describe this image in detail."
    template: str = "v1"
    limit: int = 0
    base: bool = True
    captions: SamplingConfig = dataclasses.field(
        default_factory=lambda: SamplingConfig(num_candidates=1, temperature=0.0)
    )
    answers: SamplingConfig = dataclasses.field(
        default_factory=lambda: SamplingConfig(num_candidates=1, temperature=0.0, max_new_tokens=16)
    )

    def __post_init__(self) -> None:
        if self.template not in TEMPLATES:
            raise InputError(f"evaluate.template: expected one of {', '.join(TEMPLATES)}, got {self.template!r}")
        if (self.objects or self.pope) and self.images is None:
            raise InputError("evaluate.images is not given; name the folder that objects and questions are about")


def evaluate(
    config: EvaluateConfig, models: Mapping[str, Source], out: Path, mesh: Mesh, *, dtype: str
) -> dict[str, dict[str, Any]]:
    """Evaluates models; what is answered already is not asked again.

    Args:
      config: what to ask.
      models: by name.
      out: gets a folder for each model, with every answer and `metrics.json`, and `table.txt`.
      mesh: all devices of all processes.
      dtype: type to compute in.

    Returns:
      Metrics by model, benchmark and name, as in `metrics.json`.

    Raises:
      InputError: there is nothing to ask, or a file cannot be used.
    """
    if not (config.objects or config.pope or config.mme):
        raise InputError("evaluate: there is nothing to ask; give evaluate.objects, evaluate.pope or evaluate.mme")
    found = {}
    for name, source in models.items():
        answerer, folder = Answerer(source, config.template, mesh, dtype=dtype), out / name
        metrics: dict[str, Any] = {}
        if config.objects:
            metrics["chair"] = _chair(config, answerer, folder, name)
        if config.pope:
            metrics["pope"] = _pope(config, answerer, folder, name)
        if config.mme:
            metrics["mme"] = _mme(config, config.mme, answerer, folder, name)
        found[name] = metrics
        if jax.process_index() == 0:
            with write_atomically(folder / "metrics.json") as file:
                file.write(json.dumps(metrics, indent=1).encode() + b"\n")
    if jax.process_index() == 0:
        lines = table(found)
        (out / "table.txt").write_text(lines + "\n", encoding="utf-8")
        print(lines, flush=True)
    return found


def _chair(config: EvaluateConfig, answerer: Answerer, folder: Path, model: str) -> dict[str, Any]:
    synonyms = Synonyms.read(config.synonyms) if config.synonyms else None
    reference = chair.read_objects(config.objects, synonyms)
    names = sorted(reference.objects)[: config.limit or None]
    images = _images(config, names)
    out, desc = folder / "captions.jsonl", f"captions, {model}"
    questions = [Question(name, path, config.prompt) for name, path in images.items()]
    answerer.answer(questions, out, config.captions, desc=desc)
    captions = [chair.judge(line["image"], line["text"], reference) for line in read_answers(out)]
    return dataclasses.asdict(chair.score(captions, first=FIRST))


def _pope(config: EvaluateConfig, answerer: Answerer, folder: Path, model: str) -> dict[str, Any]:
    scores = {}
    for path in config.pope:
        questions = pope.read_questions(path)
        images = _images(config, sorted({question.image for question in questions}))
        asked = [Question(question.image, images[question.image], question.text) for question in questions]
        texts = _ask(answerer, asked, folder / f"pope-{path.stem}.jsonl", config.answers, f"POPE {path.stem}, {model}")
        scores[path.stem] = pope.score(questions, texts)
    scores["mean"] = pope.mean(list(scores.values()))
    return {name: dataclasses.asdict(value) for name, value in scores.items()}


def _mme(config: EvaluateConfig, mme_folder: Path, answerer: Answerer, folder: Path, model: str) -> dict[str, Any]:
    results: dict[str, list[mme.MmeQuestion]] = {}
    for subtask, questions in mme.read_subtasks(mme_folder).items():
        asked = [Question(f"{subtask}/{q.image}", q.path, q.question) for q in questions if q.path]
        texts = _ask(answerer, asked, folder / f"mme-{subtask}.jsonl", config.answers, f"MME {subtask}, {model}")
        results[subtask] = mme.answered(questions, texts)
    scores = mme.score(results)
    subtasks = {name: {**dataclasses.asdict(each), "score": each.score} for name, each in scores.subtasks.items()}
    return {"subtasks": subtasks, "perception": scores.perception, "cognition": scores.cognition}


def _ask(
    answerer: Answerer, questions: Sequence[Question], out: Path, sampling: SamplingConfig, desc: str
) -> list[str]:
    """The answers, in the order of the questions, of which some may be the same."""
    answerer.answer(list(dict.fromkeys(questions)), out, sampling, desc=desc)
    texts = {(line["image"], line["prompt"]): line["text"] for line in read_answers(out)}
    return [texts[question.image, question.prompt] for question in questions]


def _images(config: EvaluateConfig, names: Sequence[str]) -> dict[str, Path]:
    """Files of the images that are asked about."""
    assert config.images
    paths = {name: config.images / name for name in names}
    if gone := [path for path in paths.values() if not path.is_file()]:
        raise InputError(
            f"evaluate: image {gone[0]} does not exist ({len(gone)} of {len(paths)} are missing); check evaluate.images"
        )
    return paths


def table(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """Metrics of several models as text, a column for each."""
    rows: dict[str, list[str]] = {}
    for values in metrics.values():
        for label, text in _rows(values):
            rows.setdefault(label, []).append(text)
    width = max(10, *(len(name) + 2 for name in metrics))
    lines = [" " * 34 + "".join(f"{name:>{width}}" for name in metrics)]
    return "\n".join(
        [*lines, *(f"{label:34}" + "".join(f"{t:>{width}}" for t in texts) for label, texts in rows.items())]
    )


def _rows(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    if found := metrics.get("chair"):
        rows = [
            ("CHAIR_i", f"{found['chair_i']:.1%}"),
            (f"CHAIR_i, first {FIRST} mentions", f"{found['chair_first']:.1%}"),
            ("CHAIR_s", f"{found['chair_s']:.1%}"),
            ("recall", f"{found['recall']:.1%}"),
            ("words per caption", f"{found['words']:.1f}"),
        ]
    for split, scores in metrics.get("pope", {}).items():
        rows.append((f"POPE {split}, accuracy", f"{scores['accuracy']:.1%}"))
    if found := metrics.get("mme"):
        scores = [values["score"] for values in found["subtasks"].values()]
        rows.append((f"MME, {len(scores)} subtasks, of {200 * len(scores)}", f"{sum(scores):.1f}"))
    return rows
