"""The plan of PPO: what its programs hold and take, against runs; sampler, judges, learner and reference together."""

import dataclasses
import gc
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from tests.inference.test_tree_attention import CONFIG
from tests.plan.memory_taken import CHIP, LINUX_COUNTS_PEAKS, planned_and_taken
from tests.rewards import clip_world
from tests.stages.ppo_world import Letters, make_world
from tests.stages.run_ppo import make_config
from vigor_jax.config import RunConfig, TrainConfig
from vigor_jax.errors import InputError
from vigor_jax.hf.families import read_config
from vigor_jax.hf.load import open_checkpoint
from vigor_jax.hf.options import ModelConfig
from vigor_jax.hf.peft import CONFIG as ADAPTER_CONFIG
from vigor_jax.inference.decoder import Decoder
from vigor_jax.inference.policy import Policy
from vigor_jax.inference.sampling_config import SamplingConfig
from vigor_jax.models.clip import ClipConfig
from vigor_jax.models.llama import LlamaConfig
from vigor_jax.models.llava import LlavaConfig
from vigor_jax.models.lora import add_lora, lora_paths
from vigor_jax.models.lora_config import LoraConfig
from vigor_jax.models.vlm import abstract_model, param_paths
from vigor_jax.parallel.config import MeshConfig
from vigor_jax.parallel.sharding import make_mesh, to_global
from vigor_jax.plan.estimate import Estimate, estimate
from vigor_jax.plan.planning import programs
from vigor_jax.plan.recipe import recipe
from vigor_jax.rewards.detector_config import DetectionConfig
from vigor_jax.rewards.reward_model import RewardModel
from vigor_jax.rewards.reward_model_config import RewardModelConfig
from vigor_jax.stages import ppo as stage
from vigor_jax.stages import ppo_learner, ppo_programs
from vigor_jax.stages.ppo_config import PpoConfig
from vigor_jax.stages.ppo_learner import Learner
from vigor_jax.stages.programs import Sizes, Target, Work, bytes_held, for_inference
from vigor_jax.stages.score import ScoreStage
from vigor_jax.stages.score_config import ScoreConfig

SAMPLING = SamplingConfig(temperature=1.0, max_new_tokens=16, num_candidates=3, batch_size=4, prompt_bucket=32)
SIZES = Sizes(prompt=32, response=16, branch_row=128, sentences=6, example=128)
LORA = LoraConfig(rank=4, alpha=8)
each_kind = pytest.mark.parametrize("lora", [None, LORA], ids=["all weights", "adapter"])


def size(tree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    "lora",
    [pytest.param(None, marks=pytest.mark.slow), pytest.param(LORA, marks=pytest.mark.main)],
    ids=["all weights", "adapter"],
)
def test_programs_of_ppo(lora):
    config = PpoConfig(sampling=SAMPLING, batch_size=8, minibatch=4, accumulate=2, bucket=32, lora=lora)
    target = Target(CONFIG, jnp.float32, jax.devices()[:1], MeshConfig(), MeshConfig(), SIZES)
    found = [(program, estimate(program, CHIP, 1)) for program in ppo_programs.programs("ppo", config, target)]
    assert [(program.name, program.rows, program.tokens) for program, _ in found] == [
        ("hand-over", 8, 0), ("prefill", 1, 32), ("decode", 12, 16), ("score", 2, 96), ("update", 4, 96),
    ]  # fmt: skip
    whole = size(abstract_model(CONFIG))
    peaks = {program.name: made.peak for program, made in found}
    held = {program.name: program.held + program.held_by_others for program, _ in found}
    if lora is None:  # the masters, two moments each, the reference, and what sampling holds
        trained = whole - size(abstract_model(CONFIG).vision_tower)
        least = whole + 3 * trained + whole
    else:  # the base for training and for sampling; the adapter with two moments, and for sampling
        trained = size(add_lora(abstract_model(CONFIG), lora)) - whole
        least = 2 * whole + 4 * trained
    for name in ("hand-over", "score", "update"):
        assert least <= held[name] < 1.05 * least, name
    for name in ("decode", "update"):
        assert peaks[name] > least, name
    assert least + trained <= peaks["hand-over"]  # the new ones next to the old ones
    calls, seconds = ppo_programs.cost(config, Work(images=85), [made for _, made in found])
    assert calls == 10
    assert seconds > 0
    for limit, iterations in ((40, 5), (84, 10), (100, 10)):
        limited = dataclasses.replace(config, limit=limit)
        found_then = ppo_programs.cost(limited, Work(images=85), [made for _, made in found])
        assert found_then == (iterations, pytest.approx(seconds * iterations / 10))


