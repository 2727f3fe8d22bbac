"""What a selection did, in a few numbers."""

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np

from vigor_jax.data.records import store
from vigor_jax.data.records.blocks import num_words, unpack
from vigor_jax.data.text.box_text import find_boxes
from vigor_jax.percent import percent

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a selection did; `summary.json`.

    Attributes:
      images: groups of candidates, each of one image and prompt.
      candidates: of all images.
      targets: images that gave one.
      dropped: share of images that gave none, by reason.
      words: mean number of words of a caption: of all "candidates", of the "chosen", of the "targets".
      mentions: by stream, the mean number of signals that point into a caption: the same.
      penalties: quantiles 0, 0.25, 0.5, 0.75, 1 over all "candidates" and over the "chosen".
      without_content: how many of the "candidates" and of the "chosen" say nothing that counts.
      repeating: how many of them have a sentence that repeats an earlier one word for word.
      decided_by: how many images were decided by what; all but "content", "penalty", "only" and "random" are broken
        ties.
      decisive_stream: of those that the penalty decided, how many by which stream: the one whose term differs most
        between the chosen candidate and the next best.
      repairs: words that were repaired in the targets: in how many "targets", and how many "repairs".
      boxes: boxes in the texts of the targets: in how many "targets", and how many "boxes".
    """

    images: int
    candidates: int
    targets: int
    dropped: dict[str, float]
    words: dict[str, float]
    mentions: dict[str, dict[str, float]]
    penalties: dict[str, tuple[float, ...]]
    without_content: dict[str, int]
    repeating: dict[str, int]
    decided_by: dict[str, int]
    decisive_stream: dict[str, int]
    repairs: dict[str, int]
    boxes: dict[str, int]

    def table(self) -> str:
        """The same as lines to print."""
        kinds = ("candidates", "chosen", "targets")
        lines = [
            f"{self.images} images, {self.candidates} candidates, {self.targets} targets",
            f"{'mean per caption':<24}" + "".join(f"{kind:>12}" for kind in kinds),
        ]
        for name, means in {"words": self.words, **{f"mentions, {s}": m for s, m in self.mentions.items()}}.items():
            lines.append(f"{name:<24}" + "".join(f"{means[kind]:>12.2f}" for kind in kinds))
        lines.append(f"{'penalty, quantiles':<24}" + "".join(f"{quantile:>12.0%}" for quantile in QUANTILES))
        for kind, values in self.penalties.items():
            lines.append(f"{kind:<24}" + "".join(f"{value:>12.4g}" for value in values))
        for what, numbers in {"without content": self.without_content, "repeating a sentence": self.repeating}.items():
            totals = {"candidates": self.candidates, "chosen": self.images}
            said = [f"{numbers[kind]} {kind} ({percent(numbers[kind] / max(n, 1), 1)}%)" for kind, n in totals.items()]
            lines.append(f"{what}: {', '.join(said)}")
        for what, numbers in {"repaired": self.repairs, "with boxes": self.boxes}.items():
            if numbers["targets"]:
                lines.append(f"{what}: {', '.join(f'{number} {kind}' for kind, number in numbers.items())}")
        lines += [f"decided by {what}: {number}" for what, number in self.decided_by.items()]
        lines += [f"decisive stream {name}: {number}" for name, number in self.decisive_stream.items()]
        lines += [f"dropped {percent(share, 1)}%: {reason}" for reason, share in self.dropped.items()]
        return "\n".join(lines)


def summarize(folder: str, streams: Sequence[str]) -> Summary:
    """Of all parts of `selections/`; holds the penalties of all candidates, 8 bytes each, for their quantiles.

    Args:
      folder: of the selections.
      streams: in the order of the selections' columns.

    Raises:
      InputError: parts are missing or damaged.
    """
    columns = ["candidate", "decided_by", "penalties", "refined", "reason", "decisive_stream", "words", "mentions"]
    columns += ["refined_mentions", "has_content", "repeats", "repaired"]
    totals: Counter[str] = Counter()
    decided: Counter[str] = Counter()
    decisive: Counter[str] = Counter(dict.fromkeys(streams, 0))
    dropped: Counter[str] = Counter()
    without_content: Counter[str] = Counter(candidates=0, chosen=0)
    repeating: Counter[str] = Counter(candidates=0, chosen=0)
    repairs, boxes = Counter(targets=0, repairs=0), Counter(targets=0, boxes=0)
    penalties: dict[str, list[np.ndarray]] = {"candidates": [np.zeros(0)], "chosen": [np.zeros(0)]}
    sums: dict[str, np.ndarray] = {kind: np.zeros(1 + len(streams)) for kind in ("candidates", "chosen", "targets")}
    count = store.count_parts(folder)
    for index in range(count):
        for batch in store.read_batches(folder, index, count, columns=columns):
            decided.update(batch.column("decided_by").to_pylist())
            decisive.update(name for name in batch.column("decisive_stream").to_pylist() if name)
            reasons = batch.column("reason").to_pylist()
            dropped.update(reason for reason in reasons if reason)
            values, offsets = unpack(batch.column("penalties"))
            rows = offsets[:-1] + batch.column("candidate").to_numpy()
            penalties["candidates"].append(values.to_numpy())
            penalties["chosen"].append(values.to_numpy()[rows])
            is_empty = ~unpack(batch.column("has_content"))[0].to_numpy(zero_copy_only=False)
            repeats = unpack(batch.column("repeats"))[0].to_numpy() > 0
            for counter, found in ((without_content, is_empty), (repeating, repeats)):
                counter.update(candidates=int(found.sum()), chosen=int(found[rows].sum()))
            words = unpack(batch.column("words"))[0].to_numpy()
            mentions = batch.column("mentions").flatten().flatten().to_numpy().reshape(len(words), len(streams))
            each = np.column_stack([words, mentions])
            left = batch.column("refined_mentions").flatten().to_numpy().reshape(batch.num_rows, len(streams))
            is_target = np.array([not reason for reason in reasons])
            refined = np.column_stack([num_words(batch.column("refined")), left])[is_target]
            repaired = np.diff(unpack(batch.column("repaired"))[1])[is_target]
            boxed = np.array([len(find_boxes(text)) for text in batch.column("refined").to_pylist()], int)[is_target]
            repairs.update(targets=int((repaired > 0).sum()), repairs=int(repaired.sum()))
            boxes.update(targets=int((boxed > 0).sum()), boxes=int(boxed.sum()))
            for kind, found in (("candidates", each), ("chosen", each[rows]), ("targets", refined)):
                sums[kind] += found.sum(axis=0)
                totals[kind] += len(found)
    means = {kind: sums[kind] / max(totals[kind], 1) for kind in sums}
    return Summary(
        images=totals["chosen"],
        candidates=totals["candidates"],
        targets=totals["targets"],
        dropped={reason: number / totals["chosen"] for reason, number in sorted(dropped.items())},
        words={kind: float(mean[0]) for kind, mean in means.items()},
        mentions={name: {kind: float(mean[i]) for kind, mean in means.items()} for i, name in enumerate(streams, 1)},
        penalties={kind: _quantiles(np.concatenate(found)) for kind, found in penalties.items()},
        without_content=dict(without_content),
        repeating=dict(repeating),
        decided_by=dict(sorted(decided.items())),
        decisive_stream=dict(decisive),
        repairs=dict(repairs),
        boxes=dict(boxes),
    )


def _quantiles(values: np.ndarray) -> tuple[float, ...]:
    return tuple(np.quantile(values, QUANTILES).tolist()) if len(values) else ()
