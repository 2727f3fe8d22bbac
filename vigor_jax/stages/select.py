"""Candidates and verdicts to targets: fuse, choose, refine (ViGoR, section 3.3); and two controls that do not look.

The first pass takes each stream's variance over all candidates of the run, the second one chooses. Both go over
Parquet columns in numpy, a row group at a time; only what is chosen becomes Python objects.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

from vigor_jax import fingerprint
from vigor_jax.data.images.preprocessing import load_image
from vigor_jax.data.images.store import open_images
from vigor_jax.data.records import store
from vigor_jax.data.records.blocks import Block, read_blocks
from vigor_jax.data.records.checksum import SUFFIX, write_checksum
from vigor_jax.data.records.seal import Seal
from vigor_jax.errors import InputError
from vigor_jax.records import Selection, Target
from vigor_jax.rewards.fusion import Scale
from vigor_jax.stages.select_config import SelectConfig
from vigor_jax.stages.selection import measure, select_block
from vigor_jax.stages.selection_summary import Summary, summarize
from vigor_jax.stages.stage import TARGETS, Progress, Result, RunContext, Stage

__all__ = ["OtherPartsError", "SelectConfig", "Summary", "select"]


class OtherPartsError(InputError):
    """The existing selections were made of other candidates or verdicts than the present ones."""


def select(
    config: SelectConfig,
    run_dir: str | Path,
    *,
    streams: Sequence[str],
    process_index: int = 0,
    process_count: int = 1,
    barrier: Callable[[], None] = lambda: None,
    made_with: str = "",
    images: str | Path | None = None,
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
      images: where the images are, which boxes need, for they are relative to the square around an image.

    Returns:
      What was done, on process 0, which also prints it; None on the others.

    Raises:
      InputError: parts are missing, do not fit each other, hold a signal that is no finite number of 0 or more, or the
        the existing selections were made with other settings.
      OtherPartsError: they were made of other parts.
    """
    if config.boxes == "text" and images is None:
        raise InputError("select.boxes text needs the images' sizes, and sample.images is not given; name the folder")
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
        scale = measure(config, sources.streams, _blocks_to_measure(config, sources))
        size_of = _sizes(images) if config.boxes == "text" and images is not None else None
        for index in to_do:
            chosen = _select_part(config, sources, index, scale, size_of)
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


def _blocks_to_measure(config: SelectConfig, sources: _Sources) -> Iterator[Iterator[Block]]:
    fields = ["negative", "positive", *(["spans"] if config.repetitions == "once" else [])]
    return (sources.blocks(index, ["text"], fields) for index in range(sources.count))


def _sizes(images: str | Path) -> Callable[[str], tuple[int, int]]:
    """Gives width and height of an image, upright, as the models see it."""
    opened = open_images(images)

    def size_of(image: str) -> tuple[int, int]:
        if image not in opened:
            raise InputError(f"select: {opened.file(image)} has candidates and is gone; put it back, or sample again")
        return load_image(opened.file(image)).size

    return size_of


def _select_part(
    config: SelectConfig,
    sources: _Sources,
    index: int,
    scale: Scale,
    size_of: Callable[[str], tuple[int, int]] | None,
) -> Iterator[Selection]:
    fields = ["label", "spans", "negative", "positive", "score", "absent", "denied", "kind", "edits"]
    fields += ["boxes_xyxy"] if size_of else []
    for block in sources.blocks(index, ["text", "mean_logprob"], fields):
        yield from select_block(config, block, scale, size_of)


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
      images: where the images are.

    Raises:
      InputError: the settings name streams that do not judge.
    """

    name = "select"

    def __init__(self, config: SelectConfig, streams: Mapping[str, str], images: str | None = None) -> None:
        config.fusion.check_streams(tuple(streams))
        self._config, self._streams, self._images = config, streams, images

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
            images=self._images,
            **context.share,
        )
