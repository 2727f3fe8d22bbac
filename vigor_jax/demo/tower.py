"""Teaches the demo's vision tower and projector to name what each patch shows, in the language model's own words.

LLaVA begins with a tower that already speaks: CLIP's has learned which words go with which pictures. This one learns it
here, patch by patch: the projected feature of a patch is to be near the embeddings of the words that are true of it.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8
from tqdm import tqdm

from vigor_jax.demo import scenes
from vigor_jax.demo.drawing import draw
from vigor_jax.demo.language import NUMBERS
from vigor_jax.models.llava import Llava

SHARPNESS = 20.0  # cosines times this are scores
ABSENT = NUMBERS[0]
# For each patch one word of each group is true.
GROUPS: tuple[tuple[str, ...], ...] = (
    (*scenes.SHAPES, ABSENT),
    (*scenes.COLORS, ABSENT),
    NUMBERS[:4],
    ("top", "middle", "bottom"),
    ("left", "middle", "right"),
)
PARTS = ("vision_tower", "multi_modal_projector")


@dataclasses.dataclass(frozen=True)
class TowerConfig:
    """How long the tower learns.

    Attributes:
      num_scenes: drawn beforehand.
      num_steps: updates.
      batch_size: scenes an update.
      learning_rate: peak.
    """

    num_scenes: int = 8_000
    num_steps: int = 1_500
    batch_size: int = 64
    learning_rate: float = 1e-3


def teach_tower(model: Llava, token_ids: Mapping[str, int], seed: int, config: TowerConfig | None = None) -> float:
    """Trains tower and projector in place; the language model stays as it is.

    Args:
      model: with separate layers.
      token_ids: of the words.
      seed: of scenes and batches.
      config: how long.

    Returns:
      Share of words that the tower gets right on the last hundred batches.
    """
    config = config or TowerConfig()
    pixels, words = _lessons(config.num_scenes, seed)
    table = model.language_model.embed_tokens[...]
    groups = [_unit(table[jnp.array([token_ids[word] for word in group])]) for group in GROUPS]
    graphdef, taught, rest = nnx.split(model, lambda path, _: path[0] in PARTS, ...)
    optimizer = optax.adam(optax.warmup_cosine_decay_schedule(0, config.learning_rate, 50, config.num_steps))

    def loss(taught: nnx.State, pixels: UInt8[Array, "B S S 3"], words: Int[Array, "B P G"]) -> tuple[Array, Array]:
        features = _unit(nnx.merge(graphdef, taught, rest).encode_images(pixels))
        scores = [SHARPNESS * features @ group.T for group in groups]
        losses = [
            optax.softmax_cross_entropy_with_integer_labels(score, words[..., index]).mean()
            for index, score in enumerate(scores)
        ]
        right = [(score.argmax(-1) == words[..., index]).mean() for index, score in enumerate(scores)]
        return sum(losses, start=jnp.float32(0)), jnp.stack(right).mean()

    @jax.jit
    def update(taught: nnx.State, state: optax.OptState, pixels: Array, words: Array) -> tuple:
        (_, right), grads = jax.value_and_grad(loss, has_aux=True)(taught, pixels, words)
        updates, state = optimizer.update(grads, state, taught)
        return optax.apply_updates(taught, updates), state, right

    state, rng, found = optimizer.init(taught), np.random.default_rng([seed, 1]), []
    with tqdm(range(config.num_steps), desc="tower", unit="step", dynamic_ncols=True) as bar:
        for _ in bar:
            rows = rng.choice(len(pixels), config.batch_size, replace=False)
            taught, state, right = update(taught, state, pixels[rows], words[rows])
            found.append(float(right))
            bar.set_postfix(right=f"{found[-1]:.3f}")
    nnx.update(model, taught)
    return float(np.mean(found[-100:]))


def name_patches(scene: scenes.Scene) -> Int[np.ndarray, "P G"]:
    """The true word of each group, by its number, for each of the 36 patches; four lie in a cell of the grid."""
    cells = np.zeros((len(scenes.PLACES), len(GROUPS)), int)
    cells[:, :3] = [GROUPS[0].index(ABSENT), GROUPS[1].index(ABSENT), 0]
    cells[:, 3], cells[:, 4] = np.divmod(np.arange(len(cells)), 3)
    for item in scene.objects:
        number = len(scene.places(item.shape))
        cells[scenes.PLACES.index(item.place), :3] = [
            GROUPS[0].index(item.shape), GROUPS[1].index(item.color), number
        ]  # fmt: skip
    grid = cells.reshape(3, 3, len(GROUPS))
    return grid.repeat(2, axis=0).repeat(2, axis=1).reshape(-1, len(GROUPS))


def _lessons(count: int, seed: int) -> tuple[UInt8[np.ndarray, "N S S 3"], Int[np.ndarray, "N P G"]]:
    found: Sequence[scenes.Scene] = [scenes.make_scene(np.random.default_rng([seed, 50, n])) for n in range(count)]
    bar = tqdm(found, desc="drawing, tower", unit="scene", dynamic_ncols=True)
    return np.stack([np.asarray(draw(scene)) for scene in bar]), np.stack([name_patches(scene) for scene in found])


def _unit(x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
