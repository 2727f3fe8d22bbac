"""Sampling: what it draws, and that nothing else than seed, image, prompt and index has a say in it."""

import dataclasses
import functools
import json
import os
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.inference.run_sampling import CONFIG, make_requests, plain
from tests.pixels import normalize
from tests.tiny_llava import Tiny, build_checkpoint
from vigor_jax.errors import InputError
from vigor_jax.hf.load import load_model, open_checkpoint
from vigor_jax.inference import decoder as decoding
from vigor_jax.inference.decoder import Batch, Decoder, next_logits
from vigor_jax.inference.kv_cache import BLOCK, page_counts
from vigor_jax.inference.sampler import Sampler, repetition_end
from vigor_jax.inference.sampling_config import SamplingConfig
from vigor_jax.inference.sampling_methods import truncate
from vigor_jax.inference.schedule import Part
from vigor_jax.parallel.config import MeshConfig
from vigor_jax.parallel.sharding import make_mesh

NEVER = np.arange(509, 576)  # <image>, <pad>, and rows of the embedding that no token has
FOREVER = -1  # an EOS id that is never sampled


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return build_checkpoint(tmp_path_factory.mktemp("sampling") / "model", Tiny())


@pytest.fixture(scope="module")
def checkpoint(directory):
    return open_checkpoint(directory)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.fixture(scope="module")
def model(checkpoint, mesh):
    return load_model(checkpoint, mesh=mesh, dtype=jnp.float32, scan=False)


@pytest.fixture(scope="module")
def requests(checkpoint):
    return make_requests(checkpoint)


class Words:
    """A tokenizer whose text shows the ids."""

    def __init__(self, *, eos_id=FOREVER, vocab_size=511, pad_id=510):
        self.eos_id, self.vocab_size, self.pad_id = eos_id, vocab_size, pad_id

    def decode(self, ids):
        return "".join(f" <{token_id}>" for token_id in ids if token_id != self.eos_id)

    def instruction_ids(self, texts):
        return None  # as of LLaVA


@functools.cache
def sampler(model, mesh, stop, config):
    """One sampler, and so one compilation, for all tests that want the same."""
    return Sampler(model, Words(), config, mesh, stop)


def sample(model, mesh, requests, *, tokenizer=None, stop=None, **changes):
    config = dataclasses.replace(CONFIG, **changes)
    if tokenizer is None:
        return list(sampler(model, mesh, stop, config).generate(requests))
    return list(Sampler(model, tokenizer, config, mesh, stop).generate(requests))


@nnx.jit
def forward(model, token_ids, pixels):
    return model.language_model.logits(model(token_ids, pixels))


def plain_logits(model, request, token_ids):
    """Scores [1 + tokens, V] of the first token of the answer, the next ones, and the one after it."""
    ids = [*request.prompt_ids, *token_ids]
    padded = np.pad(ids, (0, 128 - len(ids)))[None]
    logits = forward(model, padded, None if request.pixels is None else request.pixels[None, None])
    return np.asarray(logits)[0, len(request.prompt_ids) - 1 : len(ids)]


def teacher_forced(model, request, token_ids):
    """Log-probabilities [tokens, V] by one plain forward of prompt and answer."""
    return np.asarray(jax.nn.log_softmax(plain_logits(model, request, token_ids)[:-1]))


@pytest.fixture(scope="module")
def drawn(model, mesh, requests):
    return sample(model, mesh, requests)


@pytest.mark.main
def test_the_model_of_these_tests_is_not_flat(model, requests, drawn):
    logprobs = teacher_forced(model, requests[0], drawn[0][0].token_ids)
    entropy = -(np.exp(logprobs) * logprobs).sum(-1)
    assert 0.5 < entropy.mean() < 5.5 < np.log(576)
    assert len({c.token_ids for group in drawn for c in group}) == 2 * len(requests)


