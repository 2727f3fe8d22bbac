"""The models against transformers in float32: towers, layers, logits, loss and gradients."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from tests.tiny_llava import Tiny, build_model
from vigor_jax.data.text.conversation import IGNORE_INDEX
from vigor_jax.hf.llava import config as llava_config
from vigor_jax.hf.llava import names
from vigor_jax.models import layers
from vigor_jax.models.attention import attention
from vigor_jax.models.clip import normalize
from vigor_jax.models.llama import rope
from vigor_jax.models.llava import Llava
from vigor_jax.models.vlm import abstract_model, param_paths

TINY = Tiny()
VARIANTS = [
    TINY,
    *(dataclasses.replace(TINY, kv_heads=heads) for heads in (1, 4)),
    *(dataclasses.replace(TINY, rms_norm_eps=eps) for eps in (1e-6, 1e-3)),
    *(dataclasses.replace(TINY, feature_layer=layer) for layer in (-1, -3, 1, 2, 3)),
    *(dataclasses.replace(TINY, full=True, feature_layer=layer) for layer in (-1, -2)),
    dataclasses.replace(TINY, linear_projector=True),
    dataclasses.replace(TINY, linear_projector=True, full=True, kv_heads=4, rms_norm_eps=1e-6),
    dataclasses.replace(TINY, vision_act="gelu"),
    dataclasses.replace(TINY, rope_theta=500.0),
    dataclasses.replace(TINY, tied=True),
    dataclasses.replace(TINY, text_width=48, head_dim=8, heads=6, kv_heads=3),
    dataclasses.replace(TINY, text_layers=1, vision_layers=2),
    dataclasses.replace(TINY, text_layers=5, text_width=48, text_mlp=80),
    dataclasses.replace(TINY, image_size=56, patch_size=8, vision_heads=2),
    dataclasses.replace(TINY, vision_width=64, vision_mlp=32, vision_layers=4),
    dataclasses.replace(TINY, vocab_size=600, image_token_id=599),
]
# Each takes long to compile. Four variants are in the fast tests, the first with the newest JAX; in the main ones, too,
# the logits of all others but those between the extremes of a setting, and the gradients of the five whose backward
# passes differ most; the rest is slow.
FAST, MAIN = (0, 13, 16, 17), (1, 6, 10, 14, 21)
OTHERS = tuple(index for index in range(len(VARIANTS)) if index not in (2, 3, 5, 7, 8, 11))


def case_of(index: int, main: tuple[int, ...] = ()) -> Any:
    """A variant as a case of a test, with its marks."""
    marks = [pytest.mark.main] * (index in (*main, *FAST[1:])) + [pytest.mark.slow] * (index not in FAST)
    return pytest.param(VARIANTS[index], marks=marks, id=f"{index}")


def port(model, tiny: Tiny, *, scan: bool) -> Llava:
    """Our model with the weights of a transformers model, through the table of names."""
    path = "config.json"
    config = llava_config.from_hf(model.config.to_dict(), path)
    weights = {names.canonical_hf(name): value.detach().numpy() for name, value in model.state_dict().items()}
    return fill(config, names.entries(config), weights, scan=scan)


def fill(config, entries, weights: dict[str, np.ndarray], *, scan: bool) -> Any:
    """Our model with weights by their canonical names."""
    graphdef, state = nnx.split(abstract_model(config, scan=scan))
    stacks: dict[str, list[np.ndarray]] = {}
    for entry in entries:
        path = entry.path if scan else entry.unstacked_path
        stacks.setdefault(path, []).append(weights[entry.name].transpose(entry.axes))
    for path, variable in param_paths(state).items():
        value = np.stack(stacks[path]) if scan and ".layers." in path else stacks[path][0]
        assert value.shape == variable.get_value().shape, path
        variable.set_value(jnp.asarray(value))
    return nnx.merge(graphdef, state)


@dataclasses.dataclass
class Case:
    """A ragged batch, padded on the right, with the transformers model's view of it."""

    token_ids: np.ndarray
    labels: np.ndarray
    mask: np.ndarray
    pixels: np.ndarray
    pixel_values: torch.Tensor


