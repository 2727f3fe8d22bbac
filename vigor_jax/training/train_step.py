"""The pure part of fine-tuning: settings, optimizer, state, and (state, frozen, rows) → (state, metrics).

Weights are flat dicts by dotted path, such as `language_model.layers.q_proj.kernel`: `params` are trained and held
in float32, `frozen` are not and have the type the model computes in.
"""

import math
from collections.abc import Callable, Set
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int32, UInt32

from vigor_jax.data.batches.loader import Rows
from vigor_jax.errors import InputError
from vigor_jax.models.lora import covered, lora_paths
from vigor_jax.models.vlm import Vlm, param_paths
from vigor_jax.parallel.sharding import in_parts
from vigor_jax.parallel.xla_flags import compiler_options
from vigor_jax.training.config import SftConfig, TrainingConfig
from vigor_jax.training.losses import chunked_cross_entropy, supervised_first

Weights: TypeAlias = dict[str, Array]
Metrics: TypeAlias = dict[str, Array]


# (model, rows, config) → the sum of the loss over some rows, and the number (or weight) of what it is summed over; or
# that as "tokens" of a dict, with other sums over the same, whose means are metrics.
Loss: TypeAlias = Callable[[Vlm, Any, Any], tuple[Array, Array | dict[str, Array]]]


class TrainState(NamedTuple):
    """What an update changes.

    Attributes:
      step: updates done.
      params: trained weights in float32.
      opt_state: of the optimizer, sharded like the weights.
      rng: key for what may be random in an update. Nothing is (no dropout), so it never advances.
    """

    step: Int32[Array, ""]
    params: Weights
    opt_state: optax.OptState
    rng: UInt32[Array, "2"]


def trained_paths(paths: Set[str], freeze: tuple[str, ...]) -> frozenset[str]:
    """The parameters that no pattern of `freeze` covers.

    Raises:
      InputError: a pattern covers nothing, or nothing is left.
    """
    frozen = covered(paths, freeze, "freeze")
    if frozen == paths:
        raise InputError(f"freeze: {', '.join(freeze)} covers every parameter, which leaves nothing to train")
    return frozenset(paths - frozen)


def trained_in(paths: Set[str], config: TrainingConfig) -> frozenset[str]:
    """The parameters that a stage trains, of a model that has the adapter if the stage trains one.

    Raises:
      InputError: as `trained_paths`; or what is to be trained next to an adapter has one, or is frozen.
    """
    if config.lora is None:
        return trained_paths(paths, config.freeze)
    adapter = lora_paths(paths)
    whole = covered(paths - adapter, config.lora.also, "lora.also")
    adapted = {path.rsplit(".", 1)[0] for path in adapter}
    if both := sorted(path for path in whole if path.rsplit(".", 1)[0] in adapted):
        raise InputError(f"lora.also: {both[0]} has an adapter; leave it out there or in lora.target")
    for pattern in config.freeze:  # below an adapter all weights are frozen, so there this says nothing new
        if kept := sorted(covered(paths, (pattern,), "freeze") & whole):
            raise InputError(f"freeze: {pattern!r} covers {kept[0]}, which lora.also trains; change one of them")
    return adapter | whole


def partition_params(model: Vlm, trained: Set[str]) -> tuple[nnx.GraphDef, Weights, Weights]:
    """A model with stacked layers, real or abstract → its structure, the trained weights and the frozen ones."""
    graphdef, state = nnx.split(model)
    weights = {path: variable.get_value() for path, variable in param_paths(state).items()}
    params = {path: weight for path, weight in weights.items() if path in trained}
    return graphdef, params, {path: weight for path, weight in weights.items() if path not in trained}


def merge_params(graphdef: nnx.GraphDef, weights: Weights) -> Vlm:
    """The model that `partition_params` took apart."""
    return nnx.merge(graphdef, nnx.from_flat_state([(tuple(path.split(".")), w) for path, w in weights.items()]))


def learning_rate(config: TrainingConfig, total_steps: int) -> optax.Schedule:
    """Linear warm-up, then a cosine to 0; the first update's rate is 0 if there is a warm-up, as in transformers."""
    warmup = math.ceil(config.warmup_ratio * total_steps)

    def rate(count: Int32[Array, ""]) -> Float[Array, ""]:
        progress = (count - warmup) / max(total_steps - warmup, 1)
        falling = jnp.square(jnp.cos(0.5 * jnp.pi * progress))  # (1 + cos(pi x)) / 2, exact near x = 1
        return config.learning_rate * jnp.where(count < warmup, count / max(warmup, 1), falling)

    return rate


def make_optimizer(config: TrainingConfig, total_steps: int) -> optax.GradientTransformation:
    """AdamW after clipping by the global norm."""

    def decayed(params: Weights) -> dict[str, bool]:
        return {path: path.rsplit(".", 1)[-1] not in ("bias", "scale") for path in params}

    return optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.adamw(
            learning_rate(config, total_steps),
            b1=config.beta1,
            b2=config.beta2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=decayed,
        ),
    )