@pytest.mark.slow
def test_candidates_are_the_same_with_stacked_layers(checkpoint, mesh, requests, drawn):
    """As on a TPU, where every cache is one array too."""
    stacked = load_model(checkpoint, mesh=mesh, dtype=jnp.float32, scan=True)
    for before, now in zip(drawn, sample(stacked, mesh, requests), strict=True):
        for left, right in zip(before, now, strict=True):
            assert (left.token_ids, left.text, left.candidate) == (right.token_ids, right.text, right.candidate)
            np.testing.assert_allclose(left.logprobs, right.logprobs, atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"batch_size": 3}, marks=pytest.mark.main),
        *(pytest.param(each, marks=pytest.mark.slow) for each in ({"batch_size": 1}, {"batch_size": 8})),
        *(pytest.param(each, marks=pytest.mark.slow) for each in ({"prompt_bucket": 20}, {"prompt_bucket": 100})),
    ],
    ids=str,
)
def test_candidates_do_not_depend_on_batches(model, mesh, requests, drawn, changes):
    again = sample(model, mesh, requests, **changes)
    for before, now in zip(drawn, again, strict=True):
        for left, right in zip(before, now, strict=True):
            assert (left.token_ids, left.text, left.candidate) == (right.token_ids, right.text, right.candidate)
            np.testing.assert_allclose(left.logprobs, right.logprobs, atol=1e-4)


@pytest.mark.slow
def test_candidates_do_not_depend_on_their_number(model, mesh, requests, drawn):
    for few, many in zip(drawn, sample(model, mesh, requests, num_candidates=5), strict=True):
        assert [c.token_ids for c in few] == [c.token_ids for c in many[:2]]
        assert len({c.token_ids for c in many}) == 5


@pytest.mark.main
def test_candidates_do_not_depend_on_order_or_company(model, mesh, requests, drawn):
    backwards = sample(model, mesh, requests[::-1])[::-1]
    assert [[c.token_ids for c in group] for group in backwards] == [[c.token_ids for c in group] for group in drawn]
    (alone,) = sample(model, mesh, requests[3:4])
    assert [c.token_ids for c in alone] == [c.token_ids for c in drawn[3]]


def test_nothing_goes_to_the_device_unasked(model, mesh, requests):
    """Neither Python numbers nor arrays of the host: what is compiled has all it needs."""
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed"), jax.transfer_guard("disallow"):
        jax.jit(lambda x: x)(1.0)  # the guard is on
    with jax.transfer_guard("disallow"):
        guarded = sample(model, mesh, requests)
    assert plain(guarded) == plain(sample(model, mesh, requests))


@pytest.mark.main
def test_seed_image_and_prompt_each_change_the_draw(model, mesh, requests, drawn):
    request = requests[0]
    others = [
        sample(model, mesh, [request], seed=CONFIG.seed + 1),
        sample(model, mesh, [dataclasses.replace(request, image_id="other.jpg")]),
        sample(model, mesh, [dataclasses.replace(request, prompt="Other?")]),
    ]
    assert len({c.token_ids for (group,) in [drawn[:1], *others] for c in group}) == 8