def test_a_minibatch_that_does_not_divide_is_called_by_its_name():
    """There is a `batch_size`, too, which does not help."""
    config = PpoConfig(sampling=SAMPLING, batch_size=64, minibatch=4, lora=LORA)
    eight = [jax.devices()[0]] * 8
    target = Target(CONFIG, jnp.float32, eight, MeshConfig(), MeshConfig(data=-1, fsdp=1), SIZES)
    with pytest.raises(
        InputError, match=r"^ppo\.minibatch 4 does not divide by data x fsdp x accumulation = 1 x 8 x 1"
    ):
        next(ppo_programs.programs("ppo", config, target))


def test_weights_that_are_split_in_another_way_are_there_twice():
    """On their way from parts to each device's copy of all."""
    eight = [jax.devices()[0]] * 8
    config = PpoConfig(sampling=SAMPLING, batch_size=8, minibatch=8, lora=LORA)
    alone, parts = MeshConfig(data=-1, fsdp=1), MeshConfig()
    first = {
        name: next(ppo_programs.programs("ppo", config, Target(CONFIG, jnp.float32, eight, parts, mesh, SIZES)))
        for name, mesh in (("alone", alone), ("parts", parts))
    }
    total = {name: program.held + program.held_by_others for name, program in first.items()}
    split = for_inference(CONFIG, jnp.float32, make_mesh(parts, eight), LORA)
    leaves = {path: variable.get_value() for path, variable in param_paths(nnx.state(split)).items()}
    moved = sum(
        leaves[path].size * 4
        for path in lora_paths(leaves)
        if leaves[path].sharding.shard_shape(leaves[path].shape) != leaves[path].shape
    )
    assert moved
    more = size(add_lora(abstract_model(CONFIG), LORA)) - bytes_held(split)
    assert total["alone"] - total["parts"] == more + moved


def test_judges_stay_on_the_devices(tmp_path):
    """All their weights are there while anything else runs, and their time counts."""
    clip = clip_world.config(clip_world.make_world(tmp_path))
    ppo = PpoConfig(sampling=SAMPLING, batch_size=8, minibatch=4, bucket=32, lora=LORA)
    base = TrainConfig(
        run=RunConfig(dir=tmp_path / "run", stages=("ppo",)),
        model=ModelConfig(path=tmp_path / "absent", dtype="float32"),
        reward_model=RewardModelConfig(batch_size=2, max_length=128),
        clip=clip,
        ppo=ppo,
    )
    found = {}
    for streams in (("detector",), ("clip",), ("reward_model", "clip")):
        config = dataclasses.replace(base, score=ScoreConfig(streams=streams))
        found[streams] = {each.name: each for each in programs(config, CONFIG, jax.devices()[:1], SIZES)}
    alone, one, both = found.values()
    assert list(alone) == ["hand-over", "prefill", "decode", "score", "update"]
    assert list(both) == ["hand-over", "prefill", "decode", "reward model", "verifier", "score", "update"]
    verifier = 4 * sum(int(jnp.prod(jnp.array(x.shape))) for x in clip_world.checkpoint(tmp_path).tensors.values())
    reward_model = size(abstract_model(CONFIG))
    for name, program in alone.items():
        assert one[name].held_by_others == program.held_by_others + verifier
        assert both[name].held_by_others == program.held_by_others + verifier + reward_model
    resident = both["update"].held + both["update"].held_by_others
    for name in ("reward model", "verifier"):
        planned = estimate(both[name], CHIP, 1)
        assert planned.arguments == pytest.approx(resident, rel=0.01)  # and a batch
    estimates = [
        Estimate("ppo", name, rows, 0, 0, 0, 0, 1.0, 1.0, {}, 0, 0, 0, 0, seconds)
        for name, rows, seconds in (
            ("hand-over", 8, 0.5), ("prefill", 2, 1.0), ("decode", 4 * 3, 8.0), ("reward model", 2, 3.0),
            ("verifier", 32, 7.0), ("score", 2, 0.25), ("update", 4, 10.0),
        )
    ]  # fmt: skip
    (time,) = recipe(estimates, config, Work(images=20, answer=4), 1)
    # Two iterations of 8 images, 4 at a time: of the first 4 the responses have 4 of 16 tokens, in steps of
    # which nine tenths are useful; the last has 16.
    iteration = 0.5 + 4 * 1.0 + (1 + 4 / 0.9 / 16) * 8.0 + 4 * 3.0 + 7.0 + 2 * 4 * 0.25 + 4 * 2 * 10.0
    assert (time.calls, time.hours * 3600) == (2, pytest.approx(2 * iteration))


