"""The verifier in a run: scoring, what its verdicts depend on, what is refused before anything is computed; plans."""

import dataclasses
import logging
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from tests.rewards import clip_world
from tests.tiny_llava import Tiny
from tests.tiny_llava import build_checkpoint as build_llava
from vigor_jax.config import RunConfig, TrainConfig, with_pinned_models
from vigor_jax.data.records import store
from vigor_jax.errors import InputError
from vigor_jax.hf.load import open_checkpoint
from vigor_jax.hf.options import ModelConfig
from vigor_jax.models.llava import LlavaConfig
from vigor_jax.parallel.config import MeshConfig
from vigor_jax.plan.hardware import GIB
from vigor_jax.plan.planning import programs
from vigor_jax.plan.recipe import recipe
from vigor_jax.records import Candidate, Verdict
from vigor_jax.rewards.clip_baselines import make_baselines
from vigor_jax.rewards.detector_config import DetectionConfig
from vigor_jax.rewards.reward_model_config import RewardModelConfig
from vigor_jax.rewards.verifier import ClipVerifier
from vigor_jax.rewards.verifier_config import ClipStreamConfig
from vigor_jax.stages.programs import Sizes, Work
from vigor_jax.stages.sample_config import SampleConfig
from vigor_jax.stages.score import ScoreStage
from vigor_jax.stages.score_config import ScoreConfig
from vigor_jax.stages.select import SelectStage
from vigor_jax.stages.select_config import SelectConfig
from vigor_jax.stages.stage import RunContext