@pytest.mark.slow
def test_results_and_images_on_any_mesh_and_process_count(model, mesh, requests, checkpoint, directory, tmp_path):
    """Two processes with two devices each; each reads the images of its own rows."""
    texts = [c.text for group in sample(model, mesh, requests, tokenizer=checkpoint.tokenizer) for c in group]
    pairs = (texts[0][i : i + 2] for i in range(len(texts[0])))
    stop = next(pair for pair in pairs if pair.isascii() and 1 < sum(pair in text for text in texts) < len(texts))
    expected = plain(sample(model, mesh, requests, tokenizer=checkpoint.tokenizer, stop=stop))
    assert {c["finish_reason"] for group in expected for c in group} == {"stop", "length"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2", "JAX_PLATFORMS": "cpu"}
    processes = []
    for process_id in range(2):
        job = {
            "model": str(directory),
            "out": str(tmp_path / "results"),
            "meshes": [[2, 2, 1], [1, 1, 4]],
            "stop": stop,
            "distributed": {"coordinator": coordinator, "num_processes": 2, "process_id": process_id},
        }
        command = [sys.executable, "-m", "tests.inference.run_sampling", json.dumps(job)]
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    with_image = [request.image_id for request in requests if request.pixels is not None]
    for process_id in range(2):
        for index, run in enumerate(json.loads((tmp_path / f"results.{process_id}").read_text())):
            for group, wanted in zip(run["completions"], expected, strict=True):
                for got, want in zip(group, wanted, strict=True):
                    np.testing.assert_allclose(got.pop("logprobs"), want["logprobs"], atol=1e-4)
                    assert got == json.loads(json.dumps({k: v for k, v in want.items() if k != "logprobs"}))
            own = [f"{row}.jpg" for row in range(len(requests)) if row % 4 // 2 == process_id]
            split = index == 0  # the last mesh does not split the batch
            assert run["read"] == (sorted(set(own) & set(with_image)) if split else with_image)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes",
    [{}, {"kv_heads": 4}, pytest.param({"tied": True, "rope_theta": 500.0}, marks=pytest.mark.main)],
    ids=str,
)
def test_shared_prefix_logits_equal_a_plain_forward(checkpoint, mesh, tmp_path, sizes):
    checkpoint = open_checkpoint(build_checkpoint(tmp_path / "model", Tiny(**sizes)))
    model = load_model(checkpoint, mesh=mesh, dtype=jnp.float32, scan=False)
    requests = make_requests(checkpoint, 2)
    config = dataclasses.replace(CONFIG, num_candidates=3, batch_size=2)
    decoder = Decoder(model, config, np.arange(576) < 509, FOREVER)
    part = Part(decoder.num_rows, decoder.num_slots, 3, sum(decoder.block_counts) * BLOCK)
    longest = max(len(request.prompt_ids) for request in requests) + 5
    token_ids = np.stack([np.pad(r.prompt_ids, (0, longest - len(r.prompt_ids))) for r in requests])
    lengths = np.array([len(request.prompt_ids) for request in requests])
    pixels = np.stack([request.pixels for request in requests])
    batch = Batch(token_ids, lengths, np.arange(4, dtype=np.uint32).reshape(2, 2), np.arange(2), pixels)
    prefix, latest = decoder.init_state(batch)
    pages = [decoder.init_pages(latest, index) for index in range(len(decoder.block_counts))]
    num_blocks = sum(decoder.block_counts)

    def take(prefix, *images):
        rows = np.full(2, decoder.num_rows)
        for image in images:
            rows[image] = part.add(image)
        return decoder.prefill(prefix, dataclasses.replace(batch, rows=rows))

    def step(pages, latest, count, before):
        slots = part.tables(part.place(before), num_blocks)
        pages, latest = decoder.generate(prefix, pages, latest, slots, count)
        for slot, candidate in enumerate(part.slots):
            if candidate is not None:
                if not len(candidate.token_ids):
                    candidate.token_ids = np.asarray(prefix.token_ids)[candidate.row, candidate.index][None]
                candidate.token_ids = np.append(candidate.token_ids, np.asarray(latest.token_ids)[slot, :count])
        return pages, latest

    # The second image begins later; one candidate ends and leaves its pages to others; the last call is short.
    prefix = take(prefix, 0)
    pages, latest = step(pages, latest, 16, 0)
    prefix = take(prefix, 1)
    pages, latest = step(pages, latest, 16, 16)
    part.slots[1].has_ended = True
    part.release()
    prefix = take(prefix, 0)
    pages, latest = step(pages, latest, 16, 16)
    pages, latest = step(pages, latest, 4, 16)
    slots = part.tables(np.full(decoder.num_slots, np.iinfo(np.int32).max, np.int32), num_blocks)
    last = np.array([candidate.token_ids[-1] for candidate in part.slots])
    positions = np.array([lengths[c.group] + len(c.token_ids) - 1 for c in part.slots])
    logits, *_ = nnx.jit(next_logits)(model.language_model, last, positions, prefix, pages, latest, slots, np.int32(4))
    assert sorted((c.group, c.index, len(c.token_ids)) for c in part.slots) == [
        (0, 0, 21), (0, 0, 53), (0, 2, 53), (1, 0, 37), (1, 1, 37), (1, 2, 37)
    ]  # fmt: skip
    for slot, candidate in enumerate(part.slots):
        plainly = plain_logits(model, requests[candidate.group], candidate.token_ids)[-1]
        np.testing.assert_allclose(logits[slot, 0], plainly, rtol=0, atol=1e-5 * np.abs(plainly).max())


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{}, pytest.param({"temperature": 0.5, "top_k": 20, "top_p": 0.8}, marks=pytest.mark.main), {"temperature": 0.0}],
    ids=str,
)
def test_logprobs_are_those_of_the_untempered_model(model, mesh, requests, changes):
    """Whatever shapes the draw, every token reports its probability under a plain forward of prompt and answer."""
    for request, group in zip(requests, sample(model, mesh, requests, **changes), strict=True):
        for completion in group:
            assert completion.logprobs.dtype == np.float32
            expected = teacher_forced(model, request, completion.token_ids)
            expected = np.take_along_axis(expected, np.array(completion.token_ids)[:, None], 1)[:, 0]
            np.testing.assert_allclose(completion.logprobs, expected, atol=1e-4)
            assert completion.mean_logprob == pytest.approx(expected.mean(), abs=1e-4)


