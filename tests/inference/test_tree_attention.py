"""The mask against ancestors found by following parents; states, gradients and answers against separate sequences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vigor_jax.data.batches.tree_batches import TreeRows
from vigor_jax.inference import tree_attention
from vigor_jax.inference.tree_attention import answer_places, hidden_states_at, visible
from vigor_jax.models.clip import ClipConfig
from vigor_jax.models.llama import LlamaConfig
from vigor_jax.models.llava import LlavaConfig
from vigor_jax.models.vlm import abstract_model, param_paths

IMAGE = 99
CONFIG = LlavaConfig(
    vision=ClipConfig(
        image_size=28, patch_size=14, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=2
    ),
    text=LlamaConfig(
        vocab_size=100, hidden_size=32, intermediate_size=48, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=8
    ),
    image_token_id=IMAGE,
)  # fmt: skip


def random_tree(rng) -> tuple[np.ndarray, list[int]]:
    """The position of each token, and its parent, the prefix's first having -1."""
    positions, parents = [], []

    def grow(count: int, parent: int) -> int:
        for _ in range(count):
            positions.append(positions[parent] + 1 if parent >= 0 else 0)
            parents.append(parent)
            parent = len(parents) - 1
        return parent

    prefix = grow(int(rng.integers(5, 9)), -1)
    for _ in range(rng.integers(1, 4)):
        end = prefix
        for _ in range(rng.integers(1, 4)):
            end = grow(int(rng.integers(1, 5)), end)
            grow(int(rng.integers(1, 4)), end)
    return np.array(positions, np.int32), parents


def ancestors(parents: list[int], token: int) -> list[int]:
    """From the prefix's first to the token itself."""
    return [*(ancestors(parents, parents[token]) if parents[token] >= 0 else []), token]


def random_model(rng, *, scan):
    graphdef, weights = nnx.split(abstract_model(CONFIG, scan=scan))
    for path, variable in param_paths(weights).items():
        values = rng.standard_normal(variable.get_value().shape, np.float32) * 0.08  # every layer is to matter
        variable.set_value(values + path.endswith("scale"))
    return graphdef, weights


@pytest.mark.parametrize("seed", range(20))
def test_visible_are_the_ancestors(seed):
    positions, parents = random_tree(np.random.default_rng(seed))
    count = len(positions)
    mask = np.asarray(visible(np.pad(positions, (0, 3))[None], np.arange(count + 3)[None]))
    assert mask.shape == (1, count + 3, count + 3)
    for token in range(count):
        assert np.flatnonzero(mask[0, token]).tolist() == sorted(ancestors(parents, token))
    assert mask[0, count:].any(1).all()  # a softmax over nothing is not a number


@pytest.mark.parametrize(("scan", "remat"), [(False, "none"), pytest.param(True, "full", marks=pytest.mark.slow)])
def test_states_and_gradients_equal_those_of_sequences(scan, remat):
    rng = np.random.default_rng(1)
    graphdef, weights = random_model(rng, scan=scan)
    positions, parents = random_tree(rng)
    count = len(positions)
    token_ids = rng.integers(0, 99, count + 4).astype(np.int32)
    token_ids[1:5] = IMAGE
    pixels = rng.integers(0, 256, (1, 1, 28, 28, 3)).astype(np.uint8)
    places = np.arange(count, dtype=np.int32)[None]
    nothing = np.zeros_like(places)
    rows = TreeRows(token_ids[None], np.pad(positions, (0, 4))[None], places, nothing, nothing, pixels)
    wanted = rng.standard_normal((count, CONFIG.text.hidden_size)).astype(np.float32)

    def in_tree(weights):
        hidden = hidden_states_at(nnx.merge(graphdef, weights), rows, remat=remat)[0]
        return jnp.sum(hidden * wanted), hidden

    paths = [ancestors(parents, leaf) for leaf in range(count) if leaf not in parents]
    sequences = np.zeros((len(paths), max(map(len, paths))), np.int32)
    first = {}  # token → (sequence, place) where it stands first
    for index, path in enumerate(paths):
        sequences[index, : len(path)] = token_ids[path]
        first = {token: (index, place) for place, token in enumerate(path)} | first
    order = tuple(np.array([first[token] for token in range(count)]).T)

    def one_by_one(weights):
        hidden = nnx.merge(graphdef, weights)(sequences, np.repeat(pixels, len(paths), 0))[order]
        return jnp.sum(hidden * wanted), hidden

    (_, found), found_grads = jax.jit(jax.value_and_grad(in_tree, has_aux=True))(weights)
    (_, expected), expected_grads = jax.jit(jax.value_and_grad(one_by_one, has_aux=True))(weights)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    expected_grads = param_paths(expected_grads)
    for path, one in param_paths(found_grads).items():
        # Keys' biases shift all scores of a softmax alike: their gradient is rounding errors.
        other = expected_grads[path.replace("k_proj.bias", "q_proj.bias")]
        difference = one[...] - expected_grads[path][...]
        assert np.linalg.norm(difference) <= 1e-5 * np.linalg.norm(other[...]), path


def test_answers_do_not_depend_on_how_many_rows_are_kept(monkeypatch):
    """That they are right, `tests.rewards.test_reward_model` says."""
    rng = np.random.default_rng(2)
    graphdef, weights = random_model(rng, scan=False)
    length, num_rows = 80, 4  # longer than any such tree
    token_ids = rng.integers(0, 99, (num_rows, length)).astype(np.int32)
    token_ids[:, 1:5] = IMAGE
    pixels = rng.integers(0, 256, (num_rows, 1, 28, 28, 3)).astype(np.uint8)
    positions, places = np.zeros((num_rows, length), np.int32), np.zeros((num_rows, 9), np.int32)
    is_asked = np.zeros((num_rows, 9), np.float32)
    for row in range(num_rows):
        found, parents = random_tree(rng)
        leaves = [token for token in range(len(found)) if token not in parents]
        positions[row, : len(found)] = found
        places[row, : len(leaves)], is_asked[row, : len(leaves)] = leaves, 1
    rows = TreeRows(token_ids, positions, places, np.zeros_like(places), is_asked, pixels)

    def answers(num_rows_kept):
        monkeypatch.setattr(tree_attention, "TOKENS_AT_ONCE", {"cpu": num_rows_kept * length})

        def run(weights, eos_id):
            model = nnx.merge(graphdef, weights)
            return answer_places(model, rows, jnp.arange(100), jnp.arange(100) < 90, num_tokens=5, eos_id=eos_id)

        return jax.jit(run)

    run = answers(num_rows)
    eos_id = run(weights, -1).token_ids[0, 0, 2]  # so that some answers end early
    together, in_parts = (jax.tree.map(np.asarray, each(weights, eos_id)) for each in (run, answers(2)))
    np.testing.assert_allclose(in_parts.scores, together.scores, atol=1e-5 * np.abs(together.scores).max())
    is_end = together.token_ids == eos_id
    counts = (is_asked > 0)[..., None] & (np.cumsum(is_end, axis=-1) == is_end)  # nothing behind an end
    assert (counts.sum(-1)[is_asked > 0] < 5).any()
    np.testing.assert_array_equal(np.where(counts, in_parts.token_ids, 0), np.where(counts, together.token_ids, 0))