def abstract_state(params: Weights, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Shapes and shardings of the state of real or abstract weights: a moment lies where its weight does."""

    def place(x: Any, sharding: Any) -> Any:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    state = jax.eval_shape(lambda params: _first_state(params, optimizer, 0), params)
    shardings = {path: weight.sharding for path, weight in params.items()}
    whole = NamedSharding(mesh, P())
    return TrainState(
        step=place(state.step, whole),
        params={path: place(weight, shardings[path]) for path, weight in params.items()},
        opt_state=optax.tree_utils.tree_map_params(
            optimizer, place, state.opt_state, shardings, transform_non_params=lambda x: place(x, whole)
        ),
        rng=place(state.rng, whole),
    )


def init_state(params: Weights, optimizer: optax.GradientTransformation, mesh: Mesh, seed: int) -> TrainState:
    """The state before the first update; takes the weights over (donates them)."""
    shardings = jax.tree.map(lambda x: x.sharding, abstract_state(params, optimizer, mesh))
    init = jax.jit(lambda params: _first_state(params, optimizer, seed), out_shardings=shardings, donate_argnums=0)
    return init(params)


def _first_state(params: Weights, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), jax.random.PRNGKey(seed))


def conversation_loss(model: Vlm, rows: Rows, config: SftConfig) -> tuple[Float[Array, ""], Int32[Array, ""]]:
    """Sum of the loss over the supervised tokens of conversations, and their number."""
    pixels = rows.pixels if rows.pixels.shape[1] else None
    hidden = model(
        rows.token_ids,
        pixels,
        instructions=rows.instructions,
        positions=rows.positions,
        segment_ids=rows.segment_ids,
        remat=config.remat,
    )
    labels = rows.labels
    if rows.segment_ids is not None:
        hidden, labels = supervised_first(hidden, labels)
    return chunked_cross_entropy(hidden, model.language_model.head(), labels, chunk=config.loss_chunk)


def make_train_step(
    graphdef: nnx.GraphDef,
    abstract: TrainState,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    config: TrainingConfig,
    compute_dtype: Any,
    loss: Loss | None = None,
) -> Callable[[TrainState, Weights, Any], tuple[TrainState, Metrics]]:
    """The jitted update; to be called under `jax.set_mesh`. It takes the state over (donates it).

    The loss is the mean over all supervised tokens of the global batch, so it is the same in however many parts
    and on however many devices the batch is computed. Where loss or gradient are not finite the state comes back
    as it was.

    Args:
      graphdef: structure of the model.
      abstract: from `abstract_state`; gradients and the new state lie where it says.
      optimizer: from `make_optimizer`.
      schedule: its learning rate, for the metrics.
      config: what is read is `accumulate`, and what the loss reads.
      compute_dtype: of activations; the float32 weights are rounded to it for each update.
      loss: `conversation_loss` by default, which reads `data.batches.loader.Rows`.

    Returns:
      step(state, frozen, rows) → (state, {loss, grad_norm, learning_rate, tokens}): mean loss, norm before
      clipping, and the number of supervised tokens; with the means of the loss's other sums.
    """
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    loss_of_model: Loss = loss or conversation_loss

    def loss_sum(params: Weights, frozen: Weights, rows: Any) -> tuple[Array, dict[str, Array]]:
        rounded = {path: weight.astype(compute_dtype) for path, weight in params.items()}
        loss, found = loss_of_model(merge_params(graphdef, rounded | frozen), rows, config)
        return loss, found if isinstance(found, dict) else {"tokens": found}

    def sums(params: Weights, frozen: Weights, rows: Any) -> tuple[Array, dict[str, Array], Weights]:
        """Loss, tokens (with what else is measured) and gradients, each summed over the batch, in float32."""

        def part(rows: Any) -> tuple[Array, dict[str, Array], Weights]:
            (loss, found), grads = jax.value_and_grad(loss_sum, has_aux=True)(params, frozen, rows)
            return loss, found, jax.lax.with_sharding_constraint(grads, shardings.params)

        if config.accumulate == 1:
            return part(rows)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(part, rows))
        total, _ = jax.lax.scan(
            lambda total, rows: (jax.tree.map(jnp.add, total, part(rows)), None),
            zeros,
            jax.tree.map(lambda x: in_parts(x, config.accumulate), rows),
        )
        return total

    def step(state: TrainState, frozen: Weights, rows: Any) -> tuple[TrainState, Metrics]:
        loss, found, grads = sums(state.params, frozen, rows)
        tokens = found.pop("tokens")
        loss = loss / tokens
        grads = jax.tree.map(lambda g: g / tokens, grads)
        grad_norm = optax.global_norm(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        new = TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state, state.rng)

        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        new = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, state)
        metrics = {"loss": loss, "grad_norm": grad_norm, "learning_rate": schedule(state.step), "tokens": tokens}
        return new, metrics | {name: value / tokens for name, value in found.items()}

    options = compiler_options(jax.tree.leaves(shardings)[0].mesh)
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None), compiler_options=options)
