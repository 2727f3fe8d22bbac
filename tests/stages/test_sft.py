"""Fine-tuning in one process on one device: against torch, and what must not change it."""

import dataclasses
import itertools
import json
import math
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from tests.pixels import normalize
from tests.stages.sft_world import TINY, curve, interrupt, make_world, weights
from vigor_jax.data.text.conversation import IGNORE_INDEX
from vigor_jax.errors import InputError
from vigor_jax.hf.llava import names
from vigor_jax.hf.load import load_model, open_checkpoint
from vigor_jax.models.llava import LlavaConfig
from vigor_jax.models.vlm import abstract_model, param_paths
from vigor_jax.parallel.config import MeshConfig
from vigor_jax.parallel.sharding import make_mesh
from vigor_jax.stages import sft as sft_module
from vigor_jax.stages.sft import SftConfig, sft
from vigor_jax.training import loop as loop_module
from vigor_jax.training.loop import TrainingDiverged
from vigor_jax.training.train_step import (
    abstract_state,
    init_state,
    learning_rate,
    make_optimizer,
    make_train_step,
    partition_params,
    trained_paths,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world") / "w", examples=40)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.fixture(scope="module")
def checkpoint(world):
    return open_checkpoint(world / "model")


@pytest.fixture(scope="module")
def config(world):
    return SftConfig(
        data=world / "data.json",
        images=world / "images",
        epochs=2,
        batch_size=8,
        learning_rate=2e-3,
        warmup_ratio=0.2,
        max_length=256,
        bucket=128,
        loss_chunk=48,
        save_every=4,
    )


@pytest.fixture(scope="module")
def whole(config, checkpoint, mesh, tmp_path_factory):
    """A run from begin to end, which nobody changes."""
    run_dir = tmp_path_factory.mktemp("whole")
    sft(config, checkpoint, run_dir, mesh, dtype=jnp.float32)
    return run_dir


def base_weights(checkpoint, mesh) -> dict[str, np.ndarray]:
    model = load_model(checkpoint, mesh=mesh, dtype=jnp.float32)
    return {path: np.asarray(value) for path, value in partition_params(model, frozenset())[2].items()}


@pytest.mark.parametrize("total", [1, 10, 33, 100])
@pytest.mark.parametrize("ratio", [0.0, 0.03, 0.5, 1.0])
def test_schedule_equals_transformers(total, ratio):
    config = SftConfig(learning_rate=2e-5, warmup_ratio=ratio)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=2e-5)
    theirs = transformers.get_cosine_schedule_with_warmup(optimizer, math.ceil(ratio * total), total)
    rate = learning_rate(config, total)
    for step in range(total + 1):
        assert float(rate(jnp.int32(step))) == pytest.approx(theirs.get_last_lr()[0], rel=1e-5, abs=1e-12)
        optimizer.step()
        theirs.step()


def torch_batches(config, checkpoint, mesh):
    """The batches of a run as transformers takes them."""
    for batch in sft_module._loader(config, checkpoint, mesh).batches():
        rows = batch.rows
        with_image = (rows.token_ids == checkpoint.config.image_token_id).any(1)
        pixel_values = normalize(rows.pixels[with_image, 0], checkpoint.preprocessing).transpose(0, 3, 1, 2)
        yield {
            "input_ids": torch.tensor(rows.token_ids).long(),
            "attention_mask": torch.tensor(rows.token_ids != checkpoint.tokenizer.pad_id),
            "labels": torch.tensor(rows.labels).long(),
            "pixel_values": torch.tensor(pixel_values),
        }