@pytest.mark.slow
@each_kind
def test_what_a_run_holds(lora, tmp_path, monkeypatch):
    """Bytes of all arrays on the device: when weights are handed over, during decoding and before an update."""
    world = make_world(tmp_path / "w", images=16)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    judge = RewardModelConfig(batch_size=4, max_length=256)
    config = make_config(world, lora=lora, ppo_epochs=1, save_every=100)  # one being written holds arrays for a moment
    seen, prompts = {}, set()

    def note(name):
        gc.collect()
        seen[name] = sum(array.nbytes for array in jax.live_arrays()) - before

    set_weights, generate, update = Policy.set_weights, Decoder.generate, Learner.update
    monkeypatch.setattr(Policy, "set_weights", lambda *given: (note("hand-over"), set_weights(*given))[1])
    monkeypatch.setattr(Learner, "update", lambda *given: (note("update"), update(*given))[1])

    def decode(decoder, prefix, *given):
        prompts.add(prefix.capacity)
        note("decode")
        return generate(decoder, prefix, *given)

    monkeypatch.setattr(Decoder, "generate", decode)
    gc.collect()
    before = sum(array.nbytes for array in jax.live_arrays())
    checkpoint = open_checkpoint(world / "model")
    judges = {"letters": Letters(), "reward_model": RewardModel.of(Policy(checkpoint, mesh, dtype="float32"), judge)}
    stage.ppo(config, checkpoint, tmp_path / "run", mesh, mesh, lambda: judges, dtype="float32")

    sizes = Sizes(prompt=max(prompts), response=12, branch_row=256, sentences=8, example=256)
    target = Target(checkpoint.config, jnp.dtype("float32"), mesh.devices.tolist()[0][0], *[MeshConfig()] * 2, sizes)
    score = ScoreStage(ScoreConfig(streams=("reward_model",)), DetectionConfig(), judge, None)
    planned = {
        each.name: each for each in ppo_programs.programs("ppo", config, target, score.judging_programs("ppo", target))
    }
    made = {name: estimate(planned[name], CHIP, 1) for name in seen}
    assert seen["update"] == pytest.approx(planned["update"].held + planned["update"].held_by_others, rel=0.01)
    assert seen["decode"] == pytest.approx(made["decode"].arguments, rel=0.02)  # with the caches
    assert seen["hand-over"] == pytest.approx(made["hand-over"].peak - made["hand-over"].temporaries, rel=0.01)


@pytest.mark.slow
@each_kind
def test_the_update_and_the_pass_that_scores_are_those_that_run(lora, tmp_path, monkeypatch):
    """The memory of the very programs that a run compiles: their arguments, and what they need besides."""
    world = make_world(tmp_path / "w", images=8)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    config = make_config(world, lora=lora, ppo_epochs=1, accumulate=2)
    make, score, seen = ppo_learner.make_train_step, Learner.score, {}

    def recording(*given):
        step = make(*given)

        def update(state, frozen, rows):
            seen["update"] = rows.responses, step.lower(state, frozen, rows).compile().memory_analysis()
            return step(state, frozen, rows)

        return update

    def scored(learner, rows):
        given = learner.state.params, learner.frozen, to_global(rows, mesh)
        seen["score"] = rows, learner._score.lower(*given).compile().memory_analysis()
        return score(learner, rows)

    monkeypatch.setattr(ppo_learner, "make_train_step", recording)
    monkeypatch.setattr(Learner, "score", scored)
    checkpoint = open_checkpoint(world / "model")
    stage.ppo(config, checkpoint, tmp_path / "run", mesh, mesh, lambda: {"letters": Letters()}, dtype="float32")

    rows, _ = seen["update"]
    (_, length), (_, places) = rows.token_ids.shape, rows.places.shape
    answers = places // 2  # tokens of each of the two
    sizes = Sizes(length - 2 * answers + 2, answers, branch_row=0, sentences=0, example=0)
    target = Target(checkpoint.config, jnp.dtype("float32"), mesh.devices.tolist()[0][0], *[MeshConfig()] * 2, sizes)
    long = dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, max_new_tokens=answers))
    planned = {each.name: each for each in ppo_programs.programs("ppo", long, target)}
    for name, (rows, memory) in seen.items():
        made = estimate(planned[name], CHIP, 1)
        assert (planned[name].rows, planned[name].tokens) == rows.token_ids.shape, name
        expected = memory.argument_size_in_bytes, memory.temp_size_in_bytes
        assert (made.arguments - planned[name].held_by_others, made.temporaries) == expected, name


