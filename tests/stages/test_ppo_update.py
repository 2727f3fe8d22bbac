"""The update on shared prefixes against separate conversations, and against the formulas in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.inference.test_tree_attention import CONFIG, IMAGE
from vigor_jax.data.batches.response_rows import join_responses, response_row, split_responses
from vigor_jax.data.batches.tree_batches import collate
from vigor_jax.inference.logprobs import CHUNK, collate_responses, per_token_logps, target_logps
from vigor_jax.inference.tree_attention import visible
from vigor_jax.models.value_head import ValueHead
from vigor_jax.models.vlm import abstract_model, param_paths
from vigor_jax.stages.ppo_config import PpoConfig
from vigor_jax.stages.ppo_update import PpoRows, ppo_loss, score_responses

LENGTHS = ((5, 1, 8), (3, 3, 2))  # tokens of the responses to each image
NUM_PLACES, WIDTH = 16, 8


def make_model(seed=0):
    """A random one, with a value head that says something."""
    rng = np.random.default_rng(seed)
    model = abstract_model(CONFIG, scan=True)
    model.value_head = nnx.eval_shape(lambda: ValueHead(CONFIG.text.hidden_size, dtype=jnp.float32))
    graphdef, weights = nnx.split(model)
    for path, variable in param_paths(weights).items():
        values = rng.standard_normal(variable.get_value().shape, np.float32) * 0.2
        variable.set_value(jnp.asarray(values + path.endswith("scale")))
    return graphdef, weights


def make_groups(seed=0):
    """Prompts with the responses to each, and images."""
    rng = np.random.default_rng(seed)
    groups = []
    for lengths in LENGTHS:
        words = rng.integers(0, 99, rng.integers(3, 6))
        prompt = [1, *[IMAGE] * 4, *words.tolist()]
        groups.append((prompt, [rng.integers(0, 99, length).tolist() for length in lengths]))
    return groups, rng.integers(0, 256, (len(groups), 28, 28, 3)).astype(np.uint8)


def make_rows(groups, pixels, seed=1):
    """`PpoRows`, and what they hold of each response: {name: one array a response, in order}."""
    rng = np.random.default_rng(seed)
    names = ("old_logps", "ref_logps", "old_values", "advantages", "returns")
    responses = [response for _, some in groups for response in some]
    each = {name: [rng.standard_normal(len(response)).astype(np.float32) for response in responses] for name in names}
    each["old_logps"] = [x - 4 for x in each["old_logps"]]
    each["ref_logps"] = [x - 4 for x in each["ref_logps"]]
    rows = [response_row(prompt, some) for prompt, some in groups]
    tree = collate(rows, 40, NUM_PLACES, 0, pixels[:, None])
    flat, first = {name: [] for name in names}, 0
    for _, some in groups:
        for name in names:
            joined = np.concatenate(each[name][first : first + len(some)])
            flat[name].append(np.pad(joined, (0, NUM_PLACES - len(joined))))
        first += len(some)
    arrays = {name: np.stack(flat[name]) for name in names}
    each_row = {"kl_factor": np.full(len(groups), 0.3, np.float32), "is_old": np.zeros(len(groups), bool)}
    return PpoRows(tree, **arrays, **each_row), each


CONFIGS = {
    "value": PpoConfig(),
    "kl in the loss": PpoConfig(kl_in="loss", kl="k3", value_clip=0),
    "no critic": PpoConfig(baseline="rloo"),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.main] * (name != "value")) for name in CONFIGS])
def test_loss_and_gradients_equal_those_of_separate_rows(name):
    config = dataclasses.replace(CONFIGS[name], remat="none")
    graphdef, weights = make_model()
    groups, pixels = make_groups()
    rows, each = make_rows(groups, pixels)
    prompts = [prompt for prompt, some in groups for _ in some]
    responses = [response for _, some in groups for response in some]
    images = np.repeat(pixels, [len(some) for _, some in groups], axis=0)
    batch = collate_responses(prompts, responses, images, num_rows=len(responses), bucket=8)
    padded = {key: np.stack([np.pad(x, (0, WIDTH - len(x))) for x in values]) for key, values in each.items()}

    def shared(weights):
        loss, sums = ppo_loss(nnx.merge(graphdef, weights), rows, config)
        return loss, sums

    def separate(weights):
        """The same formulas on one conversation a row, under plain causal attention, and written out here."""
        model = nnx.merge(graphdef, weights)
        mask = batch.response_mask
        logps = per_token_logps(model, batch)
        ratio = jnp.exp(logps - padded["old_logps"])
        a = padded["advantages"]
        loss = -jnp.minimum(ratio * a, jnp.clip(ratio, 1 - config.clip_range, 1 + config.clip_range) * a)
        if config.baseline == "value":
            hidden = model(batch.token_ids, batch.pixels)
            at = np.minimum(batch.prompt_lengths[:, None] - 1 + np.arange(WIDTH), batch.token_ids.shape[1] - 1)
            values = model.value_head(jnp.take_along_axis(hidden, at[..., None], axis=1))
            error = (values - padded["returns"]) ** 2
            if config.value_clip:
                moved = jnp.clip(values, padded["old_values"] - 0.2, padded["old_values"] + 0.2)
                error = jnp.maximum(error, (moved - padded["returns"]) ** 2)
            loss += 0.1 * 0.5 * error
        if config.kl_in == "loss":
            d = padded["ref_logps"] - logps
            loss += 0.3 * (jnp.exp(d) - 1 - d)
        return jnp.sum(jnp.where(mask, loss, 0)), jnp.sum(mask)

    (found, sums), found_grads = jax.jit(jax.value_and_grad(shared, has_aux=True))(weights)
    (expected, count), expected_grads = jax.jit(jax.value_and_grad(separate, has_aux=True))(weights)
    assert float(sums["tokens"]) == int(count) == sum(map(sum, LENGTHS))
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    expected_grads = param_paths(expected_grads)
    for path, one in param_paths(found_grads).items():
        # Keys' biases shift all scores of a softmax alike: their gradient is rounding errors.
        other = expected_grads[path.replace("k_proj.bias", "q_proj.bias")]
        difference = np.linalg.norm(one[...] - expected_grads[path][...])
        assert difference <= 1e-5 * np.linalg.norm(other[...]) + 1e-7, path
    trains_values = np.any(np.asarray(param_paths(found_grads)["value_head.kernel"][...]))
    assert trains_values == (config.baseline == "value")


@pytest.mark.main
def test_on_the_old_policy_every_ratio_is_1():
    graphdef, weights = make_model()
    groups, pixels = make_groups()
    rows, _ = make_rows(groups, pixels)
    scores = jax.jit(lambda weights, rows: score_responses(nnx.merge(graphdef, weights), rows))(weights, rows.responses)
    rows = rows._replace(old_logps=scores.logps, old_values=scores.values, is_old=np.ones(len(groups), bool))
    step = jax.jit(jax.grad(lambda w, rows: ppo_loss(nnx.merge(graphdef, w), rows, PpoConfig()), has_aux=True))
    grads, sums = step(weights, rows)
    for name in ("approx_kl", "clip_share", "value_clip_share"):
        assert float(sums[name]) == 0, name  # to the last bit
    assert float(sums["policy_loss"]) == pytest.approx(-float(np.sum(rows.advantages)), rel=1e-6)
    assert 0 <= float(sums["logps_error"]) < 1e-5 * sum(map(sum, LENGTHS))  # the passes agree but for rounding

    # Without the flag: the same gradient, as the ratio is the same.
    stored, _ = step(weights, rows._replace(is_old=np.zeros(len(groups), bool)))
    for one, other in zip(jax.tree.leaves(grads), jax.tree.leaves(stored), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.main
def test_a_frozen_output_matrix_changes_no_gradient():
    """Below it, each token's gradient is taken with its scores; otherwise they are computed again."""
    graphdef, weights = make_model()
    rng = np.random.default_rng(3)
    length = 2 * CHUNK + 3  # chunks that do not divide it
    hidden, d_logps = (jnp.asarray(rng.normal(size=(2, length, *rest)), jnp.float32) for rest in ((32,), ()))
    targets = jnp.asarray(rng.integers(0, 99, (2, length)))
    head = nnx.merge(graphdef, weights).language_model.head()

    def loss(hidden, head):
        model = nnx.merge(graphdef, weights)
        model.language_model.lm_head = nnx.Param(head)
        return jnp.sum(target_logps(model, hidden, targets)[0] * d_logps)

    def plain(hidden, head):
        scores = jax.nn.log_softmax(hidden @ head)
        return jnp.sum(jnp.take_along_axis(scores, targets[..., None], -1)[..., 0] * d_logps)

    frozen, trained = jax.grad(loss), jax.grad(loss, (0, 1))
    expected, expected_head = jax.grad(plain, (0, 1))(hidden, head)
    found, found_head = trained(hidden, head)
    np.testing.assert_allclose(frozen(hidden, head), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found_head, expected_head, rtol=1e-4, atol=1e-4)
    assert str(jax.make_jaxpr(frozen)(hidden, head)).count("dot_general[") == 2


