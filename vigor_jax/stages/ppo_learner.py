"""The learner of PPO: the policy that is trained, its value head, the reference, and the way to the sampler."""

import re
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from vigor_jax.data.batches.tree_batches import TreeRows
from vigor_jax.hf.load import Checkpoint
from vigor_jax.inference.policy import Policy
from vigor_jax.models.lora import add_lora
from vigor_jax.models.vlm import param_paths
from vigor_jax.parallel.sharding import partition_spec, to_global
from vigor_jax.stages.ppo_config import PpoConfig
from vigor_jax.stages.ppo_update import PpoRows, Scores, ppo_loss, score_responses
from vigor_jax.training.heads import Head, with_head
from vigor_jax.training.train_step import (
    Metrics,
    TrainState,
    Weights,
    abstract_state,
    init_state,
    learning_rate,
    make_optimizer,
    make_train_step,
    merge_params,
)
from vigor_jax.training.trainable import load_trainable

VALUE_HEAD = "value_head."


class Learner:
    """The state of a run on the devices, and all that is compiled to change it.

    To be used under `jax.set_mesh(mesh)`.

    Args:
      config: settings.
      checkpoint: the checkpoint to start from, which is the reference.
      mesh: all devices of all processes.
      dtype: type to compute in.
      num_updates: of the whole run, for the schedule.

    Attributes:
      state: what an update changes; its weights are those of the policy and of the value head.
      frozen: the weights that are not trained.
      abstract: shapes and shardings of `state`.
      compilations: how often the passes without a gradient were compiled; a long run should stand still here.
    """

    def __init__(self, config: PpoConfig, checkpoint: Checkpoint, mesh: Mesh, dtype: Any, num_updates: int) -> None:
        self._mesh, self._dtype = mesh, dtype
        loaded = load_trainable(checkpoint, config, mesh, dtype, reference=True)
        self._ref_graphdef, self._ref_params = loaded.ref_graphdef, loaded.ref_params
        if config.baseline == "value":
            loaded = with_head(loaded, Head.zeros("value_head", checkpoint.config.text.hidden_size), mesh)
        self._graphdef, params, self.frozen = loaded.graphdef, loaded.params, loaded.frozen
        whole = NamedSharding(mesh, P())
        del loaded

        optimizer = make_optimizer(config, num_updates)
        self.abstract = abstract_state(params, optimizer, mesh)
        self.state = init_state(params, optimizer, mesh, config.seed)
        schedule = learning_rate(config, num_updates)
        self._step = make_train_step(self._graphdef, self.abstract, optimizer, schedule, config, dtype, ppo_loss)
        self.compilations = 0
        self._score = jax.jit(self._score_rows, out_shardings=whole)
        self._score_ref = jax.jit(self._score_reference, out_shardings=whole)

    @property
    def policy_params(self) -> Weights:
        """What is trained of the policy, in float32."""
        return {path: weight for path, weight in self.state.params.items() if not path.startswith(VALUE_HEAD)}

    def update(self, rows: PpoRows) -> Metrics:
        """One update; the metrics are on their way.

        Args:
          rows: this process's, on the host.
        """
        self.state, metrics = self._step(self.state, self.frozen, to_global(rows, self._mesh))
        return metrics

    def score(self, rows: TreeRows) -> Scores:
        """What the policy as it is says of responses.

        Args:
          rows: this process's, on the host.

        Returns:
          Arrays of all rows, on the host.
        """
        return _on_host(self._score(self.state.params, self.frozen, to_global(rows, self._mesh)))

    def score_reference(self, rows: TreeRows) -> Scores:
        """The same of the policy that training began with; without values."""
        return _on_host(self._score_ref(self._ref_params, self.frozen, to_global(rows, self._mesh)))

    def _score_rows(self, params: Weights, frozen: Weights, rows: TreeRows) -> Scores:
        self.compilations += 1
        rounded = {path: weight.astype(self._dtype) for path, weight in params.items()}
        return score_responses(merge_params(self._graphdef, rounded | frozen), rows)

    def _score_reference(self, params: Weights, frozen: Weights, rows: TreeRows) -> Scores:
        self.compilations += 1
        return score_responses(merge_params(self._ref_graphdef, params | frozen), rows)

    # What a checkpoint holds

    @staticmethod
    def split(state: TrainState) -> tuple[Weights, dict[str, Any]]:
        """The trained weights of the policy, which others read, and all else that a run needs to continue."""
        head = {path: weight for path, weight in state.params.items() if path.startswith(VALUE_HEAD)}
        params = {path: weight for path, weight in state.params.items() if path not in head}
        rest = {name: value for name, value in state._asdict().items() if name != "params"}
        return params, rest | {"value_head": {path.removeprefix(VALUE_HEAD): weight for path, weight in head.items()}}

    def join(self, params: Weights, rest: dict[str, Any]) -> None:
        """Continues from what `split` gave."""
        head = {VALUE_HEAD + path: weight for path, weight in rest["value_head"].items()}
        others = {name: value for name, value in rest.items() if name != "value_head"}
        self.state = TrainState(params=params | head, **others)


