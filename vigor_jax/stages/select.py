"""Candidates and verdicts to targets: fuse, choose, refine (ViGoR, section 3.3); and two controls that do not look.

The first pass takes each stream's variance over all candidates of the run, the second one chooses. Both go over
Parquet columns in numpy, a row group at a time; only what is chosen becomes Python objects.
"""

import dataclasses
import hashlib
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal, Self

import numpy as np
import pyarrow as pa

from vigor_jax import fingerprint
from vigor_jax.data.records import store
from vigor_jax.data.records.blocks import Block, Mentions, num_words, read_blocks, signal_sums, unpack
from vigor_jax.data.records.checksum import SUFFIX, write_checksum
from vigor_jax.data.records.seal import Seal
from vigor_jax.errors import InputError
from vigor_jax.records import DecidedBy, Dropped, Selection, Signal, Span, Target, Verdict
from vigor_jax.rewards.content import has_words
from vigor_jax.rewards.fusion import Choice, FusionConfig, Moments, Scale, choose, per_unit
from vigor_jax.rewards.refine import Refined, keep_sentences, refine
from vigor_jax.rewards.sentences import split_sentences
from vigor_jax.stages.candidate_texts import CandidateTexts, Repetitions
from vigor_jax.stages.selection_summary import Summary, summarize
from vigor_jax.stages.stage import TARGETS, Progress, Result, RunContext, Stage

__all__ = ["OtherPartsError", "SelectConfig", "Summary", "select"]


class OtherPartsError(InputError):
    """The existing selections were made of other candidates or verdicts than the present ones."""


@dataclasses.dataclass(frozen=True)
class SelectConfig:
    """How targets are made of candidates.

    Attributes:
      strategy: "reward" takes the candidate of the lowest penalty. The controls take a random one, whatever the streams
        say: "random", and "random_drop" without randomly chosen sentences, so that as many are left as refinement
        leaves of the candidate of the lowest penalty (all, if it has fewer).
      min_words: least length of a response, and of what is left of it. A shorter candidate loses to any that is longer,
        the controls do not draw it, and the variances leave it out; where all are shorter the image gives no target.
      refine: whether sentences that mention what is not there are left out; "random_drop" only counts them.
      continuations: whether refinement also drops sentences that only continue one that it leaves out ("It is red.").
        The paper keeps them.
      repetitions: "count" takes a sentence that a candidate repeats word for word as a sentence like any other; with
        "once" it earns nothing again: its positive signals do not count, nor does it among the sentences of
        `fusion.per`, while its negative ones do; ties go to whoever repeats less, and refinement leaves it out.
      seed: of the controls; a draw depends on it, the image and the prompt only.
      fusion: how the streams' signals become one penalty.
    """

    strategy: Literal["reward", "random", "random_drop"] = "reward"
    min_words: int = 2
    refine: bool = True
    continuations: Literal["drop", "keep"] = "drop"
    repetitions: Repetitions = "count"
    seed: int = 0
    fusion: FusionConfig = dataclasses.field(default_factory=FusionConfig)

    def __post_init__(self) -> None:
        if self.min_words < 0:
            raise InputError(f"select.min_words: expected 0 or more, got {self.min_words}")


def select(
    config: SelectConfig,
    run_dir: str | Path,
    *,
    streams: Sequence[str],
    process_index: int = 0,
    process_count: int = 1,
    barrier: Callable[[], None] = lambda: None,
    made_with: str = "",
) -> Summary | None:
    """Makes `selections/`, `targets/`, `targets.json` and `summary.json` of `candidates/` and `verdicts/STREAM/`.

    Existing parts are kept, so the same call continues where a killed one stopped. Each process takes the
    variances of the whole run (a few columns of every part), for they must agree to the bit; parts are divided by their
    index.

    Args:
      config: settings.
      run_dir: local or remote.
      streams: whose verdicts count; the order is that of the columns in the selections.
      process_index: of this process.
      process_count: of all.
      barrier: returns when all processes have called it.
      made_with: names the settings, for the parts' seals.

    Returns:
      What was done, on process 0, which also prints it; None on the others.

    Raises:
      InputError: parts are missing, do not fit each other, hold a signal that is no finite number of 0 or more, or the
        the existing selections were made with other settings.
      OtherPartsError: they were made of other parts.
    """
    if config.strategy == "reward" and not streams:
        raise InputError("select: expected at least one stream to select by, got none; name one, or use a control")
    sources = _Sources.of(run_dir, streams)
    count = sources.count
    selections, targets = store.join(run_dir, "selections"), store.join(run_dir, "targets")
    metadata, made_of = _made_from(config, sources)
    selected, targeted = _check_settings(selections, metadata), _check_settings(targets, metadata)
    _check_made_of(selections, selected, made_of)

    own = set(range(process_index, count, process_count))
    if to_do := sorted(own - store.parts_done(selections, count)):
        scale = _scale(config, sources)
        for index in to_do:
            chosen = _select_part(config, sources, index, scale)
            seals = {"made_with": made_with, "made_of": made_of}
            store.write_part(selections, index, count, chosen, Selection, metadata, **seals)
    for index in sorted(own):
        digest = store.part_seal(selections, index, count).digest
        if index not in targeted or targeted[index].made_of not in ("", digest):
            seals = {"made_with": made_with, "made_of": digest}
            store.write_part(targets, index, count, _targets(selections, index, count), Target, metadata, **seals)
    barrier()
    if process_index:
        return None
    _write_targets_json(store.join(run_dir, "targets.json"), targets)
    write_checksum(store.join(run_dir, "targets.json"))
    summary = summarize(selections, streams)
    with store.write_atomically(store.join(run_dir, "summary.json")) as file:
        file.write(json.dumps(dataclasses.asdict(summary), indent=2, ensure_ascii=False).encode() + b"\n")
    print(summary.table())
    return summary


