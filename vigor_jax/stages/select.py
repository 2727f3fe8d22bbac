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

from vigor_jax.data import store
from vigor_jax.data.blocks import Block, Mentions, num_words, read_blocks, signal_sums, unpack
from vigor_jax.data.checksum import write_checksum
from vigor_jax.data.seal import Seal
from vigor_jax.errors import InputError
from vigor_jax.records import DecidedBy, Dropped, Selection, Signal, Span, Target, Verdict
from vigor_jax.rewards.fusion import Choice, FusionConfig, Moments, Scale, choose, per_unit
from vigor_jax.rewards.refine import Refined, keep_sentences, refine
from vigor_jax.rewards.sentences import split_sentences
from vigor_jax.stages.selection_summary import Summary, summarize

__all__ = ["OtherPartsError", "SelectConfig", "Summary", "select"]


class OtherPartsError(InputError):
    """Selections that are there were made of other candidates or verdicts than those that are there now."""


@dataclasses.dataclass(frozen=True)
class SelectConfig:
    """How targets are made of candidates.

    Attributes:
      strategy: "reward" takes the candidate of the lowest penalty. The controls take a random one, whatever the streams
        say: "random", and "random_drop" without randomly chosen sentences, so that as many are left as refinement
        leaves of the candidate of the lowest penalty (all, if it has fewer).
      refine: whether sentences that mention what is not there are left out; "random_drop" only counts them.
      seed: of the controls; a draw depends on it, the image and the prompt only.
      fusion: how the streams' signals become one penalty.
    """

    strategy: Literal["reward", "random", "random_drop"] = "reward"
    refine: bool = True
    seed: int = 0
    fusion: FusionConfig = dataclasses.field(default_factory=FusionConfig)


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

    Parts that are there are kept, so the same call goes on where a killed one stopped. Each process takes the variances
    of the whole run (a few columns of every part), for they must agree to the bit; parts are divided by their index.

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
        selections that are there were made with other settings.
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
        scale = _scale(config.fusion, sources)
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
    if found and found != metadata:
        key = min(key for key in {**found, **metadata} if found.get(key) != metadata.get(key))
        raise InputError(
            f"{folder}: has parts whose {key} was {found.get(key)}, and now it is {metadata.get(key)}; go back to "
            "that, choose another run.dir, or give --run.overwrite true to make them again"
        )
    return seals


# Pass 1


def _scale(config: FusionConfig, sources: _Sources) -> Scale:
    """Of all candidates of the run; the parts' statistics are merged in the order of the parts."""
    streams = sources.streams
    totals = Moments(len(streams)), Moments(len(streams))
    columns = ["text"] if config.per == "sentence" else []
    for index in range(sources.count):
        moments = Moments(len(streams)), Moments(len(streams))
        for block in sources.blocks(index, columns, ["negative", "positive"]):
            per = per_unit(_num_sentences(block, config), config)
            for kind, each in zip(("negative", "positive"), moments, strict=True):
                each.add(signal_sums(block, streams, kind) / per)
        for total, each in zip(totals, moments, strict=True):
            total.merge(each)
    return Scale.of(streams, *totals, config)


def _num_sentences(block: Block, config: FusionConfig) -> np.ndarray:
    """Sentences of each candidate, int [R]; not counted where nothing depends on them."""
    if config.per == "caption":
        return np.ones(block.rows.num_rows, np.int64)
    return np.array([len(split_sentences(text)) for text in block.rows.column("text").to_pylist()])


# Pass 2


def _select_part(config: SelectConfig, sources: _Sources, index: int, scale: Scale) -> Iterator[Selection]:
    fields = ["label", "spans", "negative", "positive", "score", "absent"]
    for block in sources.blocks(index, ["text", "mean_logprob"], fields):
        yield from _select_block(config, block, scale)


def _select_block(config: SelectConfig, block: Block, scale: Scale) -> Iterator[Selection]:
    (rows, starts), streams = block, scale.streams
    choices = _choices(config.fusion, block, scale)
    images, prompts = (rows.column(name).take(pa.array(starts[:-1])).to_pylist() for name in ("image", "prompt"))
    draws = [_random(config.seed, image, prompt) for image, prompt in zip(images, prompts, strict=True)]
    best = starts[:-1] + [choice.candidate for choice in choices]
    drawn = np.array([draw.randrange(start, end) for draw, (start, end) in zip(draws, pairwise(starts), strict=True)])
    # Whose sentences are struck, or counted that refinement would strike.
    refined_rows = drawn if config.strategy == "random" else best
    absent = _Absent(streams, block, refined_rows)
    mentions = [Mentions(block.signals(stream)) for stream in streams]
    num_mentions = np.stack([each.per_row for each in mentions], axis=1) if mentions else np.zeros((len(rows), 0), int)
    words = num_words(rows.column("text"))

    texts = rows.column("text").take(pa.array(refined_rows)).to_pylist()
    for group, (image, prompt, text, choice) in enumerate(zip(images, prompts, texts, choices, strict=True)):
        start, end, row = int(starts[group]), int(starts[group + 1]), int(refined_rows[group])
        decided_by: DecidedBy = choice.decided_by if config.strategy == "reward" else "random"
        refined = refine(text, absent.verdicts(image, row, start)) if config.refine else Refined(text.strip(), ())
        reason = "every sentence mentions something that is not there"
        if config.strategy == "random_drop":
            num_kept = len(split_sentences(text)) - len(refined.dropped)
            row = int(drawn[group])
            text = rows.column("text")[row].as_py()
            refined = _drop_at_random(text, num_kept, draws[group])
            reason = "as many sentences are kept as refinement would keep, which is none"
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
            reason="" if refined.text else reason if text.strip() else "the response is empty",
            decisive_stream=choice.decisive_stream if config.strategy == "reward" else "",
            words=tuple(words[start:end].tolist()),
            mentions=tuple(map(tuple, num_mentions[start:end].tolist())),
            refined_mentions=tuple(each.left(row, refined.dropped) for each in mentions),
        )


def _choices(config: FusionConfig, block: Block, scale: Scale) -> list[Choice]:
    logprobs = block.rows.column("mean_logprob").to_numpy(zero_copy_only=False)
    if (wrong := np.flatnonzero(np.isnan(logprobs))).size:
        raise InputError(f"{block.name(int(wrong[0]))}: expected a number as mean_logprob, got nan; sample it again")
    negatives, positives = (signal_sums(block, scale.streams, kind) for kind in ("negative", "positive"))
    return choose(negatives, positives, logprobs, _num_sentences(block, config), block.starts, scale, config)


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
    """A draw of its own for each image and prompt, so that parts and processes do not matter."""
    digest = hashlib.blake2b(json.dumps([seed, image, prompt]).encode(), digest_size=16).digest()
    return random.Random(int.from_bytes(digest))


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
