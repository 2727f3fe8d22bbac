"""Preferences of the candidates that a run has sampled, by the penalties of its selection; no device needed."""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from vigor_jax.data.records import store
from vigor_jax.errors import InputError
from vigor_jax.records import Candidate, Preference, Selection, Verdict
from vigor_jax.rewards.fusion import TIE
from vigor_jax.stages.pair_config import PairConfig
from vigor_jax.stages.pair_records import Pairing, counts, errors_of, length_ratio

# Why a candidate, or an image, gave no pair.
NO_TARGET, NOT_REFINED, ONE_ONLY = "image without a target", "nothing refined", "image with one candidate"
EQUAL, EMPTY, NO_WORSE, MARGIN, LENGTHS = "equal texts", "empty texts", "no higher penalty", "margin", "lengths"
NO_CONTENT = "candidate without content"


def pair_part(
    config: PairConfig, records: str | Path, index: int, count: int, streams: Sequence[str]
) -> Iterator[tuple[Pairing, list[Preference]]]:
    """What each image of a part gives, in the order of its selections.

    Args:
      config: settings.
      records: has candidates, verdicts and selections.
      index: of the part.
      count: of all parts.
      streams: whose verdicts say what is wrong with rejected texts.

    Raises:
      InputError: the selections are of other candidates.
    """
    candidates = store.read_part(store.join(records, "candidates"), index, count, Candidate)
    verdicts = {name: store.read_part(store.join(records, "verdicts", name), index, count, Verdict) for name in streams}
    for selection in store.read_part(store.join(records, "selections"), index, count, Selection):
        number = len(selection.penalties)
        own = list(itertools.islice(candidates, number))
        said = [
            dict(zip(verdicts, some, strict=True))
            for some in zip(*(itertools.islice(each, number) for each in verdicts.values()), strict=True)
        ]
        named = {(candidate.image, candidate.prompt) for candidate in own} | {(selection.image, selection.prompt)}
        if len(own) != number or len(named) > 1 or own[selection.candidate].text != selection.text:
            raise InputError(
                f"{store.join(records, 'selections', store.part_name(index, count))}: the selection of image "
                f"{selection.image} is of other candidates than those that are there; run the stage select again"
            )
        yield pair_image(config, selection, [candidate.text for candidate in own], said)


def pair_image(
    config: PairConfig, selection: Selection, texts: Sequence[str], verdicts: Sequence[Mapping[str, Verdict]]
) -> tuple[Pairing, list[Preference]]:
    """The preferences of one image.

    Args:
      config: settings.
      selection: of the image.
      texts: its candidates.
      verdicts: of the streams on each; none if there are no streams.
    """
    left_out = Counter[str]()
    chosen = selection.text if config.chosen == "best" else selection.refined
    rejected: Sequence[int] = ()
    preferences: list[Preference] = []
    if config.all_ranked:
        chosen = selection.text
        ranked = _distinct(_with_content(selection, left_out), texts, left_out)
        if _differ(config, selection.penalties, ranked, left_out):
            rejected = [max(ranked, key=lambda index: selection.penalties[index])]
            ratings = tuple(-selection.penalties[index] for index in ranked)
            responses = tuple(texts[index] for index in ranked)
            preferences.append(Preference(selection.image, selection.prompt, responses, ratings))
    elif config.chosen == "refined" and selection.reason:
        left_out[NO_TARGET] += 1
    elif config.rejected == "unrefined":
        if not (selection.dropped or selection.repaired):
            left_out[NOT_REFINED] += 1
        elif chosen.strip() == selection.text.strip():
            left_out[EQUAL] += 1
        elif length_ratio(chosen, selection.text) < config.match_lengths:
            left_out[LENGTHS] += 1
        else:
            rejected = [selection.candidate]
    elif not chosen.strip():
        left_out[EMPTY] += 1
    else:
        rejected = _worst(config, selection, texts, chosen, left_out)
    if not config.all_ranked:
        for index in rejected:
            responses = chosen, texts[index]
            preferences.append(Preference(selection.image, selection.prompt, responses, (1.0, 0.0)))
    errors = Counter(kind for index in rejected if verdicts for kind in errors_of(verdicts[index]))
    pairing = Pairing(
        image=selection.image,
        prompt=selection.prompt,
        text=chosen,
        sentences=(),
        ended="",
        pairs=len(preferences),
        left_out=counts(left_out),
        errors=counts(errors),
    )
    return pairing, preferences


def _worst(
    config: PairConfig, selection: Selection, texts: Sequence[str], chosen: str, left_out: Counter[str]
) -> list[int]:
    """The candidates to reject: the worst ones, or of those that are worse the nearest in length."""
    penalties, own = selection.penalties, selection.candidate
    others = sorted((index for index in range(len(texts)) if index != own), key=lambda index: -penalties[index])
    left_out[ONE_ONLY] += not others
    found = []
    for index in _distinct(others, texts, left_out, {chosen.strip()}):
        difference = penalties[index] - penalties[own]
        if difference <= _tie(penalties):
            left_out[NO_WORSE] += 1
        elif difference < config.margin:
            left_out[MARGIN] += 1
        elif length_ratio(chosen, texts[index]) < config.match_lengths:
            left_out[LENGTHS] += 1
        else:
            found.append(index)
    if config.match_lengths:
        found.sort(key=lambda index: -length_ratio(chosen, texts[index]))
    return found[: config.per_image]


def _with_content(selection: Selection, left_out: Counter[str]) -> list[int]:
    """Candidates that say anything that counts: one that says nothing has no penalty, and would be rated best."""
    has_content = selection.has_content or (True,) * len(selection.penalties)
    left_out[NO_CONTENT] += has_content.count(False)
    return [index for index, has in enumerate(has_content) if has]


def _distinct(
    indices: Sequence[int], texts: Sequence[str], left_out: Counter[str], seen: set[str] | None = None
) -> list[int]:
    """Those whose texts are not empty, and each text once."""
    seen, found = set(seen or ()), []
    for index in indices:
        text = texts[index].strip()
        if not text:
            left_out[EMPTY] += 1
        elif text in seen:
            left_out[EQUAL] += 1
        else:
            found.append(index)
        seen.add(text)
    return found


def _differ(config: PairConfig, penalties: Sequence[float], ranked: Sequence[int], left_out: Counter[str]) -> bool:
    """Whether the best and the worst of some candidates are far enough apart."""
    if len(penalties) < 2:
        left_out[ONE_ONLY] += 1
    if len(ranked) < 2:
        return False
    own = [penalties[index] for index in ranked]
    difference = max(own) - min(own)
    reason = NO_WORSE if difference <= _tie(penalties) else MARGIN if difference < config.margin else ""
    if reason:
        left_out[reason] += 1
    return not reason


def _tie(penalties: Sequence[float]) -> float:
    return TIE * max(map(abs, penalties))
