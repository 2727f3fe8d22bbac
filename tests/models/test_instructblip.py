"""InstructBLIP against transformers in float32: tower, Q-Former, decoder, logits, loss, gradients and greedy captions.

Each row is given to transformers alone: in a batch, its processor pads the Q-Former's words on the wrong side.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from tests.models.test_parity import assert_close, fill
from tests.tiny_instructblip import IMAGE_TOKEN_ID, TinyBlip, build_model, instruction_rows
from vigor_jax.data.text.conversation import IGNORE_INDEX
from vigor_jax.hf.instructblip import names
from vigor_jax.hf.instructblip.config import from_hf
from vigor_jax.models import layers
from vigor_jax.models.attention import attention
from vigor_jax.models.clip import normalize
from vigor_jax.models.instructblip import InstructBlip
from vigor_jax.models.llama import rope
from vigor_jax.models.vlm import param_paths

TINY = TinyBlip()
FIXED = (
    TINY,
    dataclasses.replace(TINY, kv_heads=4, frequency=1, layers=2),
    dataclasses.replace(TINY, frequency=4, queries=1, vision_act="quick_gelu"),
    dataclasses.replace(TINY, qkv_bias=False, kv_heads=1, rms_norm_eps=1e-5),
)


def drawn(seed: int) -> TinyBlip:
    """Random sizes."""
    rng = np.random.default_rng(seed)

    def one_of(*values: Any) -> Any:
        return values[rng.integers(len(values))]

    kv_heads, groups, head_dim = one_of(1, 2, 3), one_of(1, 2), one_of(4, 8, 16)
    vision_heads, qformer_heads = one_of(1, 2, 4), one_of(1, 2, 3)
    frequency = one_of(1, 2, 2, 3)
    patch = one_of(4, 7, 14)
    return TinyBlip(
        text_width=kv_heads * groups * one_of(8, 12), text_mlp=one_of(40, 96), text_layers=one_of(1, 2, 3),
        heads=kv_heads * groups, kv_heads=kv_heads, head_dim=head_dim, rms_norm_eps=one_of(1e-6, 1e-5),
        rope_theta=one_of(500.0, 10000.0), tied=one_of(True, False), vision_width=vision_heads * one_of(8, 11),
        vision_mlp=one_of(24, 56), vision_layers=one_of(1, 2, 4), vision_heads=vision_heads,
        image_size=patch * one_of(2, 3), patch_size=patch, vision_act=one_of("gelu", "gelu", "quick_gelu"),
        qkv_bias=one_of(True, True, False), width=qformer_heads * one_of(6, 10), mlp=one_of(20, 64),
        layers=frequency * one_of(1, 2, 3), qformer_heads=qformer_heads, frequency=frequency,
        queries=one_of(1, 3, 8), words=one_of(120, 300),
    )  # fmt: skip


CONFIGS = (*FIXED, *map(drawn, range(16)))
FAST, MAIN = (0, 5), (2, 9)


def cases(main: tuple[int, ...] = MAIN) -> list[Any]:
    """The configs as cases of a test, with their marks."""
    found = []
    for index, tiny in enumerate(CONFIGS):
        marks = [] if index in FAST else [pytest.mark.slow, *([pytest.mark.main] if index in main else [])]
        found.append(pytest.param(tiny, marks=marks, id=f"{index}"))
    return found


def port(model, *, scan: bool) -> InstructBlip:
    """Our model with the weights of a transformers model, through the table of names."""
    config = from_hf(model.config.to_dict(), "config.json")
    weights = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    return fill(config, names.entries(config), weights, scan=scan)


@dataclasses.dataclass
class Case:
    """Rows of several lengths, padded on the right, each with an image; and rows without one."""

    token_ids: np.ndarray
    labels: np.ndarray
    lengths: tuple[int, ...]
    pixels: np.ndarray
    instructions: np.ndarray
    num_words: tuple[int, ...]


LENGTHS, NUM_WORDS = (20, 13, 7, 17), (2, 11, 5, 3)
WITH_IMAGE = (True, True, True, False)


def make_case(tiny: TinyBlip, seed: int = 0) -> Case:
    rng = np.random.default_rng(seed)
    lengths = tuple(length + tiny.queries for length in LENGTHS)
    rows, width = len(lengths), max(lengths)
    token_ids = rng.integers(3, IMAGE_TOKEN_ID, (rows, width))
    labels = np.full_like(token_ids, IGNORE_INDEX)
    for row, (length, has_image) in enumerate(zip(lengths, WITH_IMAGE, strict=True)):
        token_ids[row, length:] = 0
        start = tiny.queries if has_image else 0
        token_ids[row, :start] = IMAGE_TOKEN_ID
        token_ids[row, start] = 2  # </s> begins a text
        labels[row, start + 3 : length] = token_ids[row, start + 3 : length]
    pixels = rng.integers(0, 256, (rows, 1, tiny.image_size, tiny.image_size, 3), dtype=np.uint8)
    return Case(token_ids, labels, lengths, pixels, instruction_rows(rng, NUM_WORDS, tiny)[:, None], NUM_WORDS)


@functools.cache
def setup(tiny: TinyBlip, scan: bool = True) -> tuple[Any, InstructBlip, Case]:
    model = build_model(tiny)
    return model, port(model, scan=scan), make_case(tiny)


def their_arguments(case: Case, row: int, config) -> dict[str, torch.Tensor]:
    values = np.asarray(normalize(jnp.asarray(case.pixels[row]), config.vision)).transpose(0, 3, 1, 2)
    return {
        "input_ids": torch.tensor(case.token_ids[row : row + 1, : case.lengths[row]]),
        "pixel_values": torch.tensor(values),
        "qformer_input_ids": torch.tensor(case.instructions[row, :, : case.num_words[row]]).long(),
    }


def their_logits(model, case: Case, row: int, config, *, labels: bool = False) -> torch.Tensor:
    """Of one row alone; of one without an image, by the language model alone, as transformers would be asked."""
    arguments = their_arguments(case, row, config)
    if WITH_IMAGE[row]:
        return model(**arguments).logits[0]
    return model.language_model(input_ids=arguments["input_ids"]).logits[0]


def our_logits(model, case: Case, remat: str = "none"):
    hidden = model(
        jnp.asarray(case.token_ids), jnp.asarray(case.pixels), instructions=jnp.asarray(case.instructions), remat=remat
    )
    return model.language_model.logits(hidden)


@pytest.mark.parametrize("tiny", cases())
@pytest.mark.parametrize("scan", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_logits(tiny, scan):
    model, ours, case = setup(tiny, scan)
    found = np.asarray(jax.jit(lambda model: our_logits(model, case))(ours))
    for row, length in enumerate(case.lengths):
        with torch.no_grad():
            assert_close(found[row, :length], their_logits(model, case, row, ours.config), 2e-4)


@pytest.mark.parametrize("tiny", cases())
def test_loss_and_gradients(tiny):
    model, ours, case = setup(tiny)
    model.zero_grad()
    losses, count = [], 0
    for row, length in enumerate(case.lengths):
        labels = torch.tensor(case.labels[row, 1:length])
        logits = their_logits(model, case, row, ours.config)[:-1]
        losses.append(torch.nn.functional.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORE_INDEX))
        count += int((labels != IGNORE_INDEX).sum())
    loss = sum(losses) / count
    loss.backward()

    def our_loss(model):
        logp = jax.nn.log_softmax(our_logits(model, case, "full")[:, :-1])
        labels = case.labels[:, 1:]
        picked = jnp.take_along_axis(logp, np.maximum(labels, 0)[..., None], -1)[..., 0]
        return -(picked * (labels != IGNORE_INDEX)).sum() / (labels != IGNORE_INDEX).sum()

    value, grads = jax.jit(nnx.value_and_grad(our_loss))(ours)
    assert abs(float(value) - loss.item()) <= 1e-3 * loss.item()
    found = param_paths(grads)
    compared = 0
    their = {name: weight.grad for name, weight in model.named_parameters()}
    for entry in names.entries(ours.config):
        got = np.asarray(found[entry.path].get_value())
        got = got if entry.layer is None else got[entry.layer]
        if their[entry.name] is None:  # the words after the last layer
            assert not got.any(), entry.name
            continue
        reference = their[entry.name].numpy().transpose(entry.axes)
        # A key's bias shifts all scores of a query alike, so its true gradient is zero; both sides hold rounding noise.
        if entry.name.endswith(".key.bias"):
            continue
        if entry.name.endswith(".qkv.bias"):
            got, reference = (np.delete(each.reshape(3, -1), 1, axis=0) for each in (got, reference))
        if entry.name == "qformer.embeddings.word_embeddings.weight":
            got = got * (np.arange(len(got)) != 0)[:, None]  # transformers' table learns nothing of its padding word
        compared += 1
        assert np.linalg.norm(got - reference) <= 1e-3 * np.linalg.norm(reference), entry.name
    assert compared > 30


@pytest.mark.parametrize("tiny", cases())
def test_greedy_captions(tiny):
    """64 tokens after the prompt of the longest instruction, each by a plain forward of ours."""
    model, ours, case = setup(tiny)
    row, prompt = 1, case.token_ids[1, : tiny.queries + 6]
    arguments = their_arguments(case, row, ours.config) | {"input_ids": torch.tensor(prompt[None])}
    with torch.no_grad():
        expected = model.generate(
            **arguments, max_new_tokens=64, min_new_tokens=64, do_sample=False, suppress_tokens=[IMAGE_TOKEN_ID],
            eos_token_id=2, pad_token_id=0,
        )[0].tolist()[-64:]  # fmt: skip

    @nnx.jit
    def step(model, ids, length):
        hidden = model(ids, case.pixels[row : row + 1], instructions=jnp.asarray(case.instructions[row : row + 1]))
        scores = model.language_model.logits(hidden[0, length - 1])
        return scores.at[jnp.array([2, IMAGE_TOKEN_ID])].set(-jnp.inf).argmax()

    ids = np.zeros((1, len(prompt) + 64), np.int32)
    ids[0, : len(prompt)] = prompt
    for length in range(len(prompt), len(prompt) + 64):
        ids[0, length] = step(ours, ids, length)
    assert ids[0, len(prompt) :].tolist() == expected
    assert len(set(expected)) > 3


def one_layer(stack, i: int):
    graphdef, weights = nnx.split(stack)
    return nnx.merge(graphdef, jax.tree.map(lambda w: w[i], weights))


def test_each_vision_layer():
    model, ours, case = setup(TINY)
    values = their_arguments(case, 0, ours.config)["pixel_values"]
    pixel_values = normalize(jnp.asarray(case.pixels[0]), ours.config.vision)
    with torch.no_grad():
        tower = model.vision_model
        x = tower.embeddings(values)
        assert_close(ours.vision_tower.embed(pixel_values), x, 2e-4)
        for i, layer in enumerate(tower.encoder.layers):
            after = layer(x)
            assert_close(one_layer(ours.vision_tower.layers, i)(jnp.asarray(x.numpy())), after, 2e-4)
            x = after
        whole = tower(values).last_hidden_state
    assert_close(ours.vision_tower(pixel_values), whole, 2e-4)
    assert whole.shape[1] == (TINY.image_size // TINY.patch_size) ** 2 + 1


def test_each_layer_of_the_qformer():
    model, ours, case = setup(TINY)
    qformer = ours.multi_modal_projector.qformer
    rng = np.random.default_rng(3)
    image = rng.normal(size=(1, 5, TINY.vision_width)).astype(np.float32)
    ids = case.instructions[0, :, : case.num_words[0]]
    x, mask = qformer.embed(jnp.asarray(case.instructions[0]))
    seen = TINY.queries + case.num_words[0]
    with torch.no_grad():
        theirs = model.qformer.embeddings(torch.tensor(ids).long(), query_embeds=model.query_tokens)
        assert_close(x[:, :seen], theirs, 2e-4)
        for i, layer in enumerate(model.qformer.encoder.layer):
            block, place = divmod(i, TINY.frequency)
            after = layer(theirs, encoder_hidden_states=torch.tensor(image), query_length=TINY.queries)
            # What stands behind the words, padding, changes nothing.
            padded = np.concatenate([theirs.numpy(), rng.normal(size=(1, x.shape[1] - seen, TINY.width))], axis=1)
            ours_i = getattr(one_layer(qformer.layers, block), f"layer_{place}")
            assert (ours_i.cross_attention is not None) == (i % TINY.frequency == 0)
            found = ours_i(jnp.asarray(padded, jnp.float32), jnp.asarray(image), mask)
            assert_close(found[:, :seen], after, 2e-4)
            theirs = after


def test_each_decoder_layer():
    model, ours, case = setup(TINY)
    ids = np.minimum(case.token_ids, 500)
    with torch.no_grad():
        states = model.language_model(input_ids=torch.tensor(ids), output_hidden_states=True).hidden_states
    positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    rotation = rope(jnp.asarray(positions), ours.config.text)
    for i in range(TINY.text_layers):
        layer = one_layer(ours.language_model.layers, i)
        x, _ = layer(jnp.asarray(states[i].numpy()), rotation, lambda q, k, v: (attention(q, k, v, causal=True), None))
        last = i == TINY.text_layers - 1  # the library's last hidden state is after the final norm
        assert_close(ours.language_model.norm(x) if last else x, states[i + 1], 2e-4)


def test_features_follow_the_instruction_and_need_none():
    model, ours, case = setup(TINY)
    pixels = jnp.asarray(np.repeat(case.pixels[0], 4, axis=0))
    found = np.asarray(ours.encode_images(pixels, jnp.asarray(case.instructions[:, 0])))
    assert all(np.abs(found[0] - found[row]).max() > 0.1 for row in (1, 2, 3))
    alone = ours.encode_images(pixels[:1], None)
    values = their_arguments(case, 0, ours.config)["pixel_values"]
    with torch.no_grad():
        image = model.vision_model(values).last_hidden_state
        queries = model.qformer(
            input_ids=None, query_embeds=model.query_tokens, encoder_hidden_states=image
        ).last_hidden_state
        assert_close(alone, model.language_projection(queries), 2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("remat", [name for name in layers.REMAT_POLICIES if name != "none"])
def test_remat_changes_no_gradient(remat):
    _, ours, case = setup(TINY)

    def gradients(remat: str) -> dict[str, nnx.Variable]:
        return param_paths(nnx.grad(lambda model: jnp.square(our_logits(model, case, remat)).mean())(ours))

    plain, again = gradients("none"), gradients(remat)
    for path, value in plain.items():
        if not path.endswith("key.bias"):  # its true gradient is zero
            a, b = (np.asarray(each.get_value()) for each in (value, again[path]))
            assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(a), path