@dataclasses.dataclass(frozen=True)
class _Sources:
    """Where the candidates are and, by stream, the verdicts on them; all in as many parts."""

    candidates: str
    verdicts: dict[str, str]
    count: int

    @classmethod
    def of(cls, run_dir: str | Path, streams: Sequence[str]) -> Self:
        candidates = store.join(run_dir, "candidates")
        verdicts = {stream: store.join(run_dir, "verdicts", stream) for stream in streams}
        count = store.count_parts(candidates)
        for folder in verdicts.values():
            if (found := store.count_parts(folder)) != count:
                raise InputError(f"{folder}: expected {count} parts, as {candidates} has, got {found}; score again")
        return cls(candidates, verdicts, count)

    @property
    def streams(self) -> tuple[str, ...]:
        return tuple(self.verdicts)

    def blocks(self, index: int, columns: Sequence[str], fields: Sequence[str]) -> Iterator[Block]:
        return read_blocks(self.candidates, self.verdicts, index, self.count, columns=columns, fields=fields)


def _made_from(config: SelectConfig, sources: _Sources) -> tuple[dict[str, str], str]:
    """All that a selection depends on, kept in its parts: the settings, and a name of the parts it is made of: of all
    of them, since the variances are."""
    parts = [store.inspect_parts(folder) for folder in (sources.candidates, *sources.verdicts.values())]
    made_from = [each.metadata for each in parts]
    settings = {"settings": dataclasses.asdict(config), "streams": sources.streams, "made_from": made_from}
    digests = [[each.seals[index].digest for index in range(sources.count)] for each in parts]
    made_of = hashlib.sha256(json.dumps(digests).encode()).hexdigest()
    return {key: json.dumps(value, sort_keys=True) for key, value in settings.items()}, made_of


def _check_made_of(folder: str, seals: Mapping[int, Seal], made_of: str) -> None:
    for seal in seals.values():
        if seal.made_of not in ("", made_of):
            path = store.join(folder, seal.part)
            raise OtherPartsError(f"{path} was made of other candidates or verdicts than those that are there now")


def _check_settings(folder: str, metadata: Mapping[str, str]) -> dict[int, Seal]:
    """The seals of the parts of a folder, which were made with these settings."""
    found, seals = store.inspect_parts(folder)
    then, now = ({key: json.loads(value) for key, value in each.items()} for each in (found, metadata))
    if found and (what := next(fingerprint.differences(then, now), None)):
        raise InputError(
            f"{folder} was made with {what}; go back to that, choose another run.dir, or give --run.overwrite true to "
            "make it again"
        )
    return seals


# Pass 1


def _scale(config: SelectConfig, sources: _Sources) -> Scale:
    """Of all candidates of the run that are long enough; the parts' statistics are merged in the order of the parts."""
    streams = sources.streams
    totals = Moments(len(streams)), Moments(len(streams))
    fields = ["negative", "positive", *(["spans"] if config.repetitions == "once" else [])]
    for index in range(sources.count):
        moments = Moments(len(streams)), Moments(len(streams))
        for block in sources.blocks(index, ["text"], fields):
            texts = _texts(config, block, look=False)
            for kind, each in zip(("negative", "positive"), moments, strict=True):
                sums = _sums(config, block, texts, streams, kind) / per_unit(texts.sentences, config.fusion)
                each.add(sums[texts.has_words])
        for total, each in zip(totals, moments, strict=True):
            total.merge(each)
    return Scale.of(streams, *totals, config.fusion)


def _texts(config: SelectConfig, block: Block, *, look: bool) -> CandidateTexts:
    return CandidateTexts.of(block, config.fusion, config.min_words, config.repetitions, look=look)


def _sums(config: SelectConfig, block: Block, texts: CandidateTexts, streams: Sequence[str], kind: str) -> np.ndarray:
    is_once = config.repetitions == "once" and kind == "positive"
    return signal_sums(block, streams, kind, texts.repeated if is_once else {})


# Pass 2


def _select_part(config: SelectConfig, sources: _Sources, index: int, scale: Scale) -> Iterator[Selection]:
    fields = ["label", "spans", "negative", "positive", "score", "absent", "denied"]
    for block in sources.blocks(index, ["text", "mean_logprob"], fields):
        yield from _select_block(config, block, scale)


