"""What others would teach the demo's policy from: preferences of people, ratings by a model, answers made worse.

Each is written in the form of the project that it stands for (docs/preferences.md), so that the demo reads what users
have. Scenes are known, so people and models judge them by the truth, now and then wrongly.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from vigor_jax.data.records import store
from vigor_jax.data.records.annotations import read_annotations
from vigor_jax.demo.dataset import DemoDataConfig, annotate_caption, read_scenes
from vigor_jax.demo.language import PROMPTS
from vigor_jax.demo.teaching import true_and_worse
from vigor_jax.records import Annotation, Candidate

Source: TypeAlias = Literal["people", "rated", "worse", "random"]
FILES: dict[Source, str] = {
    "people": "people_llava_rlhf.json",
    "rated": "rated_vlfeedback.json",
    "worse": "worse_povid.json",
    "random": "random_vlfeedback.json",
}


def write_preferences(source: Source, directory: Path, config: DemoDataConfig) -> Path:
    """Writes preferences, if they are not there, and returns their file.

    "people" compare the two captions of each annotated image, by how many of their sentences they found wrong, in
    LLaVA-RLHF's form. "rated" are the candidates of all unlabeled images, rated from 1 to 5 by the share of sentences
    that a model found right, in VLFeedback's form; "random" are the same with ratings at random, a control. "worse" are
    true captions of the unlabeled images against the same with mistakes, in POVID's form.

    Args:
      source: which.
      directory: of a seed: `data/`, and `shared/candidates/` for "rated" and "random".
      config: what is read is `careless_annotators` and `seed`.
    """
    path = directory / "preferences" / FILES[source]
    if not path.exists():
        rng = np.random.default_rng([config.seed, 400, list(FILES).index(source)])
        made = list(_MAKERS[source](directory, config, rng))
        with store.write_atomically(path) as file:
            file.write(json.dumps(made, indent=1).encode() + b"\n")
    return path


def _people(directory: Path, config: DemoDataConfig, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    annotations = read_annotations(directory / "data" / "annotations.jsonl")
    for number, (image, group) in enumerate(groupby(annotations, key=lambda annotation: annotation.image)):
        captions = list(group)
        if len(captions) < 2 or captions[0].description == captions[1].description:
            continue
        wrong = [_share_wrong(caption) for caption in captions]
        if wrong[0] == wrong[1]:
            continue
        question = {"from": "human", "value": f"<image>\n{PROMPTS[number % len(PROMPTS)]}"}
        outputs = {
            f"output_{index}": {"from": "gpt", "value": caption.description}
            for index, caption in enumerate(captions, 1)
        }
        preference = 1 if wrong[0] < wrong[1] else 2
        yield {"id": image, "image": image, "conversations": [question], **outputs, "preference": preference}


def _rated(directory: Path, config: DemoDataConfig, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    scenes = read_scenes(directory / "data", "unlabeled")

    def rating(candidate: Candidate) -> int:
        found = annotate_caption(
            candidate.image, candidate.text, scenes[candidate.image], config.careless_annotators, rng
        )
        return 5 - round(4 * _share_wrong(found))

    yield from _with_ratings(directory, rating)


def _random(directory: Path, config: DemoDataConfig, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    yield from _with_ratings(directory, lambda candidate: int(rng.integers(1, 6)))


def _with_ratings(directory: Path, rating: Callable[[Candidate], int]) -> Iterator[dict[str, Any]]:
    candidates = store.read_parts(directory / "shared" / "candidates", Candidate)
    for (image, prompt), group in groupby(candidates, key=lambda candidate: (candidate.image, candidate.prompt)):
        completions = [
            {
                "model": "policy",
                "response": text,
                "annotations": {"Visual Faithfulness": {"Rating": str(rating(candidate)), "Rationale": ""}},
            }
            for text, candidate in {each.text: each for each in group if each.text.strip()}.items()
        ]
        if len(completions) > 1:
            yield {"id": image, "prompt": prompt, "img_path": image, "completions": completions}


def _worse(directory: Path, config: DemoDataConfig, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    scenes = read_scenes(directory / "data", "unlabeled")
    for number, (image, scene) in enumerate(scenes.items()):
        true, worse = true_and_worse(scene, rng)
        question = {"from": "human", "value": f"<image>\n{PROMPTS[number % len(PROMPTS)]}"}
        yield {
            "id": image,
            "image": image,
            "conversations": [question, {"from": "gpt", "value": true}],
            "rejected_conversations": [question, {"from": "gpt", "value": worse}],
        }


def _share_wrong(annotation: Annotation) -> float:
    wrong = sum(bool(sentence.errors) for sentence in annotation.sentences)
    return wrong / max(len(annotation.sentences), 1)


_MAKERS: Mapping[Source, Callable[[Path, DemoDataConfig, np.random.Generator], Iterable[dict[str, Any]]]] = {
    "people": _people,
    "rated": _rated,
    "worse": _worse,
    "random": _random,
}