@pytest.mark.slow
@pytest.mark.main
def test_bfloat16_samples_what_its_own_forward_scores(checkpoint, mesh, requests):
    model = load_model(checkpoint, mesh=mesh, dtype=jnp.bfloat16, scan=False)
    for request, (completion, _) in zip(requests, sample(model, mesh, requests), strict=True):
        expected = teacher_forced(model, request, completion.token_ids)
        expected = np.take_along_axis(expected, np.array(completion.token_ids)[:, None], 1)[:, 0]
        assert np.abs(completion.logprobs - expected).mean() < 0.1


def test_greedy_equals_transformers(model, mesh, requests, checkpoint, directory):
    theirs = transformers.LlavaForConditionalGeneration.from_pretrained(directory, dtype=torch.float32).eval()
    lengths = []
    for request, (ours,) in zip(
        requests,
        sample(
            model, mesh, requests, tokenizer=checkpoint.tokenizer, temperature=0.0, num_candidates=1, max_new_tokens=64
        ),
        strict=True,
    ):
        inputs = {"input_ids": torch.tensor([request.prompt_ids])}
        if request.pixels is not None:
            pixel_values = normalize(request.pixels, checkpoint.preprocessing).transpose(2, 0, 1)
            inputs["pixel_values"] = torch.tensor(pixel_values[None])
        wanted = theirs.generate(
            **inputs,
            attention_mask=torch.ones_like(inputs["input_ids"]),
            do_sample=False,
            max_new_tokens=64,
            suppress_tokens=NEVER.tolist(),
            pad_token_id=0,
        )
        assert list(ours.token_ids) == wanted[0, len(request.prompt_ids) :].tolist()
        lengths.append(len(ours.token_ids))
    assert max(lengths) == 64


WARPED = [(0.7, 0, 1.0), (1.3, 5, 1.0), (1.0, 0, 0.9), (0.5, 0, 0.3), (0.7, 40, 0.8), (1.0, 1, 1.0), (1.0, 0, 1e-6)]


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), WARPED)
def test_truncation_equals_transformers(temperature, top_k, top_p):
    logits = (3 * np.random.default_rng(1).normal(size=(64, 500))).astype(np.float32)
    warpers = [transformers.TemperatureLogitsWarper(temperature)]
    warpers += [transformers.TopKLogitsWarper(top_k)] if top_k else []
    warpers += [transformers.TopPLogitsWarper(top_p)] if top_p < 1 else []
    wanted = transformers.LogitsProcessorList(warpers)(None, torch.tensor(logits)).numpy()
    ours = np.asarray(jax.jit(truncate, static_argnums=(1, 2))(logits / np.float32(temperature), top_k, top_p))
    np.testing.assert_array_equal(np.isneginf(ours), np.isneginf(wanted))
    np.testing.assert_allclose(ours, wanted, rtol=1e-6)


@pytest.mark.main
@settings(deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=12, max_size=12), st.sampled_from([0.1, 0.5, 0.9, 0.999]))
def test_top_p_by_its_definition(scores, top_p):
    """Ties included: a token stays while those strictly more likely have less than `top_p` together."""
    probs = np.exp(np.array(scores, np.float64))
    probs /= probs.sum()
    above = np.array([probs[probs > p * (1 + 1e-9)].sum() for p in probs])
    kept = ~np.isneginf(np.asarray(truncate(jnp.asarray(scores, jnp.float32), 0, top_p)))
    certain = np.abs(above - top_p) > 1e-6
    np.testing.assert_array_equal(kept[certain], (above < top_p)[certain])


