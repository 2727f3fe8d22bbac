"""Plans against programs that really run, here on one CPU."""

import dataclasses
import shutil
import subprocess
import sys

import jax
import pytest

from tests.hf.test_round_trip import TINY, build_original
from tests.plan.memory_taken import CHIP, LINUX_COUNTS_PEAKS, planned_and_taken
from tests.stages.sft_world import ROOT, make_world
from vigor_jax.config import RunConfig, TrainConfig
from vigor_jax.errors import InputError
from vigor_jax.hf.options import ModelConfig
from vigor_jax.inference.decoder import Decoder
from vigor_jax.inference.sampling_config import SamplingConfig
from vigor_jax.models.clip import ClipConfig
from vigor_jax.models.llama import LlamaConfig
from vigor_jax.models.llava import LlavaConfig
from vigor_jax.parallel.config import MeshConfig
from vigor_jax.pipeline.run import Run
from vigor_jax.plan.estimate import EFFICIENCY, Estimate, estimate
from vigor_jax.plan.hardware import GIB, Topology
from vigor_jax.plan.planning import Plan, model_config, plan, programs
from vigor_jax.plan.recipe import DETECTOR_FLOPS, detector_flops, recipe
from vigor_jax.rewards.detector_config import SecondDetectorConfig
from vigor_jax.rewards.reward_model_config import RewardModelConfig
from vigor_jax.stages.programs import Program, Sizes, Work
from vigor_jax.stages.sample_config import SampleConfig
from vigor_jax.stages.score_config import ScoreConfig
from vigor_jax.stages.train_reward_config import TrainRewardConfig
from vigor_jax.training import loop as loop_module
from vigor_jax.training.config import SftConfig
from vigor_jax.training.flops import forward_flops, train_flops

SIZES = Sizes(prompt=64, response=32, branch_row=128, sentences=6, example=128)


class Here(Topology):
    """The devices of this process, under the name of a chip whose data sheet is known."""

    def devices(self):
        return jax.devices()[:1]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("plan"), examples=12)


@pytest.fixture(scope="module")
def config(world):
    sampling = SamplingConfig(max_new_tokens=32, num_candidates=3, batch_size=4, prompt_bucket=64)
    return TrainConfig(
        run=RunConfig(dir=world / "run", stages=("train_reward", "sample", "score", "sft")),
        model=ModelConfig(path=world / "model", dtype="float32"),
        train_reward=TrainRewardConfig(batch_size=2, max_length=128, epochs=3),
        sample=SampleConfig(images=str(world / "images"), sampling=sampling),
        score=ScoreConfig(streams=("detector", "reward_model")),
        reward_model=RewardModelConfig(batch_size=2, max_length=128),
        sft=SftConfig(
            data=world / "data.json", images=str(world / "images"), batch_size=4, epochs=2, bucket=64, max_length=256
        ),
    )


@pytest.fixture(scope="module")
def found(config):
    model = model_config(config.model.path)
    return {
        (program.stage, program.name): (program, estimate(program, CHIP, 1))
        for program in programs(config, model, jax.devices()[:1], SIZES)
    }


@pytest.mark.slow
@pytest.mark.main
def test_every_device_step_is_there(found):
    assert [(*key, program.rows, program.tokens) for key, (program, _) in found.items()] == [
        ("train_reward", "update", 2, 128),
        ("sample", "prefill", 1, 64),  # an eighth of a batch at a time, and at least one
        ("sample", "decode", 12, 32),
        ("score", "reward model", 2, 128),
        ("sft", "update", 4, 128),
    ]
    for _, each in found.values():
        assert 0 < each.arguments < each.peak
        assert each.fits
        assert not each.collectives  # one device has nobody to talk to


@pytest.mark.slow
@pytest.mark.main
def test_what_is_held_is_in_the_arguments(found, config):
    """Next to the rows of a batch, and the caches of decoding."""
    for program, each in found.values():
        assert 0 < program.held < each.arguments
    program, update = found["sft", "update"]
    assert program.held > 0.9 * update.arguments
    prefill, decode = found["sample", "prefill"], found["sample", "decode"]
    # Prompts are read while what candidates have said exists: 12 slots of 16 tokens, their ids and log-probabilities,
    # and 2 blocks of 8 pages, keys and values of 2 layers.
    text = model_config(config.model.path).text
    cache = 2 * text.num_layers * (12 * 16 + 2 * 8 * 16) * text.num_kv_heads * text.head_dim * 4
    assert prefill[0].held_by_others == cache + 12 * 16 * (4 + 4)
    assert prefill[1].arguments == pytest.approx(decode[1].arguments, rel=0.2)


