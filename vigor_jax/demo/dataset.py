"""Writes the data of a demo run to disk: pictures, truth, human judgments, questions, and the small checkpoints."""

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vigor_jax.data.records.annotations import write_annotations
from vigor_jax.demo import language, teaching
from vigor_jax.demo.drawing import draw
from vigor_jax.demo.scenes import COLORS, Object, Scene, make_scene
from vigor_jax.errors import InputError
from vigor_jax.evaluation.benchmarks import pope_build
from vigor_jax.evaluation.benchmarks.pope import write_questions
from vigor_jax.hf.load import open_checkpoint
from vigor_jax.hf.processor_files import write_json
from vigor_jax.inference.predictor import Predictor, Question, read_answers
from vigor_jax.inference.sampling_config import SamplingConfig
from vigor_jax.parallel.config import MeshConfig
from vigor_jax.parallel.sharding import make_mesh
from vigor_jax.records import AnnotatedSentence, Annotation, ErrorType
from vigor_jax.rewards.sentences import split_sentences

COLOR_WORDS = "colors.txt"
CHECKPOINTS = Path(__file__).parent / "checkpoints"
# To be raised with every change of what `prepare` writes, so that an old directory is not taken for a new one.
VERSION = 5
SPLITS = ("unlabeled", "annotated", "held_out")
# How the kinds of error are called in annotations, and the attribute.
ERRORS: dict[language.ErrorKind, tuple[ErrorType, str]] = {
    "object": ("object", ""),
    "color": ("attribute", "color"),
    "count": ("attribute", "count"),
    "place": ("location", ""),
}
ANNOTATED = SamplingConfig(num_candidates=2, temperature=0.9, max_new_tokens=96, batch_size=48)


@dataclasses.dataclass(frozen=True)
class DemoDataConfig:
    """How much data the demo has.

    Attributes:
      unlabeled: scenes to sample and to learn from.
      annotated: scenes whose captions are annotated, two captions each.
      held_out: scenes to be tested on.
      asked: of those, the scenes that POPE asks about.
      mme: scenes in each of MME's subtasks.
      careless_annotators: share of sentences that are annotated wrongly.
      seed: of everything.
    """

    unlabeled: int = 1000
    annotated: int = 1000
    held_out: int = 400
    asked: int = 150
    mme: int = 30
    careless_annotators: float = 0.05
    seed: int = 0