@pytest.mark.slow
@pytest.mark.main
@pytest.mark.skipif(not LINUX_COUNTS_PEAKS, reason="needs the peaks that Linux counts")
def test_memory_is_what_a_process_takes(tmp_path):
    """Of programs that take some hundred megabytes, so that nothing else in the process counts.

    An update, of fine-tuning too, takes 35 to 90 MB more than its own buffers, whatever its size: XLA's CPU backend and
    the library by which it multiplies allocate more. With activations that are kept, not computed again, the buffers
    are so large (1.4 GB) that this is little.
    """
    vision = ClipConfig(hidden_size=128, intermediate_size=512, num_layers=4, num_heads=4, image_size=112)
    text = LlamaConfig(hidden_size=256, intermediate_size=704, num_layers=4, num_heads=4, num_kv_heads=4, head_dim=64)
    sampling = SamplingConfig(temperature=1.0, max_new_tokens=64, num_candidates=4, batch_size=32)
    config = TrainConfig(
        run=RunConfig(dir=tmp_path, stages=("ppo",)),
        model=ModelConfig(path=tmp_path / "absent", dtype="float32"),
        ppo=PpoConfig(
            sampling=sampling, batch_size=32, minibatch=16, lora=LoraConfig(rank=64, alpha=128), remat="none"
        ),
    )
    sizes = Sizes(prompt=256, response=64, branch_row=512, sentences=8, example=512)
    found = planned_and_taken(config, LlavaConfig(vision=vision, text=text), sizes)
    assert [name for name, _, _ in found] == ["hand-over", "prefill", "decode", "score", "update"]
    for name, planned, taken in found[1:]:  # the first is too small to be told from the rest of the process
        assert taken == pytest.approx(planned, rel=0.1), name


def test_an_adapter_of_the_model_counts(tmp_path):
    """While it samples and judges; of a base whose weights are not here, from the adapter's rank alone."""
    world = make_world(tmp_path / "w", images=1)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    described = {"peft_type": "LORA", "r": 4, "base_model_name_or_path": str(tmp_path / "sizes")}
    (adapter / ADAPTER_CONFIG).write_text(json.dumps(described))
    (tmp_path / "sizes").mkdir()
    (tmp_path / "sizes" / "config.json").write_bytes((world / "model" / "config.json").read_bytes())
    model = read_config(world / "model")
    plain = abstract_model(model)
    base = size(plain)
    expected = size(add_lora(plain, LoraConfig(rank=4))) - base

    def held(path: Path, reward_model: Path | None = None, **given) -> list[int]:
        config = TrainConfig(
            run=RunConfig(dir=tmp_path / "run", stages=("sample", "score")),
            model=ModelConfig(path=path, dtype="float32", **given),
            score=ScoreConfig(streams=("reward_model",), reward_model=reward_model),
        )
        found = programs(config, model, jax.devices()[:1], SIZES)
        return [each.held for each in found if each.name in ("prefill", "reward model")]

    without = held(tmp_path / "sizes")
    assert held(adapter) == held(tmp_path / "sizes", adapter=adapter) == [without[0] + expected, without[1]]
    assert held(tmp_path / "sizes", adapter) == [without[0], without[1] + expected]
    trains = dataclasses.replace(
        TrainConfig(run=RunConfig(dir=tmp_path, stages=("train_reward", "score")), model=ModelConfig(tmp_path / "no")),
        score=ScoreConfig(streams=("reward_model",)),
    )
    thin = dataclasses.replace(trains, train_reward=dataclasses.replace(trains.train_reward, lora=LORA))
    judged = [list(programs(each, model, jax.devices()[:1], SIZES))[-1].held for each in (trains, thin)]
    assert judged[1] - judged[0] == expected // 2  # in 16 bits
