"""What a reward model learns from: one file of judged descriptions, or several that count more or less."""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from vigor_jax.data.batches.places import row_keys
from vigor_jax.data.batches.tree_sequences import TreeEncoder, TreeSequence
from vigor_jax.data.images.store import open_images
from vigor_jax.data.records.annotations import scan_annotations
from vigor_jax.data.records.bad_rows import BadRow, settle
from vigor_jax.data.records.checksum import files_digest
from vigor_jax.errors import InputError
from vigor_jax.evaluation.image_names import bare_name
from vigor_jax.parallel.processes import is_first
from vigor_jax.records import Annotation, ErrorType
from vigor_jax.stages.reward_rows import (
    Annotations,
    TrainRewardConfig,
    all_errors,
    class_weights,
    descriptions,
    is_held_out,
    make_sequences,
)
from vigor_jax.training.resumption import Data


class Source(NamedTuple):
    """Judged descriptions of one file.

    Attributes:
      name: of the source; "" if the run has one file.
      config: of the stage, with this source's own `annotations` and `images`.
      weight: of each answer in the loss.
      annotations: by their images.
    """

    name: str
    config: TrainRewardConfig
    weight: float
    annotations: Annotations

    def part(self, *, held_out: bool) -> "Source":
        """Of the images that are held out, or of those that are learned."""
        chosen = {image: group for image, group in self.annotations.items() if self._leaves(image) == held_out}
        return self._replace(annotations=chosen)

    def _leaves(self, image: str) -> bool:
        return is_held_out(bare_name(image) if self.name else image, self.config.held_out)

    @property
    def errors(self) -> list[tuple[ErrorType, ...]]:
        """What is wrong with the text that each question asks about, in the order of `sequences`."""
        return all_errors(self.annotations, self.config.per)


def read_sources(config: TrainRewardConfig, encoder: TreeEncoder, run_dir: Path) -> list[Source]:
    """Reads all that is to be learned or held out.

    Args:
      config: names the files.
      encoder: knows what fits.
      run_dir: gets `bad_annotations.jsonl`, or `bad_annotations.NAME.jsonl` of each source, if rows are left out.

    Raises:
      InputError: a file cannot be read, or has rows that cannot be learned and may not be left out; of several files
        all that is wrong is said.
    """
    found, wrong = [], []
    for source in _empty(config):
        try:
            found.append(source._replace(annotations=_read(source, encoder, run_dir)))
        except InputError as error:
            wrong.append(str(error))
    if wrong:
        raise InputError(" | ".join(wrong))
    return found


def _empty(config: TrainRewardConfig) -> Iterator[Source]:
    if not config.sources:
        if config.annotations is None or config.images is None:
            raise InputError("annotations, images: name the file of judged descriptions and the folder of their images")
        yield Source("", config, 1.0, {})
    for source in config.sources:
        if (images := source.images or config.images) is None:
            raise InputError(f"sources: name the images of {source.name}, or those of all as train_reward.images")
        own = dataclasses.replace(config, sources=(), annotations=source.annotations, images=images)
        yield Source(source.name, own, source.weight, {})


def _read(source: Source, encoder: TreeEncoder, run_dir: Path) -> dict[str, list[Annotation]]:
    """The annotations that have sentences, by their images; those that cannot be learned are left out or refused."""
    config = source.config
    path, images = config.annotations or Path(), open_images(config.images or ".")
    found = list(scan_annotations(path))
    bad = [row for _, row in found if isinstance(row, BadRow)]
    lines = [(number, row) for number, row in found if not isinstance(row, BadRow) and row.sentences]
    wanted = list(dict.fromkeys(annotation.image for _, annotation in lines))
    missing = images.missing(wanted)
    if len(missing) == len(wanted) > 1:
        raise InputError(
            f"{path}: image {images.file(missing[0])} does not exist, nor does any of its {len(wanted)} images; check "
            "the image folder"
        )
    annotations: dict[str, list[Annotation]] = {}
    gone = set(missing)
    for number, annotation in lines:
        image = annotation.image
        group = annotations.get(image, [])
        try:
            if image in gone:
                raise InputError(f"image {images.file(image)} does not exist; check the image folder")
            learn = not source._leaves(image)
            for description in descriptions(annotation, len(group), config, learn=learn):
                encoder.length(image, description)
        except InputError as error:
            bad.append(BadRow(number, f"line {number}", image, str(error), f"{path}:{number}: {error}"))
        else:
            annotations[image] = [*group, annotation]
    report = f"bad_annotations.{quote(source.name, safe=' ')}.jsonl" if source.name else "bad_annotations.jsonl"
    settle(
        path, bad, len(found),
        skip=config.skip_bad, option="train_reward.skip_bad", report=run_dir / report, writes=is_first(),
    )  # fmt: skip
    if not annotations:
        raise InputError(f"{path}: expected judged sentences, got none in {len(found)} rows; leave the file out")
    return annotations


def answer_weights(taught: Sequence[Source], config: TrainRewardConfig) -> list[dict[bool, float]]:
    """Of each source the weights of good (True) and bad answers in the loss.

    With `balance` "weighted" good answers and bad ones weigh the same, all sources together.
    """
    balance: dict[bool, float] = {}
    for source in taught:
        for errors in source.errors:
            balance[not errors] = balance.get(not errors, 0.0) + source.weight
    weights = class_weights(balance) if config.balance == "weighted" else {}
    return [{is_good: source.weight * weights.get(is_good, 1.0) for is_good in (True, False)} for source in taught]


def learned_rows(taught: Sequence[Source], config: TrainRewardConfig, encoder: TreeEncoder) -> list[list[TreeSequence]]:
    """Of each source the rows to learn from, with their answers and weights."""
    return [
        make_sequences(source.annotations, source.config, encoder, learn=True, weights=weights)
        for source, weights in zip(taught, answer_weights(taught, config), strict=True)
    ]


def questions(held_out: Sequence[Source], encoder: TreeEncoder) -> list[TreeSequence]:
    """The rows of questions to be evaluated, one source after the other."""
    return [
        row for source in held_out for row in make_sequences(source.annotations, source.config, encoder, learn=False)
    ]


def data_of(config: TrainRewardConfig, sources: Sequence[Source], rows: Sequence[Sequence[TreeSequence]]) -> Data:
    """What tells the rows from those of other annotations.

    Args:
      config: names the files.
      sources: all that was read, with what is held out.
      rows: of each source, what is learned.
    """
    count = sum(len(group) for source in sources for group in source.annotations.values())
    facts = {"sha256": files_digest(config.files), "examples": count}
    labels, names = [], []
    for source, own in zip(sources, rows, strict=True):
        seen: Counter[str] = Counter()
        for row in own:
            labels.append(f"row of {row.image}" + (f" in {source.name}" if source.name else ""))
            names.append(f"{source.name}/{row.image} {seen[row.image]}".removeprefix("/"))
            seen[row.image] += 1
    digests = [
        hashlib.blake2b(repr(content).encode(), digest_size=8).digest() for own in rows for content in contents(own)
    ]
    keys = row_keys(zip(digests, names, strict=True))
    return Data(", ".join(map(str, config.files)), facts, keys, labels.__getitem__)


def contents(rows: Sequence[TreeSequence]) -> list[Any]:
    """All of the rows but where their images are."""
    return [(row.image, row.descriptions) for row in rows]