def test_top_p_over_a_real_vocabulary():
    scores = np.random.default_rng(2).normal(size=32000).astype(np.float32)
    probs = np.exp(scores.astype(np.float64))
    probs /= probs.sum()
    order = np.argsort(-probs)
    wanted = int((np.cumsum(probs[order]) - probs[order] < 0.9).sum())
    kept = ~np.isneginf(np.asarray(truncate(jnp.asarray(scores), 0, 0.9)))
    assert abs(int(kept.sum()) - wanted) <= 2  # the sum of 32,000 numbers in float32
    assert kept[order[: wanted - 2]].all()


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.7, 0, 0.8), (2.0, 6, 0.9)])
@pytest.mark.parametrize("many", ["candidates", "images", "positions"])
def test_frequencies_equal_the_probabilities(model, temperature, top_k, top_p, many):
    """Chi-square of 20,000 draws over twelve tokens, with keys that differ in one thing only."""
    logits = np.random.default_rng(4).normal(size=12).astype(np.float32) * 1.5
    draws = 20000
    count = draws if many == "candidates" else 1
    config = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p, num_candidates=count)
    decoder = Decoder(model, config, np.ones(12, bool), FOREVER)
    images = draws if many == "images" else 1
    seeds = np.random.default_rng(5).integers(0, 2**32, (images, 2), np.uint32)

    @jax.jit
    def draw(position):
        positions = jnp.broadcast_to(position, images)
        candidates = jnp.broadcast_to(jnp.arange(count), (images, count))
        return decoder._sample(jnp.broadcast_to(jnp.asarray(logits), (images, 1, 12)), seeds, candidates, positions)[0]

    positions = np.arange(draws if many == "positions" else 1)
    ids = np.asarray(jax.lax.map(draw, positions)).ravel()
    scores = np.asarray(truncate(jnp.asarray(logits) / temperature, top_k, top_p), np.float64)
    probs = np.exp(scores - scores.max())
    expected = draws * probs / probs.sum()
    found = np.bincount(ids, minlength=12)
    assert not found[expected == 0].any()
    kept = expected > 0
    statistic = ((found - expected)[kept] ** 2 / expected[kept]).sum()
    degrees = kept.sum() - 1
    assert statistic < degrees + 5 * np.sqrt(2 * degrees)  # five standard deviations


@pytest.mark.slow
@pytest.mark.main
def test_ids_that_are_no_tokens_are_never_sampled(model, mesh, requests):
    hot = {"temperature": 50.0, "num_candidates": 5}
    ids = {i for group in sample(model, mesh, requests, **hot) for c in group for i in c.token_ids}
    assert not ids & set(NEVER.tolist())
    unmasked = sample(model, mesh, requests, tokenizer=Words(vocab_size=576), **hot)
    assert {i for group in unmasked for c in group for i in c.token_ids} & set(NEVER.tolist())


@pytest.mark.slow
def test_eos_ends_a_candidate(model, mesh, requests, drawn):
    """With some token of the first candidate as EOS, every candidate is what it was, up to that token."""
    eos_id = drawn[0][0].token_ids[20]
    ended = sample(model, mesh, requests, tokenizer=Words(eos_id=eos_id))
    reasons = set()
    for before, now in zip(drawn, ended, strict=True):
        for left, right in zip(before, now, strict=True):
            has_eos = eos_id in left.token_ids
            wanted = left.token_ids[: left.token_ids.index(eos_id) + 1] if has_eos else left.token_ids
            assert right.token_ids == wanted
            assert right.finish_reason == ("stop" if has_eos else "length")
            assert right.text == Words(eos_id=eos_id).decode(wanted).strip()
            assert len(right.logprobs) == len(wanted)
            np.testing.assert_allclose(right.logprobs, left.logprobs[: len(wanted)], atol=1e-4)
            reasons.add(right.finish_reason)
    assert reasons == {"stop", "length"}


@pytest.mark.slow
@pytest.mark.main
def test_a_row_that_is_done_takes_the_next_request(model, mesh, requests, monkeypatch):
    """Rows that take the next request when theirs is done say what they say alone, in fewer steps than batches do."""
    many = [dataclasses.replace(requests[i % 7], image_id=f"{i}.jpg") for i in range(24)]
    few = {"tokenizer": Words(eos_id=5, vocab_size=25), "num_candidates": 1}
    alone = sample(model, mesh, many, **few, batch_size=1)
    steps, generate = [], Decoder.generate

    def counting(*arguments):
        steps.append(arguments[-1])
        return generate(*arguments)

    monkeypatch.setattr(Decoder, "generate", counting)
    together = sample(model, mesh, many, **few, batch_size=4)
    for before, now in zip(alone, together, strict=True):
        assert [c.token_ids for c in before] == [c.token_ids for c in now]
        assert before[0].image_id == now[0].image_id
    lengths = [max(len(c.token_ids) for c in group) for group in together]
    in_batches = sum(max(lengths[i : i + 4]) for i in range(0, 24, 4))
    assert sum(lengths) / 4 < sum(steps) < 0.9 * in_batches


