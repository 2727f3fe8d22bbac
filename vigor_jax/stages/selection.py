"""Which candidate of each image is taken, and what is left of it (ViGoR, section 3.3); pure functions of blocks.

`select.py` reads the blocks and writes what comes of them.
"""

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa

from vigor_jax.data.records.blocks import Block, Mentions, num_words, signal_sums, unpack
from vigor_jax.errors import InputError
from vigor_jax.records import DecidedBy, Dropped, Edit, Selection, Signal, Span, Verdict
from vigor_jax.rewards.boxed_phrases import BoxedPhrase, boxed_phrases
from vigor_jax.rewards.content import has_words
from vigor_jax.rewards.fusion import Choice, Moments, Scale, choose, per_unit
from vigor_jax.rewards.refine import Refined, drop, refine
from vigor_jax.rewards.sentences import split_sentences
from vigor_jax.stages.candidate_texts import CandidateTexts
from vigor_jax.stages.select_config import SelectConfig


def measure(config: SelectConfig, streams: Sequence[str], parts: Iterable[Iterable[Block]]) -> Scale:
    """Each stream's scale over all candidates of a run that are long enough.

    Args:
      config: settings.
      streams: whose verdicts count.
      parts: the run's blocks, part by part; the parts' statistics are merged in this order.
    """
    totals = Moments(len(streams)), Moments(len(streams))
    for part in parts:
        moments = Moments(len(streams)), Moments(len(streams))
        for block in part:
            texts = _texts(config, block, look=False)
            for kind, each in zip(("negative", "positive"), moments, strict=True):
                sums = _sums(config, block, texts, streams, kind) / per_unit(texts.sentences, config.fusion)
                each.add(sums[texts.has_words])
        for total, each in zip(totals, moments, strict=True):
            total.merge(each)
    return Scale.of(streams, *totals, config.fusion)


def select_block(
    config: SelectConfig, block: Block, scale: Scale, size_of: Callable[[str], tuple[int, int]] | None = None
) -> Iterator[Selection]:
    """What becomes of the candidates of each image of a block.

    Args:
      config: settings.
      block: candidates with the signals on them.
      scale: of the streams.
      size_of: gives width and height of an upright image in pixels, for boxes.
    """
    (rows, starts), streams = block, scale.streams
    texts = _texts(config, block, look=True)
    mentions = [Mentions(block.signals(stream)) for stream in streams]
    has_content = _has_content(block, texts, scale)
    choices = _choices(config, block, texts, has_content, scale)
    images, prompts = (rows.column(name).take(pa.array(starts[:-1])).to_pylist() for name in ("image", "prompt"))
    draws = [_random(config.seed, image, prompt) for image, prompt in zip(images, prompts, strict=True)]
    best = starts[:-1] + [choice.candidate for choice in choices]
    long_enough = [texts.has_words[start:end] for start, end in pairwise(starts)]
    drawn = starts[:-1] + [_draw(draw, each) for draw, each in zip(draws, long_enough, strict=True)]
    # Whose sentences are dropped, or counted that refinement would drop.
    refined_rows = drawn if config.strategy == "random" else best
    has_boxes = config.boxes == "text"
    signals = _Signals(streams, block, np.union1d(refined_rows, drawn) if has_boxes else refined_rows, boxes=has_boxes)
    num_mentions = np.stack([each.per_row for each in mentions], axis=1) if mentions else np.zeros((len(rows), 0), int)
    words, repeats = num_words(rows.column("text")), texts.repeats

    chosen_texts = rows.column("text").take(pa.array(refined_rows)).to_pylist()
    for group, (image, prompt, text, choice) in enumerate(zip(images, prompts, chosen_texts, choices, strict=True)):
        start, end, row = int(starts[group]), int(starts[group + 1]), int(refined_rows[group])
        decided_by: DecidedBy = choice.decided_by if config.strategy == "reward" else "random"
        verdicts = signals.verdicts(image, row, start)
        refined = _refine(config, text, verdicts, _boxed(verdicts, image, size_of) if has_boxes else None)
        if config.strategy == "random_drop":
            num_kept = len(split_sentences(text)) - len(refined.dropped)
            row = int(drawn[group])
            text = rows.column("text")[row].as_py()
            boxed = _boxed(signals.verdicts(image, row, start), image, size_of) if has_boxes else None
            refined = _drop_at_random(text, num_kept, draws[group], boxed)
        yield Selection(
            image=image,
            prompt=prompt,
            candidate=row - start,
            decided_by=decided_by,
            penalties=choice.penalties,
            stream_penalties=choice.terms,
            text=text,
            dropped=refined.dropped,
            refined=refined.text,
            reason=_reason(config, text, refined),
            decisive_stream=choice.decisive_stream if config.strategy == "reward" else "",
            words=tuple(words[start:end].tolist()),
            mentions=tuple(map(tuple, num_mentions[start:end].tolist())),
            refined_mentions=tuple(each.left(row, refined.dropped) for each in mentions),
            has_content=tuple(has_content[start:end].tolist()),
            repeats=tuple(repeats[start:end].tolist()),
            repaired=refined.repaired,
        )


def _has_content(block: Block, texts: CandidateTexts, scale: Scale) -> np.ndarray:
    """Which candidates say anything that counts, bool [R]: words enough, and something that a stream judges.

    A stream that never says what is right may be silent because nothing is wrong, so its silence tells nothing.
    """
    telling = [stream for stream, factor in zip(scale.streams, scale.positive, strict=True) if factor > 0]
    judged = [np.diff(unpack(block.signals(stream))[1]) > 0 for stream in telling]
    return texts.has_words & (np.any(judged, axis=0) if judged else True)


