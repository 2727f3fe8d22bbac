"""The policy: log-probabilities of given responses, and that what it samples reports the same."""

import dataclasses
import functools
import gc
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from PIL import Image

from tests.pixels import normalize
from tests.tiny_llava import Tiny, build_checkpoint, build_model
from vigor_jax.data.text.conversation import IGNORE_INDEX, TEMPLATES, Turn, encode_example
from vigor_jax.errors import InputError
from vigor_jax.hf.load import load_model, open_checkpoint
from vigor_jax.inference import logprobs
from vigor_jax.inference import policy as policy_module
from vigor_jax.inference.logprobs import collate_responses, per_token_logps
from vigor_jax.inference.policy import Policy
from vigor_jax.inference.sampler import Sampler
from vigor_jax.inference.sampling_config import SamplingConfig
from vigor_jax.parallel.config import MeshConfig
from vigor_jax.parallel.sharding import make_mesh

SAMPLING = SamplingConfig(temperature=1.0, max_new_tokens=20, num_candidates=2, batch_size=4, seed=3)
PROMPTS = ("Describe the image.", "What is on the table?", "Is there a dog?")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = tmp_path_factory.mktemp("policy")
    build_checkpoint(world / "model", Tiny())
    build_checkpoint(world / "tied", Tiny(tied=True, kv_heads=4))
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (30 + i, 40, 3), np.uint8)).save(world / f"{i}.png")
    return world


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.fixture(scope="module")
def policy(world, mesh):
    return Policy(open_checkpoint(world / "model"), mesh)


def pairs_of(policy, world):
    """Prompts with an image and without, and responses of 1 to 90 tokens."""
    rng = np.random.default_rng(1)
    pairs = []
    for i, length in enumerate((5, 90, 1, 17, 64, 65, 30)):
        image = None if i % 3 == 2 else world / f"{i % 3}.png"
        request = policy.request(f"{i}", image, PROMPTS[i % 3])
        pairs.append((request, rng.integers(3, 500, length).tolist()))
    return pairs


@functools.cache
def peer(tiny):
    """The same model in PyTorch, in float64."""
    return build_model(tiny).double()


def reference(tiny, checkpoint, request, response):
    """log p of each token of a response, by transformers in float64."""
    ids = torch.tensor([[*request.prompt_ids, *response]])
    images = {}
    if request.pixels is not None:
        pixel_values = normalize(request.pixels(), checkpoint.preprocessing).transpose(2, 0, 1)[None]
        images["pixel_values"] = torch.tensor(pixel_values, dtype=torch.float64)
    with torch.no_grad():
        logits = peer(tiny)(input_ids=ids, attention_mask=torch.ones_like(ids), **images).logits
    logps = torch.log_softmax(logits[0].double(), -1)[len(request.prompt_ids) - 1 : -1]
    return logps.gather(1, torch.tensor(response)[:, None])[:, 0].numpy()