@pytest.mark.slow
@pytest.mark.main
def test_the_models_positions_end_a_candidate(model, mesh, requests):
    """The last token stands on the model's last position, whatever company it has."""
    long = dataclasses.replace(requests[2], prompt_ids=[1, *requests[2].prompt_ids] * 100)
    long = dataclasses.replace(long, prompt_ids=long.prompt_ids[:495])
    both = sample(model, mesh, [requests[0], long], max_new_tokens=512)
    assert [[len(c.token_ids) for c in group] for group in both] == [[512 - len(requests[0].prompt_ids)] * 2, [17] * 2]
    assert {c.finish_reason for group in both for c in group} == {"length"}


@pytest.mark.main
def test_a_stop_string_ends_a_candidate_and_is_cut(model, mesh, requests, drawn):
    """Spread over two tokens; the text stops before it, the tokens after it."""
    first, second = drawn[0][0].token_ids[32:34]
    stop = f"{first}> <{second}"
    (one, _), *others = sample(model, mesh, requests, stop=stop)
    assert (one.token_ids, one.finish_reason) == (drawn[0][0].token_ids[:34], "stop")
    assert one.text == (Words().decode(one.token_ids[:32]) + " <").strip()
    assert [c.token_ids for group in others for c in group] == [c.token_ids for group in drawn[1:] for c in group]


@pytest.mark.main
@pytest.mark.parametrize("least", [1, 5, 16, 17, 30])
def test_a_text_ends_where_it_is_enough(model, mesh, requests, drawn, least):
    """At the same token whenever the host looks, and what was drawn is what is drawn without."""
    config = dataclasses.replace(CONFIG)

    def is_enough(text):
        return text.count("<") >= least

    found = list(sampler(model, mesh, None, config).generate(requests, is_enough=is_enough))
    for group, whole in zip(found, drawn, strict=True):
        for ours, theirs in zip(group, whole, strict=True):
            assert ours.token_ids == theirs.token_ids[:least]
            assert ours.finish_reason == "stop"
            np.testing.assert_allclose(ours.logprobs, theirs.logprobs[:least], atol=1e-5)


def test_what_is_enough_frees_rows_sooner(model, mesh, requests, monkeypatch):
    steps = []
    generate = decoding.Decoder.generate
    monkeypatch.setattr(decoding.Decoder, "generate", lambda *a: steps.append(a[-1]) or generate(*a))
    own = sampler(model, mesh, None, CONFIG)
    list(own.generate(requests[:1]))
    whole = sum(steps)
    steps.clear()
    list(own.generate(requests[:1], is_enough=bool))
    assert sum(steps) == 16 < whole


@pytest.mark.slow
@pytest.mark.main
def test_repetition_ends_a_candidate(model, mesh, requests):
    """With six tokens to choose from there soon is one, after another time for each."""
    few = {"tokenizer": Words(vocab_size=6), "max_new_tokens": 40}
    whole = sample(model, mesh, requests, **few)
    ended = sample(model, mesh, requests, repetition_stop=3, **few)
    reasons = []
    for before, now in zip(whole, ended, strict=True):
        for left, right in zip(before, now, strict=True):
            end = brute_force_repetition(left.token_ids, 3)
            assert right.token_ids == left.token_ids[:end]
            assert right.finish_reason == ("length" if end is None else "repetition")
            reasons.append(right.finish_reason)
    assert set(reasons) == {"repetition", "length"}


def brute_force_repetition(ids, n):
    for end in range(2 * n, len(ids) + 1):
        tail = list(ids[end - 2 * n : end])
        if any(tail[period:] == tail[:-period] for period in range(1, n + 1)):
            return end
    return None


@given(st.lists(st.integers(0, 2), max_size=40), st.integers(1, 6))
def test_repetition_by_its_definition(ids, n):
    assert repetition_end(np.array(ids, int), n) == brute_force_repetition(ids, n)