def make_case(tiny: Tiny, config, seed: int = 0) -> Case:
    rng = np.random.default_rng(seed)
    count, rows, width = tiny.num_image_tokens, 3, tiny.num_image_tokens + 24
    token_ids = rng.integers(3, min(tiny.image_token_id, tiny.vocab_size), (rows, width))
    mask = np.ones((rows, width), bool)
    for row, (start, length) in enumerate(((1, width), (4, width - 7), (0, width - 15))):
        token_ids[row, start : start + count] = tiny.image_token_id
        mask[row, length:] = False
    token_ids[~mask] = 0
    labels = np.where(
        mask & (token_ids != tiny.image_token_id) & (rng.random(mask.shape) < 0.6), token_ids, IGNORE_INDEX
    )
    pixels = rng.integers(0, 256, (rows, 1, tiny.image_size, tiny.image_size, 3), dtype=np.uint8)
    pixel_values = np.asarray(normalize(jnp.asarray(pixels[:, 0]), config.vision))
    return Case(token_ids, labels, mask, pixels, torch.tensor(pixel_values.transpose(0, 3, 1, 2)))


@functools.cache
def setup(tiny: Tiny, scan: bool = True):
    model = build_model(tiny)
    ours = port(model, tiny, scan=scan)
    return model, ours, make_case(tiny, ours.config)


def assert_close(ours, reference, tolerance: float) -> None:
    """max |Δ| within `tolerance` of the reference's spread."""
    ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    spread = reference.std()
    assert spread > 0
    assert np.abs(ours - reference).max() <= tolerance * spread


@pytest.mark.parametrize("tiny", [case_of(index, main=OTHERS) for index in range(len(VARIANTS))])
def test_logits(tiny):
    assert_equal_logits(tiny, scan=True)


@pytest.mark.parametrize("tiny", [case_of(index) for index in range(len(VARIANTS))])
def test_logits_of_separate_layers(tiny):
    assert_equal_logits(tiny, scan=False)


def assert_equal_logits(tiny, *, scan):
    model, ours, case = setup(tiny, scan)
    with torch.no_grad():
        reference = model(
            input_ids=torch.tensor(case.token_ids),
            pixel_values=case.pixel_values,
            attention_mask=torch.tensor(case.mask),
        ).logits.numpy()
    hidden = jax.jit(lambda model, *args: model(*args))(ours, case.token_ids, case.pixels)
    logits = np.asarray(ours.language_model.logits(hidden))
    assert logits.dtype == np.float32
    assert_close(logits[case.mask], reference[case.mask], 2e-4)


@pytest.mark.parametrize("tiny", [case_of(index, main=MAIN) for index in range(len(VARIANTS))])
def test_loss_and_gradients(tiny):
    model, ours, case = setup(tiny)
    model.zero_grad()
    loss = model(
        input_ids=torch.tensor(case.token_ids),
        pixel_values=case.pixel_values,
        attention_mask=torch.tensor(case.mask),
        labels=torch.tensor(case.labels),
    ).loss
    loss.backward()
    gradients = {
        names.canonical_hf(name): None if weight.grad is None else weight.grad.numpy()
        for name, weight in model.named_parameters()
    }

    def our_loss(model):
        hidden = model(jnp.asarray(case.token_ids), jnp.asarray(case.pixels), remat="full")
        logp = jax.nn.log_softmax(model.language_model.logits(hidden[:, :-1]))
        labels = case.labels[:, 1:]
        picked = jnp.take_along_axis(logp, np.maximum(labels, 0)[..., None], -1)[..., 0]
        return -(picked * (labels != IGNORE_INDEX)).sum() / (labels != IGNORE_INDEX).sum()

    value, grads = jax.jit(nnx.value_and_grad(our_loss))(ours)
    assert abs(float(value) - loss.item()) <= 1e-3 * loss.item()
    grads = param_paths(grads)
    compared = 0
    for entry in names.entries(ours.config):
        reference = gradients[entry.name]
        got = np.asarray(grads[entry.path].get_value())
        got = got if entry.layer is None else got[entry.layer]
        if reference is None:  # a part that does no work: later layers of the tower, its last norm
            assert not got.any(), entry.name
            continue
        reference = reference.transpose(entry.axes)
        # A key's bias shifts all scores of a query alike, so its true gradient is zero; both sides hold rounding noise.
        if entry.name.endswith("k_proj.bias"):
            continue
        compared += 1
        assert np.linalg.norm(got - reference) <= 1e-3 * np.linalg.norm(reference), entry.name
    assert compared > 20


def test_each_vision_layer():
    model, ours, case = setup(TINY)
    with torch.no_grad():
        states = model.model.vision_tower(case.pixel_values, output_hidden_states=True).hidden_states
    pixel_values = normalize(jnp.asarray(case.pixels[:, 0]), ours.config.vision)
    assert_close(ours.vision_tower.embed(pixel_values), states[0], 2e-4)
    graphdef, weights = nnx.split(ours.vision_tower.layers)
    for i in range(TINY.vision_layers):
        layer = nnx.merge(graphdef, jax.tree.map(lambda w, i=i: w[i], weights))
        assert_close(layer(jnp.asarray(states[i].numpy())), states[i + 1], 2e-4)


