"""POPE questions for any images whose objects are known, in the benchmark's three kinds (Li et al. 2023)."""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Literal, get_args

from vigor_jax.errors import InputError
from vigor_jax.evaluation.benchmarks.pope import PopeQuestion, YesNo

if TYPE_CHECKING:
    import inflect

Split = Literal["random", "popular", "adversarial"]
SPLITS: tuple[Split, ...] = get_args(Split)


def build_questions(
    objects: Mapping[str, Collection[str]],
    split: Split,
    *,
    per_image: int = 6,
    seed: int,
    statistics: Mapping[str, Collection[str]] | None = None,
) -> list[PopeQuestion]:
    """Asks after objects that are in an image and, in turn with these, after as many that are not.

    An image gets `per_image / 2` pairs, or as many as it has objects or lacks objects that others have; an image that
    has or lacks none gets no question. Which of its objects are asked after depends on the seed and the image's name
    alone, so the three splits share their yes-questions, and other images change nothing; the absent objects depend on
    `statistics` as well.

    Args:
        objects: Image → names of the objects in it.
        split: Which absent objects are asked after. "random": any; "popular": those in the most images;
            "adversarial": for each object that is asked after, the one that is in the most images together with it
            (as the authors' program does), or any where there is none.
        per_image: Questions an image, even.
        seed: Of what is chosen at random.
        statistics: Image → objects, to count how often objects occur and what else there is to ask after. Ties are
            in the order of the alphabet. Default: `objects`.

    Returns:
        Questions in the order of the images, numbered from 1.

    Raises:
        InputError: `per_image` is odd or below 2, `split` is unknown, or no image gets a question.
    """
    if per_image < 2 or per_image % 2:
        raise InputError(f"POPE: expected an even number of questions an image, 2 or more, got per_image={per_image}")
    if split not in SPLITS:
        raise InputError(f"POPE: expected the split random, popular or adversarial, got {split!r}")
    known = objects if statistics is None else statistics
    frequency = Counter(name for names in known.values() for name in set(names))
    together = _together(known) if split == "adversarial" else {}
    popular = _most_common(frequency)
    questions: list[PopeQuestion] = []
    for image, names in objects.items():
        inside = set(names)
        present = _shuffle(inside, seed, image)
        absent = [name for name in popular if name not in inside]
        if split != "popular":
            absent = _shuffle(absent, seed, image)
        for name in present[: min(per_image // 2, len(absent))]:
            partner = next((other for other in together.get(name, ()) if other in absent), absent[0])
            absent.remove(partner)
            pair: tuple[tuple[str, YesNo], ...] = ((name, "yes"), (partner, "no"))
            for asked, label in pair:
                text = f"Is there {_with_article(asked)} in the image?"
                questions.append(PopeQuestion(len(questions) + 1, image, text, label))
    if not questions:
        raise InputError(f"POPE: none of {len(objects)} images has an object and lacks one that another image has")
    return questions


def _shuffle(names: Iterable[str], seed: int, image: str) -> list[str]:
    """An order by hash: unlike a generator's, it leaves two names as they are when a third one is added."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed}\0{image}\0{name}".encode()).digest())


def _most_common(frequency: Mapping[str, int]) -> list[str]:
    return sorted(frequency, key=lambda name: (-frequency[name], name))


def _together(objects: Mapping[str, Collection[str]]) -> dict[str, list[str]]:
    """Object → the others, those that are in the most images together with it first."""
    counts: dict[str, Counter[str]] = {}
    for names in map(set, objects.values()):
        for name in names:
            counts.setdefault(name, Counter()).update(names - {name})
    return {name: _most_common(others) for name, others in counts.items()}


@cache
def _inflect() -> "inflect.engine":
    import inflect  # takes seconds, which those who build no questions need not wait

    return inflect.engine()


@cache
def _with_article(name: str) -> str:
    return str(_inflect().a(name))  # "an apple", "a unicycle", "an hourglass"