@pytest.mark.main
def test_entropy_is_that_of_the_whole_distribution():
    graphdef, weights = make_model()
    groups, pixels = make_groups()
    rows, _ = make_rows(groups, pixels)
    scores = score_responses(nnx.merge(graphdef, weights), rows.responses)
    model = nnx.merge(graphdef, weights)
    (prompt, responses), _ = groups
    ids = np.array([prompt + responses[0]], np.int32)
    logits = np.asarray(model.language_model.logits(model(ids, pixels[:1, None])))[0].astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    at = slice(len(prompt) - 1, len(prompt) - 1 + len(responses[0]))
    entropies = -(np.exp(log_p) * log_p).sum(-1)[at]
    np.testing.assert_allclose(np.asarray(scores.entropies[0, : len(entropies)]), entropies, rtol=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(1, 5), st.integers(0, 2**31))
def test_a_row_is_its_prompt_and_its_responses(lengths, start, seed):
    rng = np.random.default_rng(seed)
    prompt = rng.integers(0, 50, start).tolist()
    responses = [rng.integers(50, 99, length).tolist() for length in lengths]
    row = response_row(prompt, responses)
    assert len(row.token_ids) == start + sum(lengths) - len(lengths)
    sees = np.asarray(visible(row.positions[None], np.arange(len(row.positions))[None]))[0]
    assert not np.triu(sees, 1).any()  # attention may skip what is behind a token
    place = iter(zip(row.places, row.targets, strict=True))
    for response in responses:
        for index, token in enumerate(response):
            before, target = next(place)
            assert target == token
            # What the model has read there is the prompt and this response up to the token, each at its position.
            read = np.flatnonzero(sees[before])
            assert row.token_ids[read].tolist() == [*prompt, *response[:index]]
            assert row.positions[read].tolist() == list(range(start + index))
    values = rng.standard_normal(sum(lengths)).astype(np.float32)
    padded = np.pad(values, (0, 3), constant_values=9)
    split = split_responses(padded, lengths, 6)
    np.testing.assert_array_equal(join_responses(split, lengths, len(padded)), np.pad(values, (0, 3)))
    assert [row[row != 0].size for row in split] == lengths