@pytest.mark.slow
@pytest.mark.parametrize("change", [{}, {"weight_decay": 0.1, "beta2": 0.95, "max_grad_norm": 2.0, "accumulate": 2}])
def test_twenty_updates_equal_torch(config, checkpoint, world, mesh, tmp_path, change):
    """Same weights, same batches, torch's AdamW: every loss and every final weight."""
    config = dataclasses.replace(config, epochs=4, **change)
    sft(config, checkpoint, tmp_path, mesh, dtype=jnp.float32)

    model = transformers.LlavaForConditionalGeneration.from_pretrained(world / "model", dtype=torch.float32)
    model.train()
    trained = {names.canonical_hf(name): weight for name, weight in model.named_parameters()}
    trained = {name: weight for name, weight in trained.items() if not name.startswith("vision_tower")}
    initial = {name: weight.detach().clone() for name, weight in trained.items()}
    plain = [weight for name, weight in trained.items() if name.endswith("bias") or "norm" in name]
    decayed = [weight for weight in trained.values() if not any(weight is other for other in plain)]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), eps=config.eps)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, 4, 20)
    losses, norms = [], []
    for batch in torch_batches(config, checkpoint, mesh):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(trained.values(), config.max_grad_norm).item())
        losses.append(loss.item())
        optimizer.step()
        schedule.step()

    ours = curve(tmp_path)
    assert len(ours) == len(losses) == 20
    assert losses[-1] < 0.8 * losses[0]  # something was learned
    np.testing.assert_allclose([line["loss"] for line in ours], losses, rtol=1e-3)
    np.testing.assert_allclose([line["grad_norm"] for line in ours], norms, rtol=5e-3)
    params, compared = weights(tmp_path), 0
    for entry in names.entries(checkpoint.config):
        if entry.path not in params:
            continue
        compared += 1
        got = params[entry.path] if entry.layer is None else params[entry.path][entry.layer]
        final, first = (w[entry.name].detach().numpy().transpose(entry.axes) for w in (trained, initial))
        assert np.linalg.norm(got - final) <= 1e-3 * np.linalg.norm(final), entry.name
        # The change alone, which is what training made; a wrong rate or decay would show here first.
        assert np.linalg.norm(got - final) <= 2e-2 * np.linalg.norm(final - first), entry.name
    assert compared == len(trained)


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [2, 4, 8])
def test_accumulation_equals_the_big_batch(config, checkpoint, mesh, tmp_path, accumulate):
    """Rows differ in supervised tokens, so a mean of micro-batch means would not pass."""
    config = dataclasses.replace(config, eps=1e-3, epochs=1)  # AdamW smooth enough not to amplify rounding
    for parts in (1, accumulate):
        sft(dataclasses.replace(config, accumulate=parts), checkpoint, tmp_path / str(parts), mesh, dtype=jnp.float32)
    whole, parts = curve(tmp_path / "1"), curve(tmp_path / str(accumulate))
    for left, right in zip(whole, parts, strict=True):
        assert left["tokens"] == right["tokens"]
        assert left["loss"] == pytest.approx(right["loss"], rel=1e-5)
        assert left["grad_norm"] == pytest.approx(right["grad_norm"], rel=1e-5)
    other = weights(tmp_path / str(accumulate))
    for path, value in weights(tmp_path / "1").items():
        np.testing.assert_allclose(other[path], value, atol=1e-5, rtol=0, err_msg=path)


@pytest.mark.slow
@pytest.mark.main
def test_frozen_weights_keep_their_bits(config, checkpoint, mesh, tmp_path, monkeypatch):
    """Prefix and regular expression alike; what is trained all moves, what is not is not even stored."""
    freeze = ("vision_tower", "language_model.embed_tokens", r".*\.layers\.[qk]_proj\.kernel")
    held = []
    original = loop_module.make_train_step

    def spy(*args):
        step = original(*args)

        def run(state, frozen, rows):
            if not held:
                held.append({path: np.asarray(weight) for path, weight in frozen.items()})
            state, metrics = step(state, frozen, rows)
            held[1:] = [{path: np.asarray(weight) for path, weight in frozen.items()}]
            return state, metrics

        return run

    monkeypatch.setattr(loop_module, "make_train_step", spy)
    sft(dataclasses.replace(config, freeze=freeze), checkpoint, tmp_path, mesh, dtype=jnp.float32)
    before, (first, last), trained = base_weights(checkpoint, mesh), held, weights(tmp_path)
    assert first.keys() | trained.keys() == before.keys()
    assert not first.keys() & trained.keys()
    assert {path.split(".")[0] for path in trained} == {"language_model", "multi_modal_projector"}
    assert {"language_model.embed_tokens", "language_model.layers.q_proj.kernel"} <= first.keys()
    assert "language_model.layers.v_proj.kernel" in trained
    for path in first:
        np.testing.assert_array_equal(first[path], before[path])
        np.testing.assert_array_equal(last[path], before[path])
    for path, value in trained.items():
        assert value.dtype == np.float32
        assert (value != before[path]).any(), path