@pytest.mark.slow
def test_weights_in_8_bits_take_less(found, config):
    model = model_config(config.model.path)
    sample, run = dataclasses.replace(config.sample, int8=True), dataclasses.replace(config.run, stages=("sample",))
    small = dataclasses.replace(config, sample=sample, run=run)
    _, decode = (estimate(program, CHIP, 1) for program in programs(small, model, jax.devices()[:1], SIZES))
    text = model.text
    kernels = text.num_layers * (
        text.hidden_size * text.head_dim * 2 * (text.num_heads + text.num_kv_heads)
        + 3 * text.hidden_size * text.intermediate_size
    )
    saved = found["sample", "decode"][1].arguments - decode.arguments
    assert 2.8 * kernels < saved < 3 * kernels  # of four bytes each; the scales are new


def test_a_tower_that_the_checkpoint_does_not_bring_is_given(config, tmp_path):
    original = build_original(tmp_path / "llava", TINY, tower_inside=False)
    tower = shutil.move(original / "clip", tmp_path / "clip")
    given = dataclasses.replace(
        config,
        run=dataclasses.replace(config.run, stages=("sft",)),
        model=dataclasses.replace(config.model, path=original, vision_tower=tower),
    )
    assert plan(given, Here("v5e:1x1", CHIP, 1), Work()).model == str(original)
    assert model_config(original, tower).vision.hidden_size == TINY.vision_width


def test_batches_that_do_not_divide(config):
    """Those of training are what the user asked for; the others are made larger."""
    eight = [jax.devices()[0]] * 8
    wide = dataclasses.replace(config, mesh=MeshConfig(), inference_mesh=MeshConfig(data=-1, fsdp=1))
    sampling = dataclasses.replace(wide, run=dataclasses.replace(config.run, stages=("sample", "score")))
    model = model_config(config.model.path)
    assert [program.rows for program in programs(sampling, model, eight, SIZES)] == [8, 24, 8]
    with pytest.raises(InputError, match="batch size 2 does not divide by data x fsdp x accumulation = 1 x 8 x 1"):
        list(programs(wide, model, eight, SIZES))


@pytest.mark.slow
@pytest.mark.main
def test_arithmetic_and_traffic(found, config):
    model = model_config(config.model.path)
    trained = frozenset(("multi_modal_projector", "language_model"))
    update, decode = found["sft", "update"][1], found["sample", "decode"][1]
    assert update.flops == train_flops(model, trained, rows=4, tokens=4 * 128, images=4)
    assert decode.flops == forward_flops(model, rows=12, tokens=12 * 32, images=0)
    held = decode.arguments - found["sample", "decode"][0].held_by_others
    assert decode.traffic == 32 * held  # everything but the image tower is read again for each token
    for _, each in found.values():
        assert each.compute_seconds == each.flops / 197e12
        assert each.roofline == max(each.compute_seconds, each.memory_seconds)
        assert each.compiler_seconds is None  # a CPU's compiler says nothing of time
        assert each.seconds == each.roofline / EFFICIENCY
        assert each.mfu == each.compute_seconds / each.seconds


@pytest.mark.slow
def test_update_is_the_one_that_runs(found, config, monkeypatch):
    make, seen = loop_module.make_train_step, []

    def recording(*given):
        step = make(*given)

        def update(state, frozen, rows):
            seen.append((rows.token_ids.shape, step.lower(state, frozen, rows).compile().memory_analysis()))
            return step(state, frozen, rows)

        return update

    monkeypatch.setattr(loop_module, "make_train_step", recording)
    Run(dataclasses.replace(config, run=dataclasses.replace(config.run, stages=("sft",)))).go()
    program, planned = found["sft", "update"]
    memory = [memory for shape, memory in seen if shape == (program.rows, program.tokens)]
    assert memory, [shape for shape, _ in seen]
    arguments = planned.arguments - program.held_by_others
    assert (arguments, planned.temporaries) == (memory[0].argument_size_in_bytes, memory[0].temp_size_in_bytes)


@pytest.mark.slow
def test_prefill_is_the_one_that_runs(found, config, monkeypatch):
    prefill, seen = Decoder.prefill, []

    def recording(decoder, prefix, batch):
        seen.append((batch.token_ids.shape, decoder.lower_prefill(batch).compile().memory_analysis()))
        return prefill(decoder, prefix, batch)

    monkeypatch.setattr(Decoder, "prefill", recording)
    run = RunConfig(dir=config.run.dir.with_name("sampled"), stages=("sample",))
    Run(dataclasses.replace(config, run=run)).go()
    program, planned = found["sample", "prefill"]
    memory = [memory for shape, memory in seen if shape == (program.rows, program.tokens)]
    assert memory, [shape for shape, _ in seen]
    arguments = planned.arguments - program.held_by_others
    assert (arguments, planned.temporaries) == (memory[0].argument_size_in_bytes, memory[0].temp_size_in_bytes)