class Publisher:
    """Brings the weights of the learner to the sampler: on the devices, in the sampler's layout and type.

    Args:
      policy: the sampler's; gets the adapter that is trained, if one is.
      config: what is read is `lora`.
      params: the learner's, for their names.
      mesh: where they are.
    """

    def __init__(self, policy: Policy, config: PpoConfig, params: Weights, mesh: Mesh) -> None:
        self._policy = policy
        if config.lora is not None and policy.checkpoint.adapter is None:
            add_lora(policy.model, config.lora, dtype=policy.dtype)
        self._hand_over = hand_over(nnx.state(policy.model), params, mesh)

    def __call__(self, params: Weights) -> None:
        """The sampler draws from these weights from now on."""
        self._policy.set_weights(jax.device_put(self._hand_over.convert(params), self._hand_over.shardings))


class HandOver(NamedTuple):
    """From the learner's weights to the sampler's.

    Attributes:
      convert: compiled: the trained weights in the sampler's layers and type.
      converted: what that makes of them, still split as for training; shapes.
      shardings: how the sampler splits them.
    """

    convert: Any
    converted: dict[str, jax.ShapeDtypeStruct]
    shardings: dict[str, NamedSharding]


def hand_over(sampler: nnx.State, params: Weights, mesh: Mesh) -> HandOver:
    """How weights come to the sampler; of real ones, or of shapes.

    Args:
      sampler: all its weights.
      params: the learner's, for their names.
      mesh: where they are.
    """
    converted, shardings = {}, {}
    for path, variable in param_paths(sampler).items():
        if _stacked(path) in params:
            value = variable.get_value()
            spec = partition_spec(value.shape, variable.get_metadata()["axes"], mesh)
            converted[path] = jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=NamedSharding(mesh, spec))
            shardings[path] = value.sharding

    def convert(params: Weights) -> Weights:
        return {path: _layer(params[_stacked(path)], path, params).astype(x.dtype) for path, x in converted.items()}

    out_shardings = {path: x.sharding for path, x in converted.items()}
    return HandOver(jax.jit(convert, out_shardings=out_shardings), converted, shardings)


def _stacked(path: str) -> str:
    """Path of the parameter in a model whose layers are stacked."""
    return re.sub(r"\.layers\.\d+\.", ".layers.", path, count=1)


def _layer(weight: Array, path: str, params: Weights) -> Array:
    """The part of a stacked parameter that a path is."""
    layer = re.search(r"\.layers\.(\d+)\.", path)
    return weight if layer is None else weight[int(layer[1])]


def _on_host(scores: Scores) -> Scores:
    return Scores(*(np.asarray(x) for x in jax.device_get(scores)))