PATHS = param_paths(nnx.state(abstract_model(LlavaConfig()))).keys()


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        (("vision_towr",), "'vision_towr' matches no parameter; the nearest name is 'vision_tower'"),
        (("vision",), "'vision' matches no parameter"),  # a beginning ends at a dot
        (("language_model.layers.q_proj.kernl",), "nearest name is 'language_model.layers.q_proj.kernel'"),
        (
            (
                "vision_tower",
                "(",
            ),
            "no regular expression",
        ),
        ((".*",), "leaves nothing to train"),
    ],
)
def test_freeze_patterns_that_make_no_sense(freeze, message):
    with pytest.raises(InputError, match=re.escape(message)):
        trained_paths(PATHS, freeze)


def test_freeze_nothing():
    assert trained_paths(PATHS, ()) == PATHS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"learning_rate": -1.0}, "learning_rate: expected more than 0, got -1.0"),
        ({"learning_rate": math.nan}, "learning_rate: expected more than 0, got nan"),
        ({"warmup_ratio": 1.5}, "warmup_ratio: expected 0 to 1, got 1.5"),
        ({"beta2": 1.0}, "beta2: expected 0 to less than 1, got 1.0"),
        ({"template": "v2"}, "template: expected one of v0,"),
        ({"remat": "some"}, "remat: expected one of none, dots, full, got 'some'"),
        ({"batch_size": 6, "accumulate": 4}, "batch_size 6 does not divide into accumulate 4 equal parts"),
    ],
)
def test_settings_that_make_no_sense(change, message):
    with pytest.raises(InputError, match=re.escape(message)):
        SftConfig(**change)


def test_settings_that_do_not_fit_the_model(config, checkpoint, mesh, tmp_path):
    for change, message in (
        ({"data": None}, "data: no file is given"),
        ({"max_length": 1000}, "max_length: 1000 is more than the 512 positions"),
        ({"freeze": ("vision_towers",)}, "the nearest name is 'vision_tower'"),
    ):
        with pytest.raises(InputError, match=message):
            sft(dataclasses.replace(config, **change), checkpoint, tmp_path, mesh, dtype=jnp.float32)


@pytest.mark.slow
@pytest.mark.main
def test_a_finished_run_is_left_alone(config, checkpoint, mesh, whole, tmp_path, monkeypatch):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    directory = tmp_path / "checkpoints" / "sft"
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr(loop_module, "load_trainable", None)  # it does not come to reading the weights
    assert sft(config, checkpoint, tmp_path, mesh, dtype=jnp.float32) == directory
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == files
    with pytest.raises(InputError, match=r"10 was made with learning_rate 0\.002, which is now 0\.001"):
        sft(dataclasses.replace(config, learning_rate=1e-3), checkpoint, tmp_path, mesh, dtype=jnp.float32)


def test_updates_wait_for_nothing_from_the_host(config, checkpoint, mesh, tmp_path, monkeypatch):
    """From the first update to the last, the loop moves nothing but each batch, and asks for that."""
    make, last = loop_module.make_train_step, 10

    def guarded(*given):
        step, count = make(*given), itertools.count(1)

        def update(*arguments):
            number = next(count)
            if number == 2:  # the first one compiles
                jax.config.update("jax_transfer_guard", "disallow")
            try:
                return step(*arguments)
            finally:
                if number == last:
                    jax.config.update("jax_transfer_guard", "allow")

        return update

    monkeypatch.setattr(loop_module, "make_train_step", guarded)
    try:
        sft(dataclasses.replace(config, save_every=last), checkpoint, tmp_path, mesh, dtype=jnp.float32)
    finally:
        jax.config.update("jax_transfer_guard", "allow")
    assert [line["step"] for line in curve(tmp_path)] == list(range(1, last + 1))


def interrupted(config, checkpoint, run_dir, mesh, monkeypatch, *, after: int) -> None:
    interrupt(lambda: sft(config, checkpoint, run_dir, mesh, dtype=jnp.float32), monkeypatch, after=after)