needs_linux = pytest.mark.skipif(not LINUX_COUNTS_PEAKS, reason="needs the peaks that Linux counts")


@pytest.mark.slow
@needs_linux
def test_memory_is_what_a_process_takes(config):
    """Of programs that take some hundred megabytes, so that nothing else in the process counts."""
    vision = ClipConfig(hidden_size=128, intermediate_size=512, num_layers=4, num_heads=4, image_size=112)
    text = LlamaConfig(hidden_size=256, intermediate_size=704, num_layers=4, num_heads=4, num_kv_heads=4, head_dim=64)
    model = LlavaConfig(vision=vision, text=text)
    sampling = dataclasses.replace(config.sample.sampling, num_candidates=5, batch_size=32, max_new_tokens=128)
    large = dataclasses.replace(
        config,
        sample=dataclasses.replace(config.sample, sampling=sampling),
        train_reward=dataclasses.replace(config.train_reward, batch_size=8, max_length=512),
        run=dataclasses.replace(config.run, stages=("train_reward", "sample", "sft")),
        sft=dataclasses.replace(config.sft, batch_size=16, max_length=512),
    )
    sizes = Sizes(prompt=256, response=128, branch_row=512, sentences=8, example=512)
    found = planned_and_taken(large, model, sizes)
    assert [name for name, _, _ in found] == ["update", "prefill", "decode", "update"]
    for name, planned, taken in found:
        assert taken == pytest.approx(planned, rel=0.1), name


@pytest.mark.slow
@needs_linux
def test_memory_of_scoring_is_what_a_process_takes(config):
    """Of a hundred million weights, compared with which the rest is small.

    Of a small model, with many rows, it takes 30% more than planned. Some of that are buffers of the library by
    which XLA multiplies on a CPU, and which it does not count.
    """
    vision = ClipConfig(hidden_size=384, intermediate_size=1536, num_layers=8, num_heads=6)
    text = LlamaConfig(
        vocab_size=32064,
        hidden_size=640,
        intermediate_size=1728,
        num_layers=10,
        num_heads=10,
        num_kv_heads=10,
        head_dim=64,
    )
    model = LlavaConfig(vision=vision, text=text)
    large = dataclasses.replace(
        config,
        run=dataclasses.replace(config.run, stages=("score",)),
        reward_model=dataclasses.replace(config.reward_model, batch_size=2, max_length=1280),
    )
    sizes = dataclasses.replace(SIZES, branch_row=1280, sentences=30)
    ((_, planned, taken),) = planned_and_taken(large, model, sizes)
    assert taken == pytest.approx(planned, rel=0.1)


def an_estimate(stage, name, rows, seconds, peak=GIB):
    return Estimate(stage, name, rows, GIB, 0, peak, 15 * GIB, 1.0, 1.0, {}, 0.0, 0.0, 0.0, 0.0, seconds)


TEMPORARIES = (
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (28.75G) exceeds "
    "available HBM (15.75G)."
)
EVERYTHING = """RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 21.50G of 15.75G hbm. Exceeded by 5.75G.
Total hbm usage >= 22.25G:
    reserved 256.00M
    program 6.50G
    arguments 15.00G"""


@pytest.mark.parametrize(("message", "sizes"), [(TEMPORARIES, (3, 28.75, 31.75)), (EVERYTHING, (15, 6.5, 21.5))])
def test_a_compiler_that_refuses_tells_how_much_is_missing(config, message, sizes):
    class Refused:
        def compile(self):
            raise jax.errors.JaxRuntimeError(message)

    program = Program("sft", "update", Refused, 0.0, 3 * GIB, 4, 64)
    found = estimate(program, CHIP, 4)
    assert (found.arguments, found.temporaries, found.peak) == tuple(size * GIB for size in sizes)
    assert not found.fits


def test_other_failures_are_not_hidden(config):
    class Broken:
        def compile(self):
            raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        estimate(Program("sft", "update", Broken, 0.0, GIB, 4, 64), CHIP, 4)