@pytest.mark.slow
@pytest.mark.main
def test_fifty_prompt_lengths_need_few_compilations(model, mesh, requests, checkpoint):
    config = dataclasses.replace(CONFIG, prompt_bucket=32, max_new_tokens=130, batch_size=8)
    own = Sampler(model, Words(), config, mesh)
    words = np.random.default_rng(6).integers(3, 500, 60).tolist()
    image = [checkpoint.config.image_token_id] * checkpoint.config.num_image_tokens
    mix = [
        dataclasses.replace(requests[0], image_id=str(length), prompt_ids=[1, *image, *words[:length]])
        for length in range(1, 51)
    ]
    list(own.generate(mix))
    # Two buckets for prompts, each as wide as any was so far, and few numbers of pages.
    most = len(page_counts(130))
    assert 0 < own.compilations["init_pages"] <= most == 4
    assert 0 < own.compilations["generate"] <= 2 * most
    once = {"init_state": 1, "prefill": 2, "pad_prefix": 1}
    assert {name: own.compilations[name] for name in once} == once
    list(own.generate(mix[::-1]))
    twice = {"init_state": 2, "prefill": 3, "pad_prefix": 1}
    assert {name: own.compilations[name] for name in twice} == twice
    assert own.compilations["generate"] <= 2 * most
    before = own.compilations.copy()
    list(own.generate(mix[::-1]))
    assert own.compilations == before


@pytest.mark.main
def test_requests_are_read_as_they_are_needed(model, mesh, requests):
    taken, read = [], []

    def pixels():
        read.append(None)
        return requests[0].pixels

    def endless():
        while True:
            taken.append(None)
            yield dataclasses.replace(requests[0], image_id=str(len(taken)), pixels=pixels)

    config = dataclasses.replace(CONFIG, batch_size=2, max_new_tokens=4)
    results = Sampler(model, Words(), config, mesh).generate(endless())
    assert [next(results)[0].image_id for _ in range(3)] == ["1", "2", "3"]
    assert len(taken) <= 8
    results.close()
    assert len(read) <= len(taken)


def test_who_takes_results_keeps_their_own_mesh(model, mesh, requests):
    results = sampler(model, mesh, None, CONFIG).generate(requests)
    next(results)
    assert jax.sharding.get_abstract_mesh().empty
    with jax.set_mesh(mesh):
        next(results)
    assert jax.sharding.get_abstract_mesh().empty
    assert len(list(results)) == len(requests) - 2


def test_an_unreadable_image_is_the_users_error(model, mesh, requests):
    def broken():
        raise InputError("x.jpg: not a readable image")

    with pytest.raises(InputError, match=r"x\.jpg"):
        sample(model, mesh, [requests[0], dataclasses.replace(requests[1], pixels=broken)])


@pytest.mark.slow
def test_scores_that_are_not_finite_are_an_error(checkpoint, mesh, requests):
    model = load_model(checkpoint, mesh=mesh, dtype=jnp.float32, scan=False)
    model.language_model.norm.scale[...] = jnp.full_like(model.language_model.norm.scale[...], jnp.nan)
    with pytest.raises(FloatingPointError, match=r"0\.jpg: the model's scores"):
        sample(model, mesh, requests)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": -0.1}, "sampling.temperature must be at least 0, got -0.1"),
        ({"temperature": float("nan")}, "sampling.temperature must be at least 0, got nan"),
        ({"top_p": 0.0}, "sampling.top_p must be above 0 and at most 1, which is off, got 0.0"),
        ({"top_p": 1.1}, "sampling.top_p must be above 0 and at most 1, which is off, got 1.1"),
        ({"top_k": -1}, "sampling.top_k must be at least 0, got -1"),
        ({"max_new_tokens": 0}, "sampling.max_new_tokens must be at least 1, got 0"),
        ({"num_candidates": 0}, "sampling.num_candidates must be at least 1, got 0"),
        ({"batch_size": 0}, "sampling.batch_size must be at least 1, got 0"),
    ],
)
def test_config_errors_say_what(changes, message):
    with pytest.raises(InputError) as error:
        SamplingConfig(**changes)
    assert message in str(error.value)


def test_requests_that_do_not_fit_are_the_users_error(model, mesh, requests):
    image, text = requests[0], requests[2]
    for request, message in (
        (dataclasses.replace(image, prompt_ids=[1] * 512), "a prompt of 512 tokens, expected"),
        (dataclasses.replace(image, prompt_ids=[]), "a prompt of 0 tokens"),
        (dataclasses.replace(image, prompt_ids=[1, 2, 509]), "has 1 image tokens, expected 4"),
        (dataclasses.replace(text, prompt_ids=[1, 509]), "has 1 image tokens, expected 0"),
    ):
        with pytest.raises(InputError, match=message):
            sample(model, mesh, [request])