def prepare(directory: Path, config: DemoDataConfig) -> None:
    """Writes the demo's data; does nothing where they are written already.

    The directory appears under its name when it is complete: `images/SPLIT/`, `scenes.json` (image → scene),
    `objects.json` (held-out image → shapes), `annotations.jsonl`, `pope/*.json`, `mme/`, `colors.txt` (words of
    claims), and the checkpoints `policy/`, `detector/`, `tagger/` and `verifier/`. Everything depends on the seed
    alone, and a scene on its number, not on how many there are.

    Raises:
      InputError: the directory holds something else, such as data of other sizes.
    """
    wanted = {"version": VERSION, **dataclasses.asdict(config)}
    if directory.exists():
        path = directory / "dataset.json"
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        if found != wanted:
            what = "something else" if found is None else f"the demo data {found}"
            raise InputError(f"{directory} holds {what}, expected {wanted}; remove it or choose another directory")
        return
    partial = directory.with_name(f".{directory.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    for name in ("policy", "detector", "tagger", "verifier"):
        shutil.copytree(CHECKPOINTS / name, partial / name, dirs_exist_ok=True)
    write_colors(partial)
    scenes = {
        image: scene
        for split, count in zip(SPLITS, (config.unlabeled, config.annotated, config.held_out), strict=True)
        for image, scene in draw_split(partial / "images", split, count, config.seed)
    }
    write_json(partial / "scenes.json", {image: dataclasses.asdict(scene) for image, scene in scenes.items()})
    _write_questions(partial, {Path(i).name: scene for i, scene in scenes.items() if i.startswith("held_out/")}, config)
    annotate(partial, {i: scene for i, scene in scenes.items() if i.startswith("annotated/")}, config)
    write_json(partial / "dataset.json", wanted)
    os.replace(partial, directory)


def read_scenes(data: Path, split: str) -> dict[str, Scene]:
    """Name of the picture, without its folder → scene."""
    scenes = json.loads((data / "scenes.json").read_text(encoding="utf-8"))
    return {
        Path(image).name: Scene(tuple(Object(**item) for item in scene["objects"]), scene["background"])
        for image, scene in scenes.items()
        if image.startswith(f"{split}/")
    }


def write_colors(directory: Path) -> None:
    """Writes the demo's colors, as `claims.words.attributes` has them."""
    (directory / COLOR_WORDS).write_text("\n".join(["[color]", *COLORS, ""]))


def draw_split(folder: Path, split: str, count: int, seed: int) -> Iterator[tuple[str, Scene]]:
    """Writes the pictures of a split; yields the name of each below `folder`, and its scene."""
    (folder / split).mkdir(parents=True, exist_ok=True)
    for number in tqdm(range(count), desc=f"drawing {split}", unit="scene", dynamic_ncols=True):
        scene = make_scene(np.random.default_rng([seed, SPLITS.index(split), number]))
        name = f"{split}/{number:05d}.png"
        draw(scene).save(folder / name)
        yield name, scene


def annotate(directory: Path, scenes: Mapping[str, Scene], config: DemoDataConfig) -> None:
    """Lets the policy describe scenes and annotates every sentence, now and then wrongly, in `annotations.jsonl`."""
    predictor = Predictor(open_checkpoint(directory / "policy"), "v1", make_mesh(MeshConfig(data=-1, fsdp=1)))
    prompts = language.PROMPTS
    questions = [
        Question(image, directory / "images" / image, prompts[number % len(prompts)])
        for number, image in enumerate(scenes)
    ]
    out = directory / "descriptions.jsonl"
    predictor.answer(questions, out, dataclasses.replace(ANNOTATED, seed=config.seed), desc="describing annotated")
    rng = np.random.default_rng([config.seed, 200])
    annotations = (
        annotate_caption(line["image"], line["text"], scenes[line["image"]], config.careless_annotators, rng)
        for line in read_answers(out)
        if line["text"]
    )
    write_annotations(directory / "annotations.jsonl", annotations)


def annotate_caption(image: str, text: str, scene: Scene, careless: float, rng: np.random.Generator) -> Annotation:
    """Annotates a caption as a person would: the truth, but for a share of mistakes."""
    sentences = []
    for span in split_sentences(text):
        (sentence, *_) = language.parse(text[slice(*span)])
        # What is none of the demo's sentences is an unreasonable conjecture.
        kinds = language.errors(sentence.statement, scene) if sentence.statement else None
        found = [("conjecture", "")] if kinds is None else [ERRORS[kind] for kind in kinds]
        if rng.random() < careless:
            found = [] if found else [list(ERRORS.values())[rng.integers(len(ERRORS))]]
        errors = tuple(dict.fromkeys(error for error, _ in found))
        attribute = next((attribute for _, attribute in found if attribute), "")
        sentences.append(AnnotatedSentence(span, errors, attribute, False))  # type: ignore[arg-type]
    return Annotation(image, text, tuple(sentences), None, ())


def _write_questions(directory: Path, scenes: Mapping[str, Scene], config: DemoDataConfig) -> None:
    """POPE's and MME's, about the first held-out scenes."""
    objects = {image: sorted({item.shape for item in scene.objects}) for image, scene in scenes.items()}
    write_json(directory / "objects.json", objects)
    asked = dict(list(objects.items())[: config.asked])
    (directory / "pope").mkdir(exist_ok=True)
    for split in pope_build.SPLITS:
        # Six questions need three shapes in the scene; some have two.
        questions = pope_build.build_questions(asked, split, seed=config.seed, statistics=objects)
        write_questions(directory / "pope" / f"{split}.json", questions)
    kinds: tuple[language.QuestionKind, ...] = ("existence", "count", "position", "color")
    for kind in kinds:
        folder = directory / "mme" / kind
        folder.mkdir(parents=True, exist_ok=True)
        for number, (image, scene) in enumerate(list(scenes.items())[: config.mme]):
            rng = np.random.default_rng([config.seed, 300, number, kinds.index(kind)])
            lines = []
            for label in ("yes", "no"):
                statement, _ = teaching.pose(kind, scene, rng, label)
                lines.append(f"{language.question(kind, statement)}\t{label.capitalize()}\n")
            (folder / f"{Path(image).stem}.txt").write_text("".join(lines), encoding="utf-8")
            shutil.copy(directory / "images" / "held_out" / image, folder / image)


def describe_truth(scene: Scene) -> str:
    """What is true of a scene, in few words."""
    parts: list[Any] = [
        f"{s.number} {s.color} {language.plural(s.shape)}" if s.number > 1 else f"{s.color} {s.shape} {s.place}"
        for s in scene.statements
    ]
    return ", ".join(parts)