@pytest.mark.parametrize(
    ("name", "tiny"), [("model", Tiny()), pytest.param("tied", Tiny(tied=True, kv_heads=4), marks=pytest.mark.main)]
)
@pytest.mark.parametrize("batch_size", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_logprobs_equal_transformers_in_float64(world, mesh, name, tiny, batch_size):
    policy = Policy(open_checkpoint(world / name), mesh)
    pairs = pairs_of(policy, world)
    found = list(policy.response_logps(pairs, batch_size=batch_size, bucket=32))
    assert len(found) == len(pairs)
    for logps, (request, response) in zip(found, pairs, strict=True):
        expected = reference(tiny, policy.checkpoint, request, response)
        assert logps.dtype == np.float32
        assert logps.shape == (len(response),)
        np.testing.assert_allclose(logps, expected, rtol=0, atol=2e-5)
        assert np.std(expected) > 0.5 or len(response) == 1  # not a flat model


def test_sampling_reports_the_same_logprobs(policy, world):
    requests = [request for request, _ in pairs_of(policy, world)]
    drawn = list(policy.sample(requests, SAMPLING))
    pairs = [(request, c.token_ids) for request, group in zip(requests, drawn, strict=True) for c in group]
    reported = [completion for group in drawn for completion in group]
    for logps, completion in zip(policy.response_logps(pairs), reported, strict=True):
        np.testing.assert_allclose(logps, completion.logprobs, rtol=0, atol=1e-4)
        assert float(logps.mean(dtype=np.float64)) == pytest.approx(completion.mean_logprob, abs=5e-5)


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_places_that_hold_no_response_are_zero_whatever_the_chunk(policy, world, monkeypatch, chunk):
    monkeypatch.setattr(logprobs, "CHUNK", chunk)
    pairs = [pair for pair in pairs_of(policy, world) if pair[0].pixels is None]
    prompts, responses = [list(request.prompt_ids) for request, _ in pairs], [response for _, response in pairs]
    batch = collate_responses(prompts, responses, None, num_rows=len(pairs) + 1, bucket=10)
    logps = np.asarray(nnx.jit(per_token_logps)(policy.model, batch))
    assert logps.shape == batch.response_mask.shape
    assert logps.dtype == np.float32
    assert (logps[~batch.response_mask] == 0).all()
    assert not batch.response_mask[-1].any()
    for row, response, (request, _) in zip(logps, responses, pairs, strict=False):
        expected = reference(Tiny(), policy.checkpoint, request, response)
        np.testing.assert_allclose(row[: len(response)], expected, rtol=0, atol=2e-5)


@pytest.mark.slow
@pytest.mark.main
def test_logprobs_have_the_gradients_of_the_plain_formula(policy, world):
    """What DPO and PPO differentiate."""
    pairs = [pair for pair in pairs_of(policy, world) if pair[0].pixels is None]
    batch = collate_responses([p.prompt_ids for p, _ in pairs], [r for _, r in pairs], None, num_rows=2, bucket=48)
    weights = jnp.asarray(np.random.default_rng(2).normal(size=batch.response_mask.shape), jnp.float32)
    graphdef, state = nnx.split(policy.model)

    def ours(state):
        return jnp.sum(weights * per_token_logps(nnx.merge(graphdef, state), batch))

    def plain(state):
        model = nnx.merge(graphdef, state)
        logps = jax.nn.log_softmax(model.language_model.logits(model(batch.token_ids)))
        total = 0.0
        for row, (request, response) in enumerate(pairs):
            start = len(request.prompt_ids) - 1
            own = logps[row, start : start + len(response)]
            total += jnp.sum(weights[row, : len(response)] * own[jnp.arange(len(response)), jnp.asarray(response)])
        return total

    (value, grads), (expected, plain_grads) = (jax.jit(jax.value_and_grad(f))(state) for f in (ours, plain))
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    assert any(np.abs(leaf).max() > 1e-2 for leaf in jax.tree.leaves(plain_grads))
    jax.tree.map(
        lambda left, right: np.testing.assert_allclose(left, right, rtol=0, atol=2e-5 * max(1, np.abs(right).max())),
        grads,
        plain_grads,
    )


@pytest.mark.slow
@pytest.mark.main
def test_logprobs_are_the_same_on_every_mesh(world, tmp_path):
    """Split by batch, by weights and by vocabulary; each in a process with eight devices."""
    program = """
import json, math, sys
import jax
from pathlib import Path
from tests.inference.test_policy import pairs_of
from vigor_jax.hf.load import open_checkpoint
from vigor_jax.inference.policy import Policy
from vigor_jax.parallel.sharding import make_mesh
from vigor_jax.parallel.config import MeshConfig

world, found = Path(sys.argv[1]), []
for sizes in ((1, 1, 1), (4, 1, 2), (2, 2, 2), (1, 8, 1)):
    mesh = make_mesh(MeshConfig(*sizes), jax.devices()[: math.prod(sizes)])
    policy = Policy(open_checkpoint(world / "model"), mesh)
    found.append([logps.tolist() for logps in policy.response_logps(pairs_of(policy, world), batch_size=3)])
print(json.dumps(found))
"""
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "8"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(world)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    first, *others = json.loads(done.stdout)
    assert len(others) == 3
    for found in others:
        for left, right in zip(first, found, strict=True):
            np.testing.assert_allclose(left, right, rtol=0, atol=2e-5)


@pytest.mark.parametrize("template", ["v1", "v0", "llava_v1", "plain"])
@pytest.mark.parametrize("response", ["A red circle.", "Two\nlines", "é 猫 🙂", "x" * 400])
def test_a_response_is_what_fine_tuning_teaches(world, mesh, template, response):
    policy = Policy(open_checkpoint(world / "model"), mesh, template=template)
    config, question = policy.checkpoint.config, "What is there?"
    example = encode_example(
        policy.checkpoint.tokenizer,
        TEMPLATES[template],
        (Turn("human", f"<image>\n{question}"), Turn("gpt", response)),
        image_token_id=config.image_token_id,
        num_image_tokens=config.num_image_tokens,
        max_length=4096,
    )
    for prompt in (question, f"<image>\n{question}", f"{question} <image>"):
        assert (*policy.prompt_ids(prompt), *policy.response_ids(prompt, response)) == tuple(example.token_ids)
        assert policy.response_ids(prompt, response) == tuple(example.labels[example.labels != IGNORE_INDEX])


CONTEXTS = ("A dog.", "A dog sits on the grass.\n\nTwo plates; 3 forks", "Les chiens, ça va.  Two spaces.")
REST = (" A cat.", "\n\nA man is riding a wave.", " It's red — 42.", "")


@pytest.mark.parametrize("template", sorted(TEMPLATES))
@pytest.mark.parametrize("context", CONTEXTS)
def test_a_context_is_the_beginning_of_the_answer(world, mesh, template, context):
    """Its ids are those of the answer that begins so, and what continues it joins to what the model has written."""
    policy = Policy(open_checkpoint(world / "model"), mesh, template=template)
    tokenizer = policy.checkpoint.tokenizer
    asked = policy.prompt_ids("What is this?")
    begun = policy.request("1", world / "1.png", "What is this?", context=context).prompt_ids
    assert begun == (*asked, *policy.response_ids("What is this?", context)[: len(begun) - len(asked)])
    for rest in REST:
        ids = [*tokenizer.encode(rest, prefix=False), tokenizer.eos_id]
        assert policy.continuation(context, ids) == (rest if policy.template.stop != "\n" else rest.split("\n")[0])
    assert policy.continuation("", tokenizer.encode(" A cat.", prefix=False)) == "A cat."


@pytest.mark.main
def test_what_continues_a_context_is_drawn_after_it(world, policy):
    """Greedy: the answer's own beginning as context gives its rest."""
    greedy = dataclasses.replace(SAMPLING, temperature=0.0, num_candidates=1)
    (whole,) = next(policy.sample([policy.request("0", world / "0.png", PROMPTS[0])], greedy))
    for cut in (1, 7, 15):
        context = policy.continuation("", whole.token_ids[:cut])
        request = policy.request("0", world / "0.png", PROMPTS[0], context=context)
        given = (*policy.prompt_ids(PROMPTS[0]), *whole.token_ids[:cut])
        if request.prompt_ids != given:  # the tokens of a text are not always those that it was drawn in
            request = dataclasses.replace(request, prompt_ids=given)
        (rest,) = next(policy.sample([request], dataclasses.replace(greedy, max_new_tokens=20 - cut)))
        assert rest.token_ids == whole.token_ids[cut:]


@pytest.mark.slow
def test_weights_in_8_bits_answer_alike_and_not_the_same(world, mesh, policy):
    small = Policy(policy.checkpoint, mesh, int8=True)
    pairs = pairs_of(policy, world)[:2]
    for left, right in zip(policy.response_logps(pairs), small.response_logps(pairs), strict=True):
        assert 0 < np.abs(left - right).max() < 1


def test_nothing_is_loaded_before_it_is_needed(world, mesh):
    policy = Policy(open_checkpoint(world / "model"), mesh)
    policy.request("a", world / "gone.png", "What?")
    policy.response_ids("What?", "That.")
    assert "model" not in vars(policy)


@pytest.mark.main
def test_another_seed_draws_other_tokens_and_compiles_nothing(world, mesh):
    policy = Policy(open_checkpoint(world / "model"), mesh)
    requests = [policy.request(f"{i}", None, prompt) for i, prompt in enumerate(PROMPTS)]
    sampling = dataclasses.replace(SAMPLING, max_new_tokens=8)
    drawn, compiled = {}, []
    for seed in (3, 4, 3, 5):
        found = policy.sample(requests, dataclasses.replace(sampling, seed=seed))
        ids = [[completion.token_ids for completion in group] for group in found]
        assert drawn.setdefault(seed, ids) == ids
        (sampler,) = policy._samplers.values()
        compiled.append(dict(sampler.compilations))
    assert compiled[0]["prefill"]
    assert compiled == [compiled[0]] * 4
    assert len({str(ids) for ids in drawn.values()}) == 3
    checkpoint, config = policy.checkpoint, dataclasses.replace(sampling, seed=4)
    alone = Sampler(policy.model, checkpoint.tokenizer, config, mesh, policy.template.stop).generate(requests)
    assert [[completion.token_ids for completion in group] for group in alone] == drawn[4]


def held():
    """Bytes of all arrays on the devices."""
    return sum(array.nbytes for array in jax.live_arrays())


def test_a_policy_that_nobody_holds_gives_its_memory_back(world, mesh):
    gc.collect()
    before = held()
    policy = Policy(open_checkpoint(world / "model"), mesh)
    pairs = pairs_of(policy, world)[:2]
    list(policy.response_logps(pairs))
    list(policy.sample([policy.request("a", None, "What?")], SAMPLING))
    size = held() - before
    assert size > 100_000
    gc.disable()
    try:
        del policy, pairs
        assert held() - before < size / 20  # at once: there are no cycles
    finally:
        gc.enable()


def test_threads_that_come_first_together_load_the_weights_once(world, mesh, monkeypatch):
    loaded = []

    def slowly(*args, **kwargs):
        time.sleep(0.2)
        loaded.append(load_model(*args, **kwargs))
        return loaded[-1]

    monkeypatch.setattr(policy_module, "load_model", slowly)
    policy = Policy(open_checkpoint(world / "model"), mesh)
    pairs = pairs_of(policy, world)[:1]
    start = threading.Barrier(8)

    def ask(number):
        start.wait()
        if number % 2:
            return next(policy.response_logps(pairs)).tolist()
        return policy.model

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(ask, range(8)))
    assert len(loaded) == 1
    assert all(model is loaded[0] for model in found[::2])
    assert all(logps == found[1] for logps in found[1::2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda request, ids: (request, []), "a: a response of no tokens"),
        (lambda request, ids: (request, [3] * 600), "a: prompt and response have 6.. tokens, expected at most the mod"),
        (lambda request, ids: (request, [3, 576]), "a: a response has the token id 576, expected 0 to 575"),
        (lambda request, ids: (request, [-1]), "a: a response has the token id -1"),
        (
            lambda request, ids: (dataclasses.replace(request, pixels=None), ids),
            "a: the prompt has 4 image tokens",
        ),
        (lambda request, ids: (dataclasses.replace(request, prompt_ids=()), ids), "a: a prompt of 0 tokens"),
    ],
)
def test_what_cannot_be_scored_is_refused(policy, world, change, message):
    with pytest.raises(InputError, match=message):
        list(policy.response_logps([change(policy.request("a", world / "0.png", "What?"), [3, 4])]))


def test_refusals_of_the_policy(world, mesh):
    checkpoint = open_checkpoint(world / "model")
    with pytest.raises(InputError, match=r"template: expected one of v0, .*, got 'v9'"):
        Policy(checkpoint, mesh, template="v9")
    with pytest.raises(InputError, match="dtype float16 needs a GPU"):
        Policy(checkpoint, mesh, dtype="float16")
    policy = Policy(checkpoint, mesh)
    with pytest.raises(InputError, match="comes without an image"):
        policy.request("a", None, "<image> What?")
    with pytest.raises(InputError, match="empty answer"):
        policy.response_ids("What?", " ")
    with pytest.raises(InputError, match=r"gone\.png: no such image"):
        list(policy.response_logps([(policy.request("a", world / "gone.png", "What?"), [3])]))


@pytest.mark.main
def test_scores_that_are_not_finite_are_an_error(world, mesh):
    policy = Policy(open_checkpoint(world / "model"), mesh)
    scale = policy.model.language_model.norm.scale
    scale[...] = jnp.full_like(scale[...], jnp.nan)
    with pytest.raises(FloatingPointError, match="a: the model's scores are not finite"):
        list(policy.response_logps([(policy.request("a", None, "What?"), [3])]))
