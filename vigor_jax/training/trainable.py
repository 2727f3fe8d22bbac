"""A checkpoint opened for training: the model's structure, the weights that are trained, and those that are not."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from vigor_jax.errors import InputError
from vigor_jax.hf.load import Checkpoint, load_model
from vigor_jax.models.lora import add_lora, lora_modules, lora_paths
from vigor_jax.models.vlm import Vlm, abstract_model, param_paths
from vigor_jax.training.config import TrainingConfig
from vigor_jax.training.train_step import Weights, partition_params, trained_in


@dataclasses.dataclass(frozen=True)
class Trainable:
    """Weights by dotted path and what they make a model with (`train_step.merge_params`), layers stacked.

    Attributes:
      graphdef: structure of the model, with its adapter if one is trained.
      params: what is trained, in float32.
      frozen: the rest, in the type to compute in.
      ref_graphdef: structure of the model before training (the reference policy): without the adapter where that is new
        and so changes nothing yet.
      ref_params: its weights that are not in `frozen`, in the type to compute in; with a new adapter that is nothing
        but what `lora.also` names. Empty unless asked for.
    """

    graphdef: nnx.GraphDef
    params: Weights
    frozen: Weights
    ref_graphdef: nnx.GraphDef
    ref_params: Weights


def load_trainable(
    checkpoint: Checkpoint, config: TrainingConfig, mesh: Mesh, dtype: Any, *, reference: bool = False
) -> Trainable:
    """Loads the weights of a checkpoint as a stage trains them.

    A model that has an adapter continues it. A new one begins as `models.lora.add_lora` says, with `config.seed`.

    Args:
      checkpoint: the checkpoint to start from.
      config: what is read is `freeze`, `lora` and `seed`.
      mesh: all devices of all processes.
      dtype: type to compute in.
      reference: make `ref_params`, too.

    Raises:
      InputError: as `trainable_paths`.
    """
    trained = trainable_paths(checkpoint, config)
    model = load_model(checkpoint, mesh=mesh, dtype=dtype, master=trained.__contains__)
    is_new = config.lora is not None and checkpoint.adapter is None
    ref_graphdef = nnx.graphdef(model) if is_new else None
    if is_new:
        assert config.lora is not None
        add_lora(model, config.lora, seed=config.seed)
    graphdef, params, frozen = partition_params(model, trained)
    before = params.keys() - (lora_paths(params.keys()) if is_new else frozenset())
    ref_params = {path: _copy(params[path], dtype) for path in sorted(before)} if reference else {}
    return Trainable(graphdef, params, frozen, ref_graphdef or graphdef, ref_params)


def trainable_paths(checkpoint: Checkpoint, config: TrainingConfig) -> frozenset[str]:
    """The parameters that a stage trains, the adapter's among them.

    Raises:
      InputError: as `train_step.trained_in`; or the model has an adapter that is not the one to be trained.
    """
    return trained_in(param_paths(nnx.state(abstract_trainable(checkpoint, config))).keys(), config)


def abstract_trainable(checkpoint: Checkpoint, config: TrainingConfig) -> Vlm:
    """The model with shapes in place of weights, with its adapter if one is trained.

    Raises:
      InputError: the model has an adapter that is not the one to be trained, or the new one fits no layer.
    """
    _check_adapter(checkpoint, config)
    model = abstract_model(checkpoint.config)
    return model if config.lora is None else add_lora(model, config.lora)


def _check_adapter(checkpoint: Checkpoint, config: TrainingConfig) -> None:
    """Refuses to train anything but its adapter on a model that has one."""
    adapter, lora = checkpoint.adapter, config.lora
    if adapter is None:
        return
    if lora is None:
        raise InputError(
            f"{adapter.directory} is an adapter, and training would change the weights below it; give lora its rank "
            f"{adapter.lora.rank} and alpha {adapter.lora.alpha:g} to continue it, or merge it first with python -m "
            "vigor_jax.export --layout llava-hf"
        )
    for name in ("rank", "alpha", "rslora"):
        if (there := getattr(adapter.lora, name)) != getattr(lora, name):
            raise InputError(
                f"lora.{name}: {getattr(lora, name)}, but the adapter {adapter.directory} that training continues has "
                f"{there}; give that"
            )
    model = abstract_model(checkpoint.config)
    there, wanted = (lora_modules(model, each.target).keys() for each in (adapter.lora, lora))
    if there != wanted:
        raise InputError(
            f"lora.target: {', '.join(lora.target)} covers {len(wanted)} kinds of layers, but the adapter "
            f"{adapter.directory} that training continues has {', '.join(sorted(there))}; give these"
        )
    paths = param_paths(nnx.state(model)).keys()
    missing = sorted(path for path in adapter.full_paths(checkpoint.entries) if path in paths)
    full = trained_in(param_paths(nnx.state(add_lora(model, lora))).keys(), config)
    if left := [path for path in missing if path not in full]:
        raise InputError(
            f"lora.also: the adapter {adapter.directory} that training continues brings {left[0]}, which would be left "
            "out of the next; name it there"
        )


def _copy(weight: jax.Array, dtype: Any) -> jax.Array:
    """Rounded; never the same buffer, which training takes over."""
    assert isinstance(weight.sharding, NamedSharding)
    return jax.jit(lambda w: jnp.copy(w.astype(dtype)), out_shardings=weight.sharding)(weight)