def test_recipe(config):
    estimates = [
        an_estimate("train_reward", "update", 2, 7.2),
        an_estimate("sample", "prefill", 4, 1.8),
        an_estimate("sample", "decode", 12, 5.4),
        an_estimate("score", "reward model", 2, 0.72),
        an_estimate("sft", "update", 4, 14.4),
    ]
    times = recipe(estimates, config, Work(images=1000, descriptions=50, answer=16), 8)
    assert [(time.stage, time.calls) for time in times] == [
        ("train_reward", 75),  # 50 descriptions x 3 epochs / 2
        ("sample", 250),
        ("score", 500),
        ("sft", 500),  # 1000 targets x 2 epochs / 4
    ]
    # 250 prompts at 1.8 s, and as often half of the 5.4 s that 32 tokens take, of which nine tenths are useful.
    assert [time.hours for time in times] == pytest.approx([0.15, 0.125 + 0.1875 / 0.9, 0.1, 2.0])
    assert [time.device_hours for time in times] == pytest.approx([1.2, 1 + 1.5 / 0.9, 0.8, 16.0])
    longer = recipe(estimates, config, Work(images=1000, descriptions=50), 8)[1]
    assert longer.hours == pytest.approx(0.5)  # none is longer than the config lets it be


@pytest.mark.parametrize("limit", [0, 10, 1000, 5000])
def test_of_a_recipe_with_a_limit_that_many_images_are_sampled(config, limit):
    """And judged, and fine-tuned on; not where the stage has data of another kind."""
    estimates = [
        an_estimate("train_reward", "update", 2, 3.6),
        an_estimate("sample", "prefill", 4, 0.9),
        an_estimate("sample", "decode", 12, 2.7),
        an_estimate("score", "reward model", 2, 0.36),
        an_estimate("sft", "update", 4, 7.2),
    ]

    def times(config, images):
        return recipe(estimates, config, Work(images=images, descriptions=50), 8)

    limited = dataclasses.replace(config, sample=dataclasses.replace(config.sample, limit=limit))
    images = 10 if limit == 10 else 1000
    assert times(limited, 1000)[:-1] == times(config, images)[:-1]
    assert times(limited, 1000)[-1] == times(config, 1000)[-1]
    on_its_targets = dataclasses.replace(limited, sft=dataclasses.replace(limited.sft, data=None))
    assert times(on_its_targets, 1000) == times(config, images)


def test_the_detector_looks_at_each_image_once(config):
    """And a second one once more; streams that ask none, and stages that judge nothing, cost nothing."""
    work = Work(images=1000)

    def flops(config, streams, *stages):
        run, score = (dataclasses.replace(x, **y) for x, y in (
            (config.run, {"stages": stages}), (config.score, {"streams": streams}),
        ))  # fmt: skip
        return detector_flops(dataclasses.replace(config, run=run, score=score), work)

    both = dataclasses.replace(
        config, detection=dataclasses.replace(config.detection, second=SecondDetectorConfig(model="here"))
    )
    assert flops(config, ("detector", "reward_model"), "sample", "score") == 1000 * DETECTOR_FLOPS
    assert flops(both, ("detector",), "ppo") == 2000 * DETECTOR_FLOPS
    assert flops(config, ("reward_model",), "sample", "score") == flops(config, ("detector",), "sample", "sft") == 0
    planned = Plan("v5e:2x2", 4, "a model", "jax 1", (), (), work, flops(config, ("detector",), "score"))
    assert planned.table().splitlines()[-1].startswith("and the detector, on other devices: 0.7 PFLOP, 0.00 h")


def test_table_says_what_is_missing(config):
    estimates = (
        an_estimate("sample", "prefill", 1, 0.1),
        an_estimate("sample", "decode", 12, 2.0),
        an_estimate("sft", "update", 4, 7.0, peak=19 * GIB + GIB // 4),
    )
    planned = Plan(
        "v5e:2x2", 4, "a model", "jax 1, libtpu 2", estimates, tuple(recipe(estimates, config, Work(), 4)), Work()
    )
    assert not planned.fits
    first, second = planned.table().splitlines()[3:5]
    assert first.split()[:3] == ["sample,", "decode", "12"]
    assert " fits " in first
    assert " 4.2 GiB short " in second
    assert "device-hours" not in planned.table()


@pytest.mark.slow
def test_whole_plan(config):
    planned = plan(config, Here("v5e:1x1", CHIP, 1), Work())
    assert planned.fits
    assert planned.model == str(config.model.path)
    assert [stage.stage for stage in planned.stages] == list(config.run.stages)
    assert "device-hours" in planned.table().splitlines()[-1]


def test_command_refuses_what_it_does_not_know(tmp_path):
    command = [sys.executable, "-m", "vigor_jax.plan", "--config", "configs/vigor_all_7b.yaml", "--topology", "v9:4x4"]
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: --topology: expected ")
    assert len(refused.stderr.splitlines()) == 1
