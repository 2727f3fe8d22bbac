"""Preference: a judge that sees the image ranks the descriptions of several systems (ViGoR, section 4.4, Table 1).

The paper gives the seven criteria and averages ranks, lower being better. Our reading where it is silent: the judge
sees the descriptions by number only, in an order shuffled for each image; tied descriptions share the mean of their
places; and of several rounds each shows another order.
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from vigor_jax.errors import InputError
from vigor_jax.evaluation.benchmarks.ranks import CRITERIA, MeanRank, aggregate, parse_ranks
from vigor_jax.evaluation.judge.client import JudgeRequest
from vigor_jax.evaluation.judge.judge import Judge, JudgeResult, Spending, spending
from vigor_jax.records import ImageFile

PROMPT = """\
You see an image and {num} descriptions of it, each written by another system that was asked:
{instruction}

{descriptions}

Rank the descriptions against each other by each of these criteria, looking at the image:
{criteria}

Rank 1 is the best and {num} the worst, for HL too: there the description that hallucinates least has rank 1. \
Descriptions that are equally good share a rank, and the next rank is left out (1, 1, 3). The order in which the \
descriptions stand says nothing about them, and longer is not better in itself.

Reply with one JSON object and nothing else. For each criterion it has a list of {num} ranks, in the order of the \
descriptions: the first number is the rank of description 1, and so on.
{{{example}}}
"""


@dataclass(frozen=True)
class PreferenceMetrics:
    """A table of ranks.

    Attributes:
        ranks: System → criterion, and last `AVERAGE` over the seven → rank.
        images: Images with a ranking.
        rankings: Rankings in all rounds.
        malformed: Results without a ranking; they are in none of the figures.
        results: All; a value is criterion → ranks in the order of `result.request.systems`.
        spending: Tokens and cost.
    """

    ranks: dict[str, dict[str, MeanRank]]
    images: int
    rankings: int
    malformed: tuple[JudgeResult[dict[str, tuple[float, ...]]], ...]
    results: tuple[JudgeResult[dict[str, tuple[float, ...]]], ...]
    spending: Spending


def shown_order(systems: Sequence[str], image: str, turn: int, seed: int) -> tuple[str, ...]:
    """In which order the judge sees the systems' descriptions of an image in a round.

    Depends on nothing else, not on the order of `systems` either. As many rounds as there are systems put each system
    in each place once; after these the order is drawn again.

    Args:
        systems: Names.
        image: Name of the image.
        turn: The round, from 0.
        seed: Of the draws.
    """
    order = sorted(systems)
    block, shift = divmod(turn, len(order))
    random.Random(json.dumps([seed, image, block])).shuffle(order)
    return tuple(order[shift:] + order[:shift])


def rank(
    captions: Mapping[str, Mapping[str, str]],
    images: Mapping[str, ImageFile],
    judge: Judge,
    *,
    instruction: str = "Describe this image in detail.",
    repeats: int = 1,
    seed: int = 0,
) -> PreferenceMetrics:
    """Has descriptions ranked.

    Args:
        captions: System → image → description; two systems or more, each with all images.
        images: Image → file.
        judge: A model that sees; GPT-4V in the paper.
        instruction: What the systems were asked.
        repeats: Rounds; as many as there are systems put each in each place once.
        seed: Of the order in which descriptions are shown, and of the intervals.

    Raises:
        InputError: There are fewer than two systems, no image, no description of one, or no reply could be read; or
            as `Judge.ask_all`.
    """
    systems = tuple(captions)
    if len(systems) < 2 or not images or repeats < 1:
        raise InputError(
            f"preference: expected two systems or more, an image and a round, got {len(systems)} systems, "
            f"{len(images)} images, {repeats} rounds"
        )
    requests = []
    for image, path in images.items():
        for system in systems:
            if image not in captions[system]:
                raise InputError(f"preference: expected a description of {image} by {system}, found none")
        for turn in range(repeats):
            order = shown_order(systems, image, turn, seed)
            prompt = make_prompt([captions[system][image] for system in order], instruction)
            requests.append(JudgeRequest("preference", f"{image}, round {turn + 1}", prompt, order, (path,)))
    results = judge.ask_all(requests, partial(parse_ranks, num=len(systems)), desc="preference")
    names = [image for image in images for _ in range(repeats)]
    rankings = []
    for image, result in zip(names, results, strict=True):
        if result.value is not None:
            places = [result.request.systems.index(system) for system in systems]
            rankings.append((image, {name: [ranks[i] for i in places] for name, ranks in result.value.items()}))
    if not rankings:
        raise InputError(
            f"preference: no reply of {judge.config.model} is a ranking; the first is "
            f"{results[0].replies[-1].text[:80]!r}"
        )
    return PreferenceMetrics(
        ranks=aggregate(systems, rankings, seed=seed),
        images=len({image for image, _ in rankings}),
        rankings=len(rankings),
        malformed=tuple(result for result in results if result.value is None),
        results=tuple(results),
        spending=spending(results, judge.config),
    )


def make_prompt(descriptions: Sequence[str], instruction: str) -> str:
    """What the judge reads about descriptions, in the order given."""
    num = len(descriptions)
    return PROMPT.format(
        num=num,
        instruction=instruction,
        descriptions="\n\n".join(
            f'<description number="{number}">\n{text}\n</description>' for number, text in enumerate(descriptions, 1)
        ),
        criteria="\n".join(f"{name} - {meaning}" for name, meaning in CRITERIA.items()),
        example=", ".join(f'"{name}": [...]' for name in CRITERIA),
    )