def test_each_decoder_layer():
    model, ours, case = setup(TINY)
    with torch.no_grad():
        states = model.model.language_model(
            input_ids=torch.tensor(np.minimum(case.token_ids, 500)), output_hidden_states=True
        ).hidden_states
    positions = np.broadcast_to(np.arange(case.token_ids.shape[1]), case.token_ids.shape)
    rotation = rope(jnp.asarray(positions), ours.config.text)
    graphdef, weights = nnx.split(ours.language_model.layers)
    for i in range(TINY.text_layers):
        layer = nnx.merge(graphdef, jax.tree.map(lambda w, i=i: w[i], weights))
        x, _ = layer(jnp.asarray(states[i].numpy()), rotation, lambda q, k, v: (attention(q, k, v, causal=True), None))
        last = i == TINY.text_layers - 1  # the library's last hidden state is after the final norm
        assert_close(ours.language_model.norm(x) if last else x, states[i + 1], 2e-4)


@pytest.mark.main
def test_several_images_and_none():
    """A row with two images equals transformers; a row of text ignores whatever fills its image places."""
    model, ours, _ = setup(TINY)
    rng = np.random.default_rng(1)
    count = TINY.num_image_tokens
    token_ids = rng.integers(3, 500, (2, 2 * count + 10))
    token_ids[0, 2 : 2 + count] = token_ids[0, 5 + count : 5 + 2 * count] = TINY.image_token_id
    pixels = rng.integers(0, 256, (2, 2, TINY.image_size, TINY.image_size, 3), dtype=np.uint8)
    values = np.asarray(normalize(jnp.asarray(pixels[0]), ours.config.vision)).transpose(0, 3, 1, 2)
    with torch.no_grad():
        first = model(input_ids=torch.tensor(token_ids[:1]), pixel_values=torch.tensor(values)).logits.numpy()
        second = model(input_ids=torch.tensor(token_ids[1:])).logits.numpy()
    logits = ours.language_model.logits(ours(jnp.asarray(token_ids), jnp.asarray(pixels)))
    assert_close(logits[:1], first, 2e-4)
    assert_close(logits[1:], second, 2e-4)


def gradients(remat: str) -> dict[str, nnx.Variable]:
    """Of a sum of squares."""
    _, ours, case = setup(TINY)

    def loss(model):
        return jnp.square(model(jnp.asarray(case.token_ids), jnp.asarray(case.pixels), remat=remat)).sum()

    return param_paths(nnx.grad(loss)(ours))


@pytest.fixture(scope="module")
def plain():
    return gradients("none")


@pytest.mark.main
@pytest.mark.parametrize("remat", sorted(set(layers.REMAT_POLICIES) - {"none"}))
def test_remat_changes_no_gradient(plain, remat):
    again = gradients(remat)
    for path in plain.keys() - {"vision_tower.layers.k_proj.bias"}:  # its true gradient is zero, see above
        a, b = (np.asarray(grads[path].get_value()) for grads in (plain, again))
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(a), path


@pytest.mark.slow
@pytest.mark.main
def test_bfloat16_keeps_norms_and_logits_in_float32():
    """Half precision stays near float32, as near as transformers' own bfloat16 does."""
    _, ours, case = setup(TINY)
    graphdef, state = nnx.split(ours)
    half = nnx.merge(graphdef, jax.tree.map(lambda w: w.astype(jnp.bfloat16), state))
    hidden = half(jnp.asarray(case.token_ids), jnp.asarray(case.pixels))
    logits = half.language_model.logits(hidden)
    assert hidden.dtype == jnp.bfloat16
    assert logits.dtype == jnp.float32
    exact = np.asarray(ours.language_model.logits(ours(jnp.asarray(case.token_ids), jnp.asarray(case.pixels))))
    with torch.no_grad():
        reference = (
            build_model(TINY)
            .bfloat16()(
                input_ids=torch.tensor(case.token_ids),
                pixel_values=case.pixel_values.bfloat16(),
                attention_mask=torch.tensor(case.mask),
            )
            .logits.float()
            .numpy()
        )
    ours_error = np.abs(np.asarray(logits) - exact)[case.mask].mean()
    their_error = np.abs(reference - exact)[case.mask].mean()
    assert ours_error <= 1.25 * their_error
