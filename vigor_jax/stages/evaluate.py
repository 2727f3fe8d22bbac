"""Asks the models before and after what the benchmarks ask, and compares: `evaluation/` in the run directory.

What has come of it is also a card, `evaluation/card.html`, which what was exported carries in its README.md.
"""

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from jax.sharding import Mesh

from vigor_jax import fingerprint
from vigor_jax.data.images.store import open_images
from vigor_jax.data.records.checksum import file_digest
from vigor_jax.data.records.store import write_atomically
from vigor_jax.errors import InputError
from vigor_jax.evaluation.answer_sampling import AnswerSampling, by_protocol, kept_with, told_by
from vigor_jax.evaluation.benchmarks import chair, grounding, mme, pope, referring
from vigor_jax.evaluation.benchmarks.referring_files import PICKLES, read_expressions
from vigor_jax.evaluation.benchmarks.synonyms import Synonyms
from vigor_jax.evaluation.box_metrics import grounding_metrics, referring_metrics
from vigor_jax.evaluation.card.compare import make_card
from vigor_jax.evaluation.card.results import read_systems
from vigor_jax.evaluation.card.write import write_card
from vigor_jax.evaluation.image_counts import FILE as COUNTS_FILE
from vigor_jax.evaluation.image_counts import take_counts, write_counts
from vigor_jax.evaluation.image_names import first
from vigor_jax.evaluation.metrics import (
    Metrics,
    chair_metrics,
    mme_metrics,
    pope_metrics,
    table,
    warn,
)
from vigor_jax.evaluation.protocol import Protocol, file_version, own, read_protocol
from vigor_jax.hf.load import Checkpoint, open_checkpoint
from vigor_jax.hf.peft import is_adapter
from vigor_jax.inference.predictor import Predictor, Question, read_answers
from vigor_jax.parallel.processes import is_first
from vigor_jax.records import ImageFile
from vigor_jax.stages.evaluate_config import EvaluateConfig
from vigor_jax.stages.exported_readme import carry_card
from vigor_jax.stages.stage import EVALUATION, EXPORT, Progress, Result, RunContext, Stage

logger = logging.getLogger(__name__)


def evaluate(
    config: EvaluateConfig, models: Mapping[str, Checkpoint], out: Path, mesh: Mesh, *, dtype: str
) -> dict[str, dict[str, Metrics]]:
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
    if not (config.objects or config.pope or config.mme or config.instances or config.refs):
        raise InputError(
            "evaluate: there is nothing to ask; give evaluate.objects, evaluate.pope, evaluate.mme, evaluate.instances "
            "or evaluate.refs"
        )
    found: dict[str, dict[str, Metrics]] = {}
    for name, checkpoint in models.items():
        predictor, folder = Predictor(checkpoint, config.template, mesh, dtype=dtype), out / name
        metrics: dict[str, Metrics] = {}
        if config.objects:
            metrics["chair"] = _chair(config, predictor, folder, name)
        if config.pope:
            metrics["pope"] = _pope(config, predictor, folder, name)
        if config.mme:
            metrics["mme"] = _mme(config, config.mme, predictor, folder, name)
        if config.instances:
            metrics["grounding"] = _grounding(config, predictor, folder, name)
        if config.refs:
            metrics["referring"] = _referring(config, predictor, folder, name)
        split = {benchmark: take_counts(own) for benchmark, own in metrics.items()}
        found[name] = {benchmark: own for benchmark, (own, _) in split.items()}
        if is_first():
            with write_atomically(folder / "metrics.json") as file:
                file.write(json.dumps(found[name], indent=1).encode() + b"\n")
            write_counts(folder / COUNTS_FILE, {benchmark: counts for benchmark, (_, counts) in split.items()})
    if is_first():
        lines = table(found)
        (out / "table.txt").write_text(lines + "\n", encoding="utf-8")
        print(lines, flush=True)
    return found


def _chair(config: EvaluateConfig, predictor: Predictor, folder: Path, model: str) -> Metrics:
    synonyms = Synonyms.read(config.synonyms) if config.synonyms else None
    reference = chair.read_objects(config.objects, synonyms)
    captions = _captions(config, reference.objects, predictor, folder, model)
    metrics = chair_metrics([chair.check_caption(image, text, reference) for image, text in captions])
    version = file_version(config.synonyms) if config.synonyms else None
    protocol = own("chair").used(
        parser="singular" if synonyms else "names", table=version, images={"number": metrics["captions"]}
    )
    return {**metrics, "protocol": _of_captions(config, protocol)}


def _captions(
    config: EvaluateConfig, known: Collection[str], predictor: Predictor, folder: Path, model: str
) -> list[tuple[str, str]]:
    """The captions of the images that are asked about."""
    images = _images(config, first(known, config.limit))
    out = folder / "captions.jsonl"
    questions = [Question(name, path, config.prompt) for name, path in images.items()]
    # With the prompt, so that a command that reads them finds the same protocol.
    settings = {"prompt": config.prompt}
    predictor.answer(questions, out, config.captions, desc=f"captions, {model}", settings=settings)
    return [(line["image"], line["text"]) for line in read_answers(out) if line["image"] in images]