class Told:
    """A run that only listens."""

    def begin(self, result: str) -> None:
        pass

    def mark(self, result: str) -> str:
        return f"settings of {result}"

    def make_again(self, result: str, what: str) -> None:
        raise InputError(f"{result}: {what}")

    def barrier(self, name: str) -> None:
        pass


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    root = clip_world.make_world(tmp_path_factory.mktemp("world"))
    build_llava(root / "policy", Tiny())
    verifier = ClipVerifier(clip_world.checkpoint(root), clip_world.config(root), clip_world.mesh())
    found = [each.cosine for texts in verifier.score(clip_world.items(root)) for own in texts for each in own]
    middle = sorted(found)[len(found) // 2]
    make_baselines([[(cosine, cosine < middle) for cosine in found]], verifier.made_of).write(root / "baselines.json")
    return root


@pytest.fixture
def context(world, tmp_path) -> RunContext:
    """Of a run whose candidates are in two parts."""
    folder, items = tmp_path / "run", clip_world.items(world)
    for part, own in enumerate((items[:3], items[3:])):
        found = [
            Candidate(item.image, "?", number, text, (1,), -1.0, "stop")
            for item in own
            for number, text in enumerate(item.texts)
        ]
        store.write_part(folder / "candidates", part, 2, found, Candidate)
    policy = open_checkpoint(world / "policy")
    return RunContext(
        folder, str(folder), ModelConfig(world / "policy", dtype="float32"), policy, MeshConfig(),
        MeshConfig(data=-1, fsdp=1),
    )  # fmt: skip


def clip_config(world, **changes) -> ClipStreamConfig:
    given = {"baselines": world / "baselines.json", "margin": 0.25, "margin_unit": "std"}
    return clip_world.config(world, **given | changes)


def stage(world, **changes) -> ScoreStage:
    images = str(world / "images")
    config = ScoreConfig(("clip",))
    return ScoreStage(config, DetectionConfig(), RewardModelConfig(), images, clip_config(world, **changes))


def test_it_scores_and_selection_reads_it(world, context, caplog):
    judging = stage(world)
    (result,) = judging.results(context)
    assert (result.name, result.after) == ("score.clip", ("sample",))
    with caplog.at_level(logging.INFO):
        judging.run(context, Told())
    assert f"clip: verifier {world / 'clip'}; the policy's vision tower has other weights than" in caplog.text
    assert re.search(r"clip: 14 words, \d+% of them rewarded, \d+% punished", caplog.text)
    verdicts = list(store.read_parts(context.dir / "verdicts" / "clip", Verdict))
    assert len(verdicts) == sum(len(item.texts) for item in clip_world.items(world))
    assert {signal.negative > 0 for verdict in verdicts for signal in verdict.signals} == {True, False}
    SelectStage(SelectConfig(refine="drop"), judging.streams).run(context, Told())
    again = stage(world)
    again.run(context, Told())  # there is nothing to do
    assert list(store.read_parts(context.dir / "verdicts" / "clip", Verdict)) == verdicts


def test_settings_name_all_that_verdicts_depend_on(world, context, tmp_path):
    def settings(**changes):
        return dict(stage(world, **changes).results(context)[0].settings)

    first = settings()
    assert settings(batch_size=5) == first
    assert settings(scale=100.0) == first | {"clip.scale": 100.0}
    shutil.copytree(world / "clip", tmp_path / "copy")
    assert settings(model=tmp_path / "copy") == first
    (tmp_path / "b.json").write_text((world / "baselines.json").read_text().replace('"std": 0', '"std": 1', 1))
    assert {key for key, value in settings(baselines=tmp_path / "b.json").items() if value != first[key]} == {
        "clip.baselines"
    }


def refused(world, context, message, **changes):
    (result,) = stage(world, **changes).results(context)
    with pytest.raises(InputError, match=message) as error:
        dict(result.settings)
    assert "\n" not in str(error.value)


def test_it_is_refused_before_anything_is_sampled(world, context, tmp_path):
    """The settings of all results that are to be made are asked for when a run begins."""
    refused(world, context, "clip.model is not given", model=None)
    refused(world, context, "clip.baselines is not given", baselines=None)
    refused(world, context, "clip.model: .*/absent is no directory", model=tmp_path / "absent")
    refused(world, context, "clip.model: .* expected a whole CLIP .* got 'llava'", model=world / "policy")
    refused(world, context, "clip.baselines: .* another clip.per", per="sentence")
    refused(world, context, "clip.baselines: .*another list of words", entities=None)
    refused(world, context, r"clip\.entities: expected coco, lvis or a file .*no\.txt", entities=tmp_path / "no.txt")


def train_config(world, **changes) -> TrainConfig:
    given = {
        "run": RunConfig(dir=world / "run", stages=("score",)),
        "model": ModelConfig(path=world / "policy", dtype="float32"),
        "sample": SampleConfig(images=str(world / "images")),
        "score": ScoreConfig(streams=("clip",)),
        "clip": clip_config(world),
        "reward_model": RewardModelConfig(batch_size=2, max_length=128),
    }
    return TrainConfig(**given | changes)


SIZES = Sizes(prompt=64, response=32, branch_row=128, sentences=6, example=128)


def test_plans_have_its_program(world):
    both = train_config(world, score=ScoreConfig(streams=("reward_model", "clip")))
    found = list(programs(both, LlavaConfig(), jax.devices()[:1], SIZES))
    assert [(each.stage, each.name, each.rows) for each in found] == [
        ("score", "reward model", 2), ("score", "verifier", 2)
    ]  # fmt: skip
    (alone,) = programs(train_config(world), LlavaConfig(), jax.devices()[:1], SIZES)
    checkpoint = clip_world.checkpoint(world)
    assert alone.held == 4 * sum(int(jnp.prod(jnp.array(each.shape))) for each in checkpoint.tensors.values())
    assert alone.flops == checkpoint.config.vision.forward_flops(3, images=2)
    assert alone.lower().compile().cost_analysis()["flops"] > 0.8 * alone.flops
    # Without the checkpoint, of ViT-L/14 at 336 pixels.
    absent = train_config(world, clip=ClipStreamConfig(model=world / "absent"))
    (large,) = programs(absent, LlavaConfig(), jax.devices()[:1], SIZES)
    assert (large.rows, large.tokens) == (32, 577)
    assert 1.5 < large.held / GIB < 1.7  # 428 million weights in float32


def test_the_time_of_a_stage_is_that_of_all_its_programs(world):
    both = train_config(world, score=ScoreConfig(streams=("reward_model", "clip")))

    @dataclasses.dataclass
    class Estimate:
        name: str
        rows: int
        seconds: float
        stage: str = "score"

    estimates = [Estimate("reward model", 2, 3.0), Estimate("verifier", 4, 0.5)]
    (time,) = recipe(estimates, both, Work(images=20), 1)
    assert (time.calls, time.hours * 3600) == (10, pytest.approx(10 * 3.0 + 5 * 0.5))


def test_a_name_on_the_hub_is_pinned_where_the_verifier_judges(world, monkeypatch):
    monkeypatch.setattr("vigor_jax.config.pinned", lambda name: f"{name}@commit" if name == "org/clip" else name)
    named = train_config(world, clip=ClipStreamConfig(model="org/clip"))
    assert with_pinned_models(named).clip.model == "org/clip@commit"
    unread = dataclasses.replace(named, score=ScoreConfig(streams=("detector",)))
    assert with_pinned_models(unread).clip.model == "org/clip"