@pytest.mark.slow
@pytest.mark.main
def test_a_resumed_run_has_the_same_bits(config, checkpoint, mesh, whole, tmp_path, monkeypatch):
    broken = tmp_path / "broken"
    interrupted(config, checkpoint, broken, mesh, monkeypatch, after=2)  # before the first checkpoint
    interrupted(config, checkpoint, broken, mesh, monkeypatch, after=6)
    assert len(curve(broken)) == 5  # two past the checkpoint, the last one never looked at
    with (broken / "metrics" / "sft.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # and a line that a kill cut short
    sft(config, checkpoint, broken, mesh, dtype=jnp.float32)
    assert curve(broken) == curve(whole)
    assert [line["step"] for line in curve(broken)] == list(range(1, 11))
    expected = weights(whole)
    for path, value in weights(broken).items():
        np.testing.assert_array_equal(value, expected[path])


@pytest.mark.slow
@pytest.mark.main
def test_what_may_change_and_what_may_not(config, checkpoint, world, mesh, tmp_path, monkeypatch):
    interrupted(config, checkpoint, tmp_path / "run", mesh, monkeypatch, after=5)
    moved = tmp_path / "elsewhere.json"
    moved.write_bytes(config.data.read_bytes())
    other = tmp_path / "other.json"
    other.write_text(json.dumps(json.loads(config.data.read_text())[:-1]))
    for change, key in (
        ({"seed": 1}, "seed 0"),
        ({"batch_size": 4}, "batch_size 8"),
        ({"freeze": ()}, r"freeze \[.vision_tower.\]"),
        ({"data": other}, "data.sha256"),
    ):
        with pytest.raises(InputError, match=f"was made with {key}"):
            sft(dataclasses.replace(config, **change), checkpoint, tmp_path / "run", mesh, dtype=jnp.float32)
    with pytest.raises(InputError, match='was made with dtype "float32", which is now "bfloat16"'):
        sft(config, checkpoint, tmp_path / "run", mesh, dtype=jnp.bfloat16)
    stranger = open_checkpoint(make_world(tmp_path / "stranger", examples=1) / "model")
    stranger = dataclasses.replace(checkpoint, directory=tmp_path / "other model", tensors=poisoned(stranger.tensors))
    with pytest.raises(InputError, match=r"was trained with the frozen weights of .*other model differ"):
        sft(config, stranger, tmp_path / "run", mesh, dtype=jnp.float32)

    how = {"accumulate": 2, "pack": 2, "loss_chunk": 64, "remat": "dots"}
    changed = dataclasses.replace(config, data=moved, save_every=3, keep=5, **how)
    sft(changed, checkpoint, tmp_path / "run", mesh, dtype=jnp.float32)
    assert len(curve(tmp_path / "run")) == 10


def poisoned(tensors):
    """Tensors whose vision tower differs in one number."""

    class Changed:
        def __init__(self, tensor):
            self.tensor, self.shape, self.dtype = tensor, tensor.shape, tensor.dtype

        def read(self, index=None):
            value = np.array(self.tensor.read(index))
            value.flat[0] = np.nextafter(value.flat[0], np.float32(9))
            return value

        def read_into(self, out, *args, **kwargs):
            self.tensor.read_into(out, *args, **kwargs)
            out.flat[0] = np.nextafter(out.flat[0], np.float32(9))

    name = "vision_tower.vision_model.embeddings.class_embedding"
    return {**tensors, name: Changed(tensors[name])}


@pytest.mark.slow
def test_divergence_stops_without_harm(config, checkpoint, mesh, tmp_path):
    """A rate of 1e30: the first update is finite, the second's loss is not."""
    wild = dataclasses.replace(config, learning_rate=1e30, warmup_ratio=0.0, save_every=1)
    ids = [batch.ids for batch in sft_module._loader(wild, checkpoint, mesh).batches()]
    with pytest.raises(TrainingDiverged, match=r"update 2: loss (nan|inf)") as caught:
        sft(wild, checkpoint, tmp_path, mesh, dtype=jnp.float32)
    assert "\n" not in str(caught.value)
    assert all(name in str(caught.value) for name in ids[1])
    assert [line["step"] for line in curve(tmp_path)] == [1]
    assert [path.name for path in (tmp_path / "checkpoints" / "sft").iterdir()] == ["1"]
    assert all(np.isfinite(value).all() for value in weights(tmp_path).values())


@pytest.mark.slow
@pytest.mark.main
def test_an_update_that_is_not_finite_changes_nothing(config, checkpoint, mesh):
    trained = trained_paths(PATHS, config.freeze)
    model = load_model(checkpoint, mesh=mesh, dtype=jnp.float32, master=trained.__contains__)
    graphdef, params, frozen = partition_params(model, trained)
    optimizer = make_optimizer(config, 10)
    abstract = abstract_state(params, optimizer, mesh)
    state = init_state(params, optimizer, mesh, 0)
    step = make_train_step(graphdef, abstract, optimizer, learning_rate(config, 10), config, jnp.float32)
    batches = [batch.rows for batch in sft_module._loader(config, checkpoint, mesh).batches()][:3]
    with jax.set_mesh(mesh):
        state, _ = step(state, frozen, batches[0])
        before = jax.device_get(state)
        broken = {path: jax.device_put(weight * jnp.nan, weight.sharding) for path, weight in frozen.items()}
        state, metrics = step(state, broken, batches[1])
        assert not np.isfinite(metrics["loss"])
        for left, right in zip(jax.tree.leaves(before), jax.tree.leaves(state), strict=True):
            np.testing.assert_array_equal(left, right)
        state, metrics = step(state, frozen, batches[2])
        assert np.isfinite(metrics["loss"])
        assert state.step == 2
    assert step._cache_size() == 1  # the state comes back as it went in: nothing is compiled twice


@pytest.mark.slow
@pytest.mark.main
def test_bfloat16(config, checkpoint, mesh, whole, tmp_path):
    """The loss falls as in float32; trained weights and optimizer stay float32, frozen ones are bfloat16."""
    sft(config, checkpoint, tmp_path, mesh, dtype=jnp.bfloat16)
    exact, rounded = (np.array([line["loss"] for line in curve(run_dir)]) for run_dir in (whole, tmp_path))
    assert (exact != rounded).any()
    np.testing.assert_allclose(rounded, exact, rtol=2e-2)
    assert all(value.dtype == np.float32 for value in weights(tmp_path).values())


@pytest.mark.slow
def test_text_only_data(config, checkpoint, mesh, tmp_path):
    records = [record for record in json.loads(config.data.read_text()) if "image" not in record]
    data = tmp_path / "text.json"
    data.write_text(json.dumps(records))
    sft(dataclasses.replace(config, data=data, images=None, epochs=3), checkpoint, tmp_path, mesh, dtype=jnp.float32)
    assert len(curve(tmp_path)) == 3
    before = base_weights(checkpoint, mesh)
    for path, value in weights(tmp_path).items():
        assert (value == before[path]).all() == path.startswith("multi_modal_projector")  # no image, no gradient


def test_log_lines_and_events(config, checkpoint, mesh, tmp_path):
    sft(dataclasses.replace(config, log_every=5), checkpoint, tmp_path, mesh, dtype=jnp.float32)
    lines = [json.loads(line) for line in (tmp_path / "metrics" / "sft.jsonl").read_text().splitlines()]
    batches = list(sft_module._loader(config, checkpoint, mesh).batches())
    for line, batch in zip(lines, batches, strict=True):
        assert list(line) == ["step", "loss", "grad_norm", "learning_rate", "tokens", "num_tokens", "seconds"]
        assert line["tokens"] == (batch.rows.labels != IGNORE_INDEX).sum()
        assert line["num_tokens"] == (batch.rows.token_ids != checkpoint.tokenizer.pad_id).sum()
        assert line["seconds"] > 0
    assert list((tmp_path / "metrics").glob("events.*"))


def test_a_broken_image_ends_the_run(config, checkpoint, world, mesh, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for path in (world / "images").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "7.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"data\.json: example 'example-7': .*7\.png"):
        sft(dataclasses.replace(config, images=folder), checkpoint, tmp_path, mesh, dtype=jnp.float32)


def test_tiny_world_has_what_the_tests_need(checkpoint):
    assert checkpoint.config.text.num_kv_heads < checkpoint.config.text.num_heads
    assert Path(checkpoint.directory).name == "model"
    assert checkpoint.config.num_image_tokens == TINY.num_image_tokens
