"""Stages that train an adapter: what they keep, what they export, and that devices and interruptions change nothing."""

import contextlib
import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.torch import save_file

import vigor_jax as vj
from tests.hf.test_peft import write
from tests.hf.test_round_trip import weights as stored_weights
from tests.stages.sft_world import TINY, curve, finish, interrupt, make_world, spawn, weights
from tests.tiny_llava import build_checkpoint
from vigor_jax.config import RunConfig, TrainConfig
from vigor_jax.errors import InputError
from vigor_jax.hf.families import read_config
from vigor_jax.hf.load import open_checkpoint
from vigor_jax.hf.options import ExportConfig, ModelConfig
from vigor_jax.models.lora import lora_paths
from vigor_jax.models.lora_config import LoraConfig
from vigor_jax.models.vlm import abstract_model, param_paths
from vigor_jax.parallel.config import MeshConfig
from vigor_jax.parallel.sharding import make_mesh
from vigor_jax.pipeline.rounds import of_round, run_rounds
from vigor_jax.pipeline.run import Run
from vigor_jax.rewards.detector_config import DetectionConfig
from vigor_jax.rewards.reward_model_config import RewardModelConfig
from vigor_jax.stages.export import export
from vigor_jax.stages.programs import Sizes, Target
from vigor_jax.stages.score import ScoreStage
from vigor_jax.stages.score_config import ScoreConfig
from vigor_jax.stages.sft import SftStage, sft
from vigor_jax.stages.stage import RunContext
from vigor_jax.training.config import SftConfig
from vigor_jax.training.train_step import merge_params
from vigor_jax.training.trainable import load_trainable

LORA = LoraConfig(rank=4, alpha=8)
SETTINGS: dict[str, Any] = {
    "batch_size": 8,
    "epochs": 2,
    "learning_rate": 1e-2,
    "max_length": 256,
    "bucket": 64,
    "save_every": 2,
    "lora": LORA,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("lora") / "world", examples=24)


def config_of(world: Path, **changes: Any) -> SftConfig:
    return SftConfig(data=world / "data.json", images=str(world / "images"), **{**SETTINGS, **changes})


def run(world: Path, run_dir: Path, checkpoint: Any = None, **changes: Any) -> Path:
    checkpoint = checkpoint or open_checkpoint(world / "model")
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    return sft(config_of(world, **changes), checkpoint, run_dir, mesh, dtype=jnp.float32)