def _choices(
    config: SelectConfig, block: Block, texts: CandidateTexts, has_content: np.ndarray, scale: Scale
) -> list[Choice]:
    logprobs = block.rows.column("mean_logprob").to_numpy(zero_copy_only=False)
    if (wrong := np.flatnonzero(np.isnan(logprobs))).size:
        raise InputError(f"{block.name(int(wrong[0]))}: expected a number as mean_logprob, got nan; sample it again")
    negatives, positives = (_sums(config, block, texts, scale.streams, kind) for kind in ("negative", "positive"))
    repeats = texts.repeats if config.repetitions == "once" else None
    return choose(
        negatives,
        positives,
        logprobs,
        texts.sentences,
        block.starts,
        scale,
        config.fusion,
        has_content=has_content,
        repeats=repeats,
    )


def _boxed(
    verdicts: Sequence[Verdict], image: str, size_of: Callable[[str], tuple[int, int]] | None
) -> list[BoxedPhrase]:
    """The boxes for a text; images of which nothing was found are not looked at."""
    assert size_of
    has_found = any(signal.boxes_xyxy and not signal.absent for verdict in verdicts for signal in verdict.signals)
    return boxed_phrases(verdicts, size_of(image)) if has_found else []


def _refine(
    config: SelectConfig, text: str, verdicts: Sequence[Verdict], boxes: Sequence[BoxedPhrase] | None
) -> Refined:
    if config.refine == "none":
        return refine(text, (), boxes=boxes)
    return refine(
        text,
        verdicts,
        drop_continuations=config.continuations == "drop",
        drop_repetitions=config.repetitions == "once",
        repair=config.refine == "repair",
        claims=config.claims,
        boxes=boxes,
    )


def _reason(config: SelectConfig, text: str, refined: Refined) -> str:
    """Why an image gives no target; "" if it gives one."""
    if not text.strip():
        return "the response is empty"
    if not has_words(text, config.min_words):
        return f"the response has fewer than {config.min_words} words"
    if not refined.text and config.strategy == "random_drop":
        return "as many sentences are kept as refinement would keep, which is none"
    if not refined.text:
        is_plain = all(dropped.reason.startswith("mentions ") for dropped in refined.dropped)
        return "every sentence mentions something that is not there" if is_plain else "refinement leaves no sentence"
    if not has_words(refined.text, config.min_words):
        return f"what is left of the response has fewer than {config.min_words} words"
    return ""


class _Signals:
    """The signals of some rows that say that something is not there, and if asked to those that have boxes."""

    def __init__(self, streams: Sequence[str], block: Block, rows: np.ndarray, *, boxes: bool) -> None:
        is_wanted = np.zeros(block.rows.num_rows, bool)
        is_wanted[rows] = True
        self._by_row: dict[int, dict[str, list[Signal]]] = {}
        for stream in streams:
            signals, offsets = unpack(block.signals(stream))
            owners = np.repeat(np.arange(block.rows.num_rows), np.diff(offsets))
            counts = signals.field("absent").to_numpy(zero_copy_only=False)
            if boxes:
                counts = counts | (np.diff(unpack(signals.field("boxes_xyxy"))[1]) > 0)
            found = np.flatnonzero(counts & is_wanted[owners])
            for owner, values in zip(owners[found].tolist(), signals.take(pa.array(found)).to_pylist(), strict=True):
                values["spans"] = tuple(Span(**span) for span in values["spans"])
                values["edits"] = tuple(Edit(Span(**edit["span"]), edit["text"]) for edit in values["edits"])
                values["boxes_xyxy"] = tuple(map(tuple, values.get("boxes_xyxy", ())))
                self._by_row.setdefault(owner, {}).setdefault(stream, []).append(Signal(**values))

    def verdicts(self, image: str, row: int, start: int) -> list[Verdict]:
        """One a stream that has such signals on the row; `start` is the row of the image's first candidate."""
        found = self._by_row.get(row, {})
        return [Verdict(image, row - start, stream, tuple(signals)) for stream, signals in found.items()]


def _random(seed: int, image: str, prompt: str) -> random.Random:
    """A separate draw for each image and prompt, so that parts and processes do not matter."""
    digest = hashlib.blake2b(json.dumps([seed, image, prompt]).encode(), digest_size=16).digest()
    return random.Random(int.from_bytes(digest))


def _draw(draw: random.Random, long_enough: np.ndarray) -> int:
    """Any of an image's candidates that are long enough, or any at all where none is."""
    candidates = np.flatnonzero(long_enough if long_enough.any() else ~long_enough)
    return int(candidates[draw.randrange(len(candidates))])


def _drop_at_random(text: str, num_kept: int, draw: random.Random, boxes: Sequence[BoxedPhrase] | None) -> Refined:
    sentences = split_sentences(text)
    kept = set(draw.sample(range(len(sentences)), min(num_kept, len(sentences))))
    dropped = tuple(Dropped(span, "left out at random") for i, span in enumerate(sentences) if i not in kept)
    return drop(text, sentences, dropped, {}, boxes)


def _texts(config: SelectConfig, block: Block, *, look: bool) -> CandidateTexts:
    return CandidateTexts.of(block, config.fusion, config.min_words, config.repetitions, look=look)


def _sums(config: SelectConfig, block: Block, texts: CandidateTexts, streams: Sequence[str], kind: str) -> np.ndarray:
    is_once = config.repetitions == "once" and kind == "positive"
    return signal_sums(block, streams, kind, texts.repeated if is_once else {})
