"""What others would teach the demo's policy from: preferences of people, ratings by a model, answers made worse.

They are written in forms that users have (docs/preferences.md). Scenes are known, so people and models judge them by
the truth, now and then wrongly.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from vigor_jax.data.records import store
from vigor_jax.demo.dataset import DemoDataConfig, annotate_caption, read_scenes
from vigor_jax.demo.language import PROMPTS
from vigor_jax.demo.teaching import true_and_worse
from vigor_jax.records import Candidate

Source: TypeAlias = Literal["people", "rated", "worse", "random"]
FILES: dict[Source, str] = {
    "people": "people_own.json",
    "rated": "rated_vlfeedback.json",
    "worse": "worse_povid.json",
    "random": "random_vlfeedback.json",
}


def write_preferences(source: Source, directory: Path, config: DemoDataConfig) -> Path:
    """Writes preferences, if they are not there, and returns their file.

    "people" put the candidates of each unlabeled image in order, by the number of sentences that they found right less
    those that they found wrong, since they want to be told much; every two of an image are then a comparison
    (InstructGPT, section 3.5), in the form of this package. "rated" are the same candidates, rated from 1 to 5 by the
    share of sentences that a model found right, in VLFeedback's form; "random" are those with ratings at random, a
    control. "worse" are true captions of the unlabeled images against the same with mistakes, in POVID's form.

    Args:
      source: which.
      directory: of a seed: `data/`, and `shared/candidates/` for all but "worse".
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
    judge = _judge(directory, config, rng)
    for image, prompt, candidates in _responses(directory):
        found = [judge(candidate) for candidate in candidates]
        ratings = [right - wrong for right, wrong in found]
        yield {
            "name": image,
            "image": image,
            "prompt": prompt,
            "responses": [each.text for each in candidates],
            "ratings": ratings,
        }


def _rated(directory: Path, config: DemoDataConfig, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    judge = _judge(directory, config, rng)

    def rating(candidate: Candidate) -> int:
        right, wrong = judge(candidate)
        return 5 - round(4 * wrong / max(right + wrong, 1))

    yield from _with_ratings(directory, rating)


def _random(directory: Path, config: DemoDataConfig, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    yield from _with_ratings(directory, lambda candidate: int(rng.integers(1, 6)))


def _with_ratings(directory: Path, rating: Callable[[Candidate], int]) -> Iterator[dict[str, Any]]:
    for image, prompt, candidates in _responses(directory):
        completions = [
            {
                "model": "policy",
                "response": each.text,
                "annotations": {"Visual Faithfulness": {"Rating": str(rating(each)), "Rationale": ""}},
            }
            for each in candidates
        ]
        yield {"id": image, "prompt": prompt, "img_path": image, "completions": completions}


def _responses(directory: Path) -> Iterator[tuple[str, str, list[Candidate]]]:
    """Images with prompt and candidates of different texts, where there are two or more."""
    candidates = store.read_parts(directory / "shared" / "candidates", Candidate)
    for (image, prompt), group in groupby(candidates, key=lambda candidate: (candidate.image, candidate.prompt)):
        found = list({each.text: each for each in group if each.text.strip()}.values())
        if len(found) > 1:
            yield image, prompt, found


def _judge(directory: Path, config: DemoDataConfig, rng: np.random.Generator) -> Callable[[Candidate], tuple[int, int]]:
    """How many of a candidate's sentences somebody finds right and wrong who knows the scene, and errs now and then."""
    scenes = read_scenes(directory / "data", "unlabeled")

    def judge(candidate: Candidate) -> tuple[int, int]:
        scene = scenes[candidate.image]
        found = annotate_caption(candidate.image, candidate.text, scene, config.careless_annotators, rng).sentences
        wrong = sum(bool(sentence.errors) for sentence in found)
        return len(found) - wrong, wrong

    return judge


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


_MAKERS: Mapping[Source, Callable[[Path, DemoDataConfig, np.random.Generator], Iterable[dict[str, Any]]]] = {
    "people": _people,
    "rated": _rated,
    "worse": _worse,
    "random": _random,
}