def _grounding(config: EvaluateConfig, predictor: Predictor, folder: Path, model: str) -> Metrics:
    synonyms = Synonyms.read(config.synonyms) if config.synonyms else None
    truth = grounding.read_instances(config.instances, synonyms)
    captions = _captions(config, truth.sizes, predictor, folder, model)
    metrics = grounding_metrics([grounding.check_boxes(image, text, truth) for image, text in captions])
    protocol = own("grounding").used(parser="boxes of the square", images={"number": len(captions)})
    return {**metrics, "protocol": _of_captions(config, protocol)}


def _of_captions(config: EvaluateConfig, protocol: Protocol) -> Metrics:
    return told_by(protocol.used(prompt=config.prompt), config.captions).stored()


def _referring(config: EvaluateConfig, predictor: Predictor, folder: Path, model: str) -> Metrics:
    located: dict[str, list[referring.Located]] = {}
    for part, expressions in read_expressions(config.refs).items():
        images = _images(config, sorted({each.image for each in expressions}))
        asked = [Question(each.image, images[each.image], referring.question(each)) for each in expressions]
        out = folder / f"expressions-{part}.jsonl"
        texts = predictor.ask(asked, out, config.answers, desc=f"{part}, {model}")
        located[part] = referring.locate(expressions, texts)
    protocol = own("grounding").used(prompt=referring.PROMPT, parser="first box of the square")
    return {**referring_metrics(located), "protocol": protocol.stored()}


def _pope(config: EvaluateConfig, predictor: Predictor, folder: Path, model: str) -> Metrics:
    splits, words = {}, read_protocol(config.protocol, "pope")
    for path in config.pope:
        questions = pope.read_questions(path)
        images = _images(config, sorted({question.image for question in questions}))
        asked = [Question(question.image, images[question.image], words.ask(question.text)) for question in questions]
        out, settings = folder / f"pope-{path.stem}.jsonl", kept_with(words)
        texts = predictor.ask(asked, out, _answers(config, words), desc=f"POPE {path.stem}, {model}", settings=settings)
        splits[path.stem] = questions, texts
    metrics = pope_metrics(splits, words.parser or "first-sentence")
    return {**metrics, "protocol": words.stored(), **warn(pope=metrics)}


def _mme(config: EvaluateConfig, mme_folder: Path, predictor: Predictor, folder: Path, model: str) -> Metrics:
    results: dict[str, list[mme.MmeQuestion]] = {}
    words = read_protocol(config.protocol, "mme")
    for subtask, questions in mme.read_subtasks(mme_folder).items():
        asked = [Question(f"{subtask}/{q.image}", q.path, words.ask(q.question)) for q in questions if q.path]
        out, settings = folder / f"mme-{subtask}.jsonl", kept_with(words)
        texts = predictor.ask(asked, out, _answers(config, words), desc=f"MME {subtask}, {model}", settings=settings)
        results[subtask] = mme.answered(questions, texts)
    metrics = mme_metrics(results)
    return {**metrics, "protocol": words.stored(), **warn(mme=metrics)}


def _answers(config: EvaluateConfig, protocol: Protocol) -> AnswerSampling:
    return by_protocol(config.answers, protocol, default=EvaluateConfig().answers)


def _images(config: EvaluateConfig, names: Sequence[str]) -> dict[str, ImageFile]:
    """The images that are asked about."""
    assert config.images
    images = open_images(config.images)
    if gone := images.missing(names):
        raise InputError(
            f"evaluate: image {images.file(gone[0])} does not exist ({len(gone)} of {len(names)} are missing); check "
            "evaluate.images"
        )
    return {name: images.file(name) for name in names}


class EvaluateStage(Stage):
    """The model before and the model after → `evaluation/`."""

    name = "evaluate"

    def __init__(self, config: EvaluateConfig) -> None:
        self._config = config

    def results(self, context: RunContext) -> list[Result]:
        config = self._config
        boxes = [path.with_name("instances.json") for path in config.refs if path.suffix in PICKLES]
        protocol = Path(config.protocol)  # a name, or a file
        given = (*config.objects, config.synonyms, *config.pope, *config.instances, *config.refs, *boxes, protocol)
        files = [path for path in given if path and path.is_file()]
        content = {"evaluate.files": [file_digest(path) for path in files]}
        settings = context.model_settings | fingerprint.of(config, self.name) | content
        return [Result(self.name, settings, ("export",), (context.dir / EVALUATION,))]

    def run(self, context: RunContext, progress: Progress) -> None:
        progress.begin(self.name)
        models = {"base": context.checkpoint} if self._config.base else {}
        if (context.dir / EXPORT).is_dir():
            models["tuned"] = _tuned(context)
        evaluate(self._config, models, context.dir / EVALUATION, context.inference_mesh, dtype=context.dtype)
        if models and is_first():
            _write_cards(context, "tuned" in models)


def _write_cards(context: RunContext, exported: bool) -> None:
    """The card of the run; what was exported carries it along."""
    card = make_card(*read_systems([context.dir / EVALUATION]))
    path, *_ = write_card(card, context.dir / EVALUATION)
    if exported:
        carry_card(card, context.dir / EXPORT, context.dir)
    logger.info("evaluate: the card is %s", path)


def _tuned(context: RunContext) -> Checkpoint:
    """What the run exported; an adapter is put on the very base that the run began with."""
    directory = context.dir / EXPORT
    if not is_adapter(directory):
        return open_checkpoint(directory)
    return open_checkpoint(context.checkpoint.directory, context.model.vision_tower, directory)
