"""What the model says of preferences before it learns from them: computed once, and kept.

The reference is the checkpoint as training finds it, whatever is trained, so no second copy of its weights is ever held
next to those that change. What is kept lies in a folder that names all it depends on: a change makes another folder.
"""

import dataclasses
import hashlib
import itertools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vigor_jax import fingerprint
from vigor_jax.data.batches.preference_rows import PreferenceLoader, PreferenceRow, PreferenceRows, References
from vigor_jax.data.records import store
from vigor_jax.data.text.conversation import DEFAULT_TEMPLATE
from vigor_jax.hf.load import Checkpoint, load_model
from vigor_jax.models.lora import add_lora
from vigor_jax.models.vlm import Vlm, abstract_model
from vigor_jax.parallel.processes import is_first, same_everywhere
from vigor_jax.parallel.sharding import local_rows, to_global
from vigor_jax.stages.dpo_config import DpoConfig
from vigor_jax.stages.dpo_update import Logps, logps_of
from vigor_jax.stages.programs import Program, Target, bytes_held, on_mesh
from vigor_jax.training.flops import forward_flops

logger = logging.getLogger(__name__)

# Rows of a part on disk, which is what a run that is killed may have to compute again.
PART = 512


@dataclasses.dataclass(frozen=True)
class Reference:
    """What the reference says of one row.

    Attributes:
      digest: the key of the row, hexadecimal.
      own: log p of each token of each response, in order.
      unseen: the same where another image is shown (`dpo_update.Logps`); empty if none is.
    """

    digest: str
    own: tuple[float, ...]
    unseen: tuple[float, ...]


def references(
    config: DpoConfig,
    checkpoint: Checkpoint,
    loader: PreferenceLoader,
    folder: str,
    mesh: Mesh,
    dtype: Any,
    barrier: Callable[[], None],
) -> References:
    """What the reference says of all rows; computes what is not kept.

    Args:
      config: settings.
      checkpoint: the reference.
      loader: of all rows, as training takes them.
      folder: below it they are kept; local or remote, the same for all processes. What other settings have left there
        is removed once all are.
      mesh: all devices of all processes.
      dtype: type to compute in.
      barrier: returns when all processes have called it.

    Raises:
      InputError: an image cannot be read, or processes depend on different things.
      FloatingPointError: the model's scores are not finite.
    """
    rows = {row.key(): row for row in loader.data if row is not None}
    mark = fingerprint.digest(
        {
            "model": checkpoint.digest(),
            "tokenizer": checkpoint.tokenizer.digest(),
            "dtype": jnp.dtype(dtype).name,
            "rows": hashlib.sha256(b"".join(rows)).hexdigest(),
            "preprocessing": dataclasses.asdict(checkpoint.preprocessing),
            "template": config.template or DEFAULT_TEMPLATE,
            "part": PART,
            "crop": config.crop if config.shows_crops else None,
            "noise": [config.noise_step, config.seed] if config.shows_noise else None,
        }
    )
    same_everywhere({"references": mark})
    here = store.join(folder, mark[:16])
    count = -(-len(rows) // PART)
    missing = sorted(set(range(count)) - store.parts_done(here, count))
    barrier()  # all have looked before the first writes
    if missing:
        logger.info("dpo: the reference reads %d preferences", min(len(missing) * PART, len(rows)))
        score, ordered = _Scorer(config, checkpoint, loader, mesh, dtype), list(rows.values())
        for index in missing:
            found = list(score(ordered[index * PART : (index + 1) * PART]))
            if is_first():
                store.write_part(here, index, count, found, Reference, made_with=mark)
        del score
        if is_first():
            store.remove_all_but(folder, mark[:16])
        barrier()
    return {
        bytes.fromhex(each.digest): (np.array(each.own, np.float32), np.array(each.unseen, np.float32))
        for each in store.read_parts(here, Reference)
    }


def reference_program(config: DpoConfig, target: Target, rows: PreferenceRows) -> Program:
    """The pass over rows of these shapes. It is before training, so nothing else is held.

    Args:
      config: settings.
      target: what it is compiled for.
      rows: shapes of as many rows as are scored at a time.
    """
    model, mesh = abstract_model(target.model, dtype=target.dtype), target.training_mesh
    if target.adapter:
        add_lora(model, target.adapter, dtype=target.dtype)
    graphdef, weights = nnx.split(on_mesh(model, mesh))

    def lower() -> Any:
        with jax.set_mesh(mesh):
            return _make_score(config, graphdef, mesh).lower(weights, rows)

    count, length = rows.responses.token_ids.shape
    passes = 2 if config.image_factor else 1
    flops = passes * forward_flops(target.model, rows=count, tokens=count * length, images=count)
    return Program("dpo", "reference", lower, flops, bytes_held(weights), count, length)


def _make_score(config: DpoConfig, graphdef: nnx.GraphDef[Vlm], mesh: Mesh) -> Any:
    def score(weights: nnx.State, rows: PreferenceRows) -> Logps:
        return logps_of(nnx.merge(graphdef, weights), rows, config)

    return jax.jit(score, out_shardings=NamedSharding(mesh, P()))


class _Scorer:
    """The reference, on the mesh."""

    def __init__(
        self, config: DpoConfig, checkpoint: Checkpoint, loader: PreferenceLoader, mesh: Mesh, dtype: Any
    ) -> None:
        size = config.batch_size // config.accumulate  # as many rows as an update computes at a time
        self._loader = dataclasses.replace(loader, batch_size=size, rows=local_rows(size, mesh), references=None)
        self._mesh = mesh
        graphdef, self._weights = nnx.split(load_model(checkpoint, mesh=mesh, dtype=dtype))
        self._score = _make_score(config, graphdef, mesh)

    def __call__(self, rows: list[PreferenceRow]) -> Iterator[Reference]:
        unscored = iter(rows)
        with jax.set_mesh(self._mesh):
            for batch in dataclasses.replace(self._loader, data=rows).in_order():
                own, unseen = self._score(self._weights, to_global(batch.rows, self._mesh))
                own = np.asarray(own)
                others = itertools.repeat(None) if unseen is None else np.asarray(unseen)
                for row, logps, other in zip(itertools.islice(unscored, len(batch.ids)), own, others, strict=False):
                    size = sum(self._loader.encoder(row).lengths)
                    unseen_here = () if other is None else tuple(other[:size].tolist())
                    if not (np.isfinite(logps[:size]).all() and np.isfinite(unseen_here).all()):
                        raise FloatingPointError(
                            f"{row.title}: the model's scores are not finite; are its weights sound?"
                        )
                    yield Reference(row.key().hex(), tuple(logps[:size].tolist()), unseen_here)