def _select_block(config: SelectConfig, block: Block, scale: Scale) -> Iterator[Selection]:
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
    absent = _Absent(streams, block, refined_rows)
    num_mentions = np.stack([each.per_row for each in mentions], axis=1) if mentions else np.zeros((len(rows), 0), int)
    words, repeats = num_words(rows.column("text")), texts.repeats

    chosen_texts = rows.column("text").take(pa.array(refined_rows)).to_pylist()
    for group, (image, prompt, text, choice) in enumerate(zip(images, prompts, chosen_texts, choices, strict=True)):
        start, end, row = int(starts[group]), int(starts[group + 1]), int(refined_rows[group])
        decided_by: DecidedBy = choice.decided_by if config.strategy == "reward" else "random"
        refined = _refine(config, text, absent.verdicts(image, row, start))
        if config.strategy == "random_drop":
            num_kept = len(split_sentences(text)) - len(refined.dropped)
            row = int(drawn[group])
            text = rows.column("text")[row].as_py()
            refined = _drop_at_random(text, num_kept, draws[group])
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


def _refine(config: SelectConfig, text: str, verdicts: Sequence[Verdict]) -> Refined:
    if not config.refine:
        return Refined(text.strip(), ())
    return refine(
        text,
        verdicts,
        drop_continuations=config.continuations == "drop",
        drop_repetitions=config.repetitions == "once",
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


class _Absent:
    """The signals of some rows that say that something is not there."""

    def __init__(self, streams: Sequence[str], block: Block, rows: np.ndarray) -> None:
        is_wanted = np.zeros(block.rows.num_rows, bool)
        is_wanted[rows] = True
        self._by_row: dict[int, dict[str, list[Signal]]] = {}
        for stream in streams:
            signals, offsets = unpack(block.signals(stream))
            owners = np.repeat(np.arange(block.rows.num_rows), np.diff(offsets))
            found = np.flatnonzero(signals.field("absent").to_numpy(zero_copy_only=False) & is_wanted[owners])
            for owner, values in zip(owners[found].tolist(), signals.take(pa.array(found)).to_pylist(), strict=True):
                spans = tuple(Span(**span) for span in values.pop("spans"))
                self._by_row.setdefault(owner, {}).setdefault(stream, []).append(Signal(**values, spans=spans))

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


def _drop_at_random(text: str, num_kept: int, draw: random.Random) -> Refined:
    sentences = split_sentences(text)
    kept = set(draw.sample(range(len(sentences)), min(num_kept, len(sentences))))
    dropped = tuple(Dropped(span, "left out at random") for i, span in enumerate(sentences) if i not in kept)
    return Refined(keep_sentences(text, sentences, [i in kept for i in range(len(sentences))]), dropped)


# Results


def _targets(selections: str, index: int, count: int) -> Iterator[Target]:
    for batch in store.read_batches(selections, index, count, columns=["image", "prompt", "refined", "reason"]):
        for row in batch.to_pylist():
            if not row["reason"]:
                yield Target(row["image"], row["prompt"], row["refined"])


def _write_targets_json(path: str, targets: str) -> None:
    """In the format of LLaVA's training code; the image's path is the id."""
    with store.write_atomically(path) as file:
        separator = b"["
        for target in store.read_parts(targets, Target):
            turns = [{"from": "human", "value": f"<image>\n{target.prompt}"}, {"from": "gpt", "value": target.text}]
            example = {"id": target.image, "image": target.image, "conversations": turns}
            file.write(separator + b"\n" + json.dumps(example, ensure_ascii=False).encode())
            separator = b","
        file.write(b"[]\n" if separator == b"[" else b"\n]\n")


class SelectStage(Stage):
    """Candidates and verdicts → targets.

    Args:
      config: settings.
      streams: name of each stream → the result that its verdicts are.

    Raises:
      InputError: the settings name streams that do not judge.
    """

    name = "select"

    def __init__(self, config: SelectConfig, streams: Mapping[str, str]) -> None:
        config.fusion.check_streams(tuple(streams))
        self._config, self._streams = config, streams

    def results(self, context: RunContext) -> list[Result]:
        written = ("selections", "targets", TARGETS, TARGETS + SUFFIX, "summary.json")
        outputs = tuple(store.join(context.records, name) for name in written)
        after = ("sample", *self._streams.values())
        return [Result(self.name, fingerprint.of(self._config, self.name), after, outputs)]

    def run(self, context: RunContext, progress: Progress) -> None:
        progress.begin(self.name)
        try:
            self._select(context, progress)
        except OtherPartsError as error:
            progress.make_again(self.name, str(error))
            progress.begin(self.name)
            self._select(context, progress)

    def _select(self, context: RunContext, progress: Progress) -> None:
        select(
            self._config,
            context.records,
            streams=tuple(self._streams),
            barrier=lambda: progress.barrier("targets"),
            made_with=progress.mark(self.name),
            **context.share,
        )