@pytest.fixture(scope="module")
def trained(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("lora-run")
    run(world, directory)
    return directory


def test_checkpoints_hold_the_adapter_alone(trained):
    found = weights(trained)
    assert found.keys() == lora_paths(found.keys())
    assert len(found) == 14
    assert all(weight.dtype == np.float32 for weight in found.values())
    assert all(weight.any() for weight in found.values())
    losses = [line["loss"] for line in curve(trained)]
    assert np.mean(losses[-2:]) < np.mean(losses[:2])


@pytest.mark.main
def test_the_reference_is_the_model_without_it(world):
    """By the same frozen weights: nothing is there twice but what is trained in full."""
    checkpoint = open_checkpoint(world / "model")
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    lora = dataclasses.replace(LORA, also=("multi_modal_projector",))
    plain = load_trainable(checkpoint, config_of(world), mesh, jnp.float32, reference=True)
    assert plain.ref_params == {}
    with_projector = load_trainable(checkpoint, config_of(world, lora=lora), mesh, jnp.bfloat16, reference=True)
    names = ("linear_1.bias", "linear_1.kernel", "linear_2.bias", "linear_2.kernel")
    assert set(with_projector.ref_params) == {f"multi_modal_projector.{name}" for name in names}
    assert {weight.dtype for weight in with_projector.ref_params.values()} == {jnp.dtype(jnp.bfloat16)}
    ids = jnp.asarray([[1, 5, 9, 20, 31]])

    def logits(graphdef: Any, params: Any) -> Any:
        model = merge_params(graphdef, params | plain.frozen)
        return model.language_model.logits(model(ids))

    moved = {path: weight + 0.1 for path, weight in plain.params.items()}
    reference = logits(plain.ref_graphdef, plain.ref_params)
    np.testing.assert_allclose(reference, logits(plain.graphdef, plain.params), rtol=1e-5, atol=1e-5)
    assert np.abs(reference - logits(plain.graphdef, moved)).max() > 0.1


@pytest.mark.main
def test_a_run_that_was_interrupted_ends_with_the_same_bits(world, trained, tmp_path, monkeypatch):
    interrupt(lambda: run(world, tmp_path), monkeypatch, after=3)
    run(world, tmp_path)
    before, after = weights(trained), weights(tmp_path)
    assert before.keys() == after.keys()
    for path, weight in before.items():
        np.testing.assert_array_equal(after[path], weight, err_msg=path)
    assert curve(tmp_path) == curve(trained)
    with pytest.raises(InputError, match=r"was made with lora.rank 4, which is now 8; go back to that value"):
        run(world, tmp_path, lora=LoraConfig(rank=8, alpha=8), epochs=2)


def test_it_is_exported_as_an_adapter_and_merged_when_asked(world, trained, tmp_path):
    checkpoint, checkpoints = open_checkpoint(world / "model"), trained / "checkpoints" / "sft"
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    export(ExportConfig(), checkpoint, checkpoints, tmp_path / "adapter", mesh)
    export(ExportConfig(layout="llava-hf"), checkpoint, checkpoints, tmp_path / "merged", mesh)
    adapter, merged = open_checkpoint(tmp_path / "adapter"), open_checkpoint(tmp_path / "merged")
    assert adapter.adapter is not None
    assert adapter.directory.resolve() == (world / "model").resolve()
    assert (adapter.adapter.lora.rank, adapter.adapter.lora.alpha) == (4, 8)
    read = adapter.adapter.read(adapter.entries)
    for path, weight in weights(trained).items():
        np.testing.assert_array_equal(read[path], weight)
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    path = "language_model.layers.up_proj"
    update = 2 * (read[f"{path}.lora_a"][1] @ read[f"{path}.lora_b"][1]).T
    expected = checkpoint.tensors[name].read() + update
    np.testing.assert_allclose(merged.tensors[name].read(), expected, rtol=1e-5, atol=1e-6)
    record = json.loads((tmp_path / "adapter" / "vigor_jax.json").read_text())
    assert record["layout"] == "peft"
    assert "update_kept" not in record


def test_a_merged_export_keeps_what_rounding_cost(world, trained, tmp_path, caplog):
    """Against the weights before and after; and it is no reason to write an export a second time."""
    checkpoint, checkpoints = open_checkpoint(world / "model"), trained / "checkpoints" / "sft"
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    learned, wanted, kept = weights(trained), 0.0, 0.0
    export(ExportConfig(layout="llava-hf", dtype="bfloat16"), checkpoint, checkpoints, tmp_path / "merged", mesh)
    merged = open_checkpoint(tmp_path / "merged")
    for entry in checkpoint.entries:
        layer = entry.path.removesuffix(".kernel")
        if f"{layer}.lora_a" in learned:
            a, b = (learned[f"{layer}.{name}"][entry.layer] for name in ("lora_a", "lora_b"))
            before, after = (each.tensors[entry.name].read().astype(np.float32) for each in (checkpoint, merged))
            wanted += np.sum((2 * a @ b) ** 2)
            kept += np.sum((2 * a @ b).T * (after - before))
    record = json.loads((tmp_path / "merged" / "vigor_jax.json").read_text())
    assert record["update_kept"] == pytest.approx(kept / wanted, abs=1e-3)
    assert record["update_kept"] != 1
    with caplog.at_level("INFO"):
        export(ExportConfig(layout="llava-hf", dtype="bfloat16"), checkpoint, checkpoints, tmp_path / "merged", mesh)
    assert "already" in caplog.text


@pytest.mark.main
def test_training_continues_from_an_adapter(world, trained, tmp_path):
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    base = open_checkpoint(world / "model")
    export(ExportConfig(), base, trained / "checkpoints" / "sft", tmp_path / "adapter", mesh)
    checkpoint = open_checkpoint(world / "model", adapter=tmp_path / "adapter")
    loaded = load_trainable(checkpoint, config_of(world), mesh, jnp.float32, reference=True)
    for path, weight in weights(trained).items():
        np.testing.assert_array_equal(loaded.params[path], weight)
        np.testing.assert_array_equal(loaded.ref_params[path], weight)  # the reference is where this training begins
        assert loaded.ref_params[path] is not loaded.params[path]
    run(world, tmp_path / "run", checkpoint, epochs=1)
    again = tmp_path / "run" / "checkpoints" / "sft"
    export(ExportConfig(), checkpoint, again, tmp_path / "second", mesh)
    assert open_checkpoint(tmp_path / "second").adapter is not None
    for changes, message in (
        (
            {"lora": None},
            "is an adapter, and training would change the weights below it; give lora its rank 4 and alpha 8",
        ),
        ({"lora": LoraConfig(rank=8, alpha=8)}, "lora.rank: 8, but the adapter .* that training continues has 4; give"),
        ({"lora": LoraConfig(rank=4, alpha=9)}, "lora.alpha: 9"),
        ({"lora": LoraConfig(4, 8, target=("multi_modal_projector",))}, "lora.target: multi_modal_projector covers 2"),
    ):
        with pytest.raises(InputError, match=message):
            run(world, tmp_path / "never", checkpoint, **changes)


def test_a_run_exports_evaluates_and_refuses(world, tmp_path):
    """Through the config of a run; `train_reward` gives its model to `score` in the same way."""
    whole = TrainConfig(
        RunConfig(tmp_path / "run"),
        ModelConfig(world / "model", dtype="float32"),
        sft=config_of(world, epochs=1),
    )
    Run(whole).go()
    assert (tmp_path / "run" / "export" / "adapter_config.json").exists()
    plain = dataclasses.replace(whole, sft=config_of(world, lora=None), export=ExportConfig(layout="peft"))
    with pytest.raises(InputError, match="layout: peft is for adapters, and none was trained here; give llava-hf"):
        Run(plain)


def test_rounds_put_no_adapter_on_an_adapter(world, tmp_path):
    """What a round exports is an adapter with its base; the next continues it."""
    model = ModelConfig(world / "model", adapter=tmp_path / "adapter")
    whole = TrainConfig(RunConfig(tmp_path / "run", rounds=2), model)
    assert of_round(whole, 1).model.adapter == tmp_path / "adapter"
    assert of_round(whole, 2).model.adapter is None


def test_an_export_is_of_the_model_that_was_trained_on(world, trained, tmp_path):
    """Whatever its layout; another one is refused before anything is written, an adapter would be stamped with it."""
    checkpoints = trained / "checkpoints" / "sft"
    other = build_checkpoint(tmp_path / "other", TINY, seed=1)
    for layout in ("peft", "llava-hf"):
        with pytest.raises(InputError, match=r"began with .*model, and the weights of .*other differ") as caught:
            vj.export(checkpoints, tmp_path / "out", layout=layout, base=other)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()
    same = vj.export(world / "model", tmp_path / "same", layout="llava")
    adapter = vj.export(checkpoints, tmp_path / "adapter", base=same)
    assert open_checkpoint(world / "model", adapter=adapter).adapter is not None
    older = shutil.copytree(checkpoints, tmp_path / "older")  # a checkpoint of an earlier version says too little
    record = older / "6" / "record" / "record.json"
    record.write_text(json.dumps({k: v for k, v in json.loads(record.read_text()).items() if k != "base_digest"}))
    vj.export(older, tmp_path / "out", base=other)


def context(run_dir: Path, model: Path, base: Path | None = None) -> RunContext:
    config = ModelConfig(model, dtype="float32")
    opened = open_checkpoint(model, base=base)
    return RunContext(run_dir, str(run_dir), config, opened, MeshConfig(), MeshConfig(data=-1, fsdp=1), base=base)


@pytest.mark.main
def test_adapters_of_a_run_find_the_model_that_was_moved(world, tmp_path):
    """A reward model that is an adapter, judged with; by the digest, so not on any model that happens to fit."""
    first = shutil.copytree(world / "model", tmp_path / "first")
    run_dir = tmp_path / "run"
    write(first, LORA, run_dir / "reward_model")
    moved, other = first.rename(tmp_path / "moved"), build_checkpoint(tmp_path / "other", TINY, seed=1)

    def judge(own: RunContext) -> Path:
        score = ScoreStage(ScoreConfig(("reward_model",)), DetectionConfig(), RewardModelConfig(), None)
        with contextlib.closing(score):
            assert score.judges(own).keys() == {"reward_model"}
        return own.open(run_dir / "reward_model").directory

    with pytest.raises(InputError, match="which is not here; give the base and the adapter apart"):
        open_checkpoint(run_dir / "reward_model")
    assert judge(context(run_dir, moved)) == moved
    assert judge(context(run_dir, other, base=moved)) == moved  # as in a later round, whose model is another one
    assert judge(context(run_dir, run_dir / "reward_model", base=moved)) == moved
    with pytest.raises(InputError, match=r"reward_model was trained on another model: the weights of .*other differ"):
        judge(context(run_dir, other))
    shutil.copytree(moved, first)
    assert judge(context(run_dir, other)) == first  # what it names is there again


@pytest.mark.slow
def test_rounds_continue_after_the_model_was_moved(world, tmp_path):
    """The adapter of a round is put on the run's `model.path`, wherever that and the run directory are now."""
    first, run_dir = shutil.copytree(world / "model", tmp_path / "first"), tmp_path / "run"
    settings = config_of(world, epochs=1, batch_size=12, accumulate=1)
    whole = TrainConfig(RunConfig(run_dir, rounds=2), ModelConfig(first, dtype="float32"), sft=settings)
    Run(of_round(whole, 1)).go()
    moved, moved_run = first.rename(tmp_path / "moved"), run_dir.rename(tmp_path / "moved-run")
    whole = dataclasses.replace(
        whole, run=RunConfig(moved_run, rounds=2), model=dataclasses.replace(whole.model, path=moved)
    )
    run_rounds(whole)
    before, after = (weights(moved_run / f"round-{number}") for number in (1, 2))
    assert before.keys() == after.keys()
    assert any(np.abs(before[path] - after[path]).max() > 1e-3 for path in before)
    config = json.loads((moved_run / "round-2" / "export" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(moved)


@pytest.mark.slow
def test_what_is_trained_on_a_language_model_alone_can_be_opened(world, tmp_path):
    """Vicuna, and an adapter that brings the projector, as LLaVA's authors publish them: trained further."""
    original = vj.export(world / "model", tmp_path / "original", layout="llava")
    vicuna = shutil.copytree(
        original, tmp_path / "vicuna", ignore=shutil.ignore_patterns("*.safetensors", "vision_tower")
    )
    config = json.loads((original / "config.json").read_text())
    plain = {key: value for key, value in config.items() if not key.startswith("mm_")}
    (vicuna / "config.json").write_text(json.dumps(plain | {"model_type": "llama"}))
    language = {name: value for name, value in stored_weights(original).items() if "mm_projector" not in name}
    save_file(language, vicuna / "model.safetensors", {"format": "pt"})
    lora = dataclasses.replace(LORA, also=("multi_modal_projector",))
    settings = config_of(world, lora=lora, epochs=1, batch_size=12, accumulate=1)

    def train(name: str, model: ModelConfig, layout: str | None = None) -> Path:
        run_config = RunConfig(tmp_path / name)
        Run(TrainConfig(run_config, model, sft=settings, export=ExportConfig(layout, "float32"))).go()
        return tmp_path / name / "export"

    first = train("first", ModelConfig(original, dtype="float32"), "llava-lora")
    model = ModelConfig(vicuna, adapter=first, dtype="float32")
    with pytest.raises(InputError, match=r"vicuna can be written as llava-hf or llava or llava-lora, got 'peft'"):
        train("second", model, "peft")
    second = train("second", model)
    assert (second / "non_lora_trainables.bin").exists()
    # Not as llava-hf, which adds rows to the vocabulary, over which probabilities are shared.
    merged = vj.export(
        tmp_path / "second" / "checkpoints" / "sft", tmp_path / "merged", layout="llava", dtype="float32"
    )
    images, question = sorted((world / "images").iterdir())[:2], "What is in the picture?"
    said = [
        [each.sum_logprob for each in opened.logprobs(images, question, ["a red dog.", "a table."])]
        for opened in (
            vj.load(vicuna, adapter=second, dtype="float32"),
            vj.load(merged, dtype="float32"),
            vj.load(vicuna, adapter=first, dtype="float32"),
        )
    ]
    np.testing.assert_allclose(said[0], said[1], rtol=1e-4)
    assert np.abs(np.subtract(said[0], said[2])).min() > 0.1


def test_what_cannot_be_exported_is_refused_before_training(world, tmp_path):
    lora = LoraConfig(rank=4, alpha=8, target=("vision_tower",))
    original = vj.export(world / "model", tmp_path / "original", layout="llava")
    for model, message in ((world / "model", "names the vision tower by its place"), (original, "holds no weights of")):
        whole = TrainConfig(
            RunConfig(tmp_path / "run"), ModelConfig(model, dtype="float32"), sft=config_of(world, lora=lora),
            export=ExportConfig(layout="llava-lora"),
        )  # fmt: skip
        with pytest.raises(InputError, match=f"layout: llava-lora {message}"):
            Run(whole)


@pytest.mark.slow
def test_from_python_it_says_what_the_merged_model_says(world, trained, tmp_path):
    checkpoints = trained / "checkpoints" / "sft"
    adapter = vj.export(checkpoints, tmp_path / "adapter")
    merged = vj.export(adapter, tmp_path / "merged", layout="llava-hf", base=world / "model")
    images, question = sorted((world / "images").iterdir())[:2], "What is in the picture?"
    models = [
        vj.load(world / "model", adapter=adapter),
        vj.load(merged),
        vj.load(world / "model"),
        vj.load(adapter, int8=True),
    ]
    said = [model.generate(images, question, temperature=0, max_new_tokens=6) for model in models[:2]]
    assert [each.token_ids for each in said[0]] == [each.token_ids for each in said[1]]
    logprobs = [
        np.array([each.sum_logprob for each in model.logprobs(images, question, ["a red dog.", "a table."])])
        for model in models
    ]
    np.testing.assert_allclose(logprobs[0], logprobs[1], rtol=1e-4)
    assert np.abs(logprobs[0] - logprobs[2]).min() > 0.1
    np.testing.assert_allclose(logprobs[3], logprobs[0], rtol=0.05)  # the base in 8 bits, the adapter not


def test_a_plan_holds_gradients_and_moments_of_the_adapter_alone(world):
    """Bytes of weights and optimizer on a device, counted by hand."""
    model = read_config(world / "model")
    mesh = MeshConfig(1, 1, 1)
    sizes = Sizes(prompt=64, response=16, branch_row=64, sentences=4, example=64)
    target = Target(model, jnp.dtype("bfloat16"), jax.devices()[:1], mesh, mesh, sizes)
    (whole,) = SftStage(config_of(world, lora=None)).programs(target)
    (thin,) = SftStage(config_of(world)).programs(target)
    text = model.text
    query, kv = text.num_heads * text.head_dim, text.num_kv_heads * text.head_dim
    ends = [(text.hidden_size, query), *[(text.hidden_size, kv)] * 2, (query, text.hidden_size)]
    ends += [(text.hidden_size, text.intermediate_size)] * 3
    adapter = LORA.rank * text.num_layers * sum(map(sum, ends))
    base = param_paths(nnx.state(abstract_model(model))).values()
    everything = sum(math.prod(variable.get_value().shape) for variable in base)
    counters = thin.held - (2 * everything + 4 * 3 * adapter)
    assert 0 <= counters < 64  # steps and keys
    assert thin.held < whole.held / 3
    assert thin.flops < whole.flops


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(1, 8, 1), pytest.param((2, 2, 2), marks=pytest.mark.main)], ids=["fsdp", "tensor"])
def test_one_device_equals_eight(world, tmp_path, mesh):
    lora = {"rank": 4, "alpha": 8, "target": ["language_model", "vision_tower"], "also": ["multi_modal_projector"]}
    settings = {**SETTINGS, "lora": lora, "bucket": 256, "epochs": 1, "learning_rate": 1e-3}
    meshes = {"one": ((1, 1, 1), 1), "eight": (mesh, 8)}
    runs = [
        {"run_dir": str(tmp_path / name), "mesh": mesh, "devices": devices, "sft": settings}
        for name, (mesh, devices) in meshes.items()
    ]
    finish(spawn({"world": str(world), "runs": runs}, devices=8, cache=tmp_path / "cache"))
    expected, losses = weights(tmp_path / "one"), curve(tmp_path / "one")
    assert len(losses) == 3
    for ours, theirs in zip(curve(tmp_path / "eight"), losses, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    found = weights(tmp_path / "eight")
    assert found.keys() == expected.keys()
    for path, weight in expected.items():
        np.testing.assert_allclose(found[path], weight, rtol=0, atol=1e-5, err_msg=path)
