"""How well a reward model tells good sentences from bad ones, on annotations that it has not seen."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from vigor_jax.data.batches.tree_batches import TreeLoader, TreeRows
from vigor_jax.evaluation.auc import auc
from vigor_jax.inference.tree_attention import hidden_states_at
from vigor_jax.models.vlm import Vlm
from vigor_jax.parallel.sharding import to_global
from vigor_jax.records import ErrorType
from vigor_jax.training.train_step import Weights, merge_params

CALIBRATION_BINS = 10


class Evaluation:
    """p(good) of held-out questions, and how good it is.

    Args:
      loader: sequences of questions without answers.
      errors: source → what is wrong with the text that each question asks about; all in the order of the questions.
        The only source may have no name.
      model: its shapes, with the adapter if one is trained.
      mesh: of the weights.
      dtype: type to compute in.
    """

    def __init__(
        self,
        loader: TreeLoader,
        errors: Mapping[str, Sequence[tuple[ErrorType, ...]]],
        model: Vlm,
        mesh: Mesh,
        dtype: Any,
    ) -> None:
        self._loader, self._errors, self._mesh = loader, errors, mesh
        graphdef = nnx.graphdef(model)
        scored = np.array([loader.encoder.good_id, loader.encoder.bad_id])

        def p_good(weights: Weights, rows: TreeRows) -> Float[Array, "B P"]:
            model = merge_params(graphdef, {path: weight.astype(dtype) for path, weight in weights.items()})
            head = model.language_model.head()[:, scored]
            logits = jnp.matmul(hidden_states_at(model, rows), head, preferred_element_type=jnp.float32)
            return jax.nn.sigmoid(logits[..., 0] - logits[..., 1])

        self._p_good = jax.jit(p_good, out_shardings=NamedSharding(mesh, P()))

    def __call__(self, weights: Weights) -> dict[str, Any]:
        """What `evaluate_sources` says of a model with these weights, frozen ones included; under `jax.set_mesh`."""
        scores: list[np.ndarray] = []
        sequences = iter([sequence for sequence in self._loader.sequences if sequence is not None])
        for batch in self._loader.in_order():
            found = np.asarray(self._p_good(weights, to_global(batch.rows, self._mesh)))
            # Rows of padding come last, where `sequences` is at its end.
            for places, sequence in zip(found, sequences, strict=False):
                scores.append(places[: sum(len(description.asked) for description in sequence.descriptions)])
        return evaluate_sources(np.concatenate(scores), self._errors)


def evaluate_sources(p_good: Float[np.ndarray, "N"], errors: Mapping[str, Sequence[Sequence[str]]]) -> dict[str, Any]:
    """What `evaluate` says of all sentences and, under `sources`, of those of each source that has some and a name.

    Args:
      p_good: of each sentence, one source after the other.
      errors: source → what is wrong with each of its sentences.
    """
    found = evaluate(p_good, [kinds for own in errors.values() for kinds in own])
    ends = np.cumsum([len(own) for own in errors.values()])
    parts = dict(zip(errors, np.split(p_good, ends[:-1]), strict=True))
    by_source = {name: evaluate(parts[name], own) for name, own in errors.items() if name and own}
    return found | ({"sources": by_source} if by_source else {})


def evaluate(p_good: Float[np.ndarray, "N"], errors: Sequence[Sequence[str]]) -> dict[str, Any]:
    """How well p(good) tells good from bad.

    Args:
      p_good: of each sentence.
      errors: what is wrong with it; nothing if it is good.

    Returns:
      `count`, `good` (their number), `auc`, `accuracy` (at 0.5), `errors`: for each kind of error the number of
      sentences that have it, the AUC of these against the good ones, and the share of them that is found bad; and
      `calibration`: of ten bins of p(good) the number of sentences, the mean of p(good) and the share that is good.
      What cannot be said, such as an AUC without bad sentences, is None.
    """
    is_good = np.array([not kinds for kinds in errors])
    called_good = p_good >= 0.5
    by_kind = {}
    for kind in get_args(ErrorType):
        has = np.array([kind in kinds for kinds in errors])
        if has.any():
            among = has | is_good
            by_kind[kind] = {
                "count": int(has.sum()),
                "auc": auc(p_good[among], is_good[among]),
                "accuracy": float(np.mean(~called_good[has])),
            }
    bins = np.minimum((p_good * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    calibration = []
    for index in range(CALIBRATION_BINS):
        here = bins == index
        mean, good = (float(x[here].mean()) if here.any() else None for x in (p_good, is_good))
        calibration.append({"count": int(here.sum()), "p_good": mean, "good": good})
    return {
        "count": len(is_good),
        "good": int(is_good.sum()),
        "auc": auc(p_good, is_good),
        "accuracy": float(np.mean(called_good == is_good)),
        "errors": by_kind,
        "calibration": calibration,
    }


def table(metrics: dict[str, Any]) -> str:
    """An evaluation for people: what `evaluate` or `evaluate_sources` returns, and the `epoch`."""

    def show(value: float | None) -> str:
        return "  -  " if value is None else f"{value:.3f}"

    lines = [f"held-out sentences after epoch {metrics['epoch']:g}"]
    for source, found in {"": metrics, **metrics.get("sources", {})}.items():
        lines.append(f"  of {source}" if source else "  kind          count    AUC  accuracy")
        for name, values in {"all": found, **found["errors"]}.items():
            lines.append(f"  {name:12} {values['count']:6}  {show(values['auc'])}     {show(values['accuracy'])}")
    lines.append("  p(good)       count   mean      good")
    for index, values in enumerate(metrics["calibration"]):
        if not values["count"]:
            continue
        low, high = index / CALIBRATION_BINS, (index + 1) / CALIBRATION_BINS
        row = f"{values['count']:6}  {show(values['p_good'])}     {show(values['good'])}"
        lines.append(f"  {f'{low:.1f} - {high:.1f}':12} {row}")
    return "\n".join(lines)


def append(path: Path, metrics: dict[str, Any]) -> None:
    """Adds a line and brings it to disk: the checkpoint that follows counts on it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(metrics) + "\n")
        file.flush()
        os.fsync(file.fileno())
