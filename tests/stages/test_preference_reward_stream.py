"""The reward model of preferences in a run: what its verdicts depend on, refusals, selection, PPO, plans."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.rewards.test_preference_reward import CAPTIONS, TEXTS, items_in, make_folder, make_stream
from tests.rewards.test_preference_reward import rewards as rewards_of
from tests.stages.test_clip_stream import Told
from tests.stages.test_ppo import iterations
from vigor_jax import train
from vigor_jax.config import RunConfig, TrainConfig, with_pinned_models
from vigor_jax.data.records import store
from vigor_jax.errors import InputError
from vigor_jax.hf.load import open_checkpoint
from vigor_jax.hf.options import ModelConfig
from vigor_jax.hf.reward_head import RewardHead, write_head
from vigor_jax.models.llava import LlavaConfig
from vigor_jax.parallel.config import MeshConfig
from vigor_jax.plan.planning import programs
from vigor_jax.records import Candidate, Selection, Verdict
from vigor_jax.rewards.detector_config import DetectionConfig
from vigor_jax.rewards.preference_reward_config import PreferenceRewardStreamConfig
from vigor_jax.rewards.reward_model_config import RewardModelConfig
from vigor_jax.stages.preference_reward_config import PreferenceRewardConfig
from vigor_jax.stages.programs import Sizes
from vigor_jax.stages.sample_config import SampleConfig
from vigor_jax.stages.score import ScoreStage
from vigor_jax.stages.score_config import ScoreConfig
from vigor_jax.stages.select import SelectStage
from vigor_jax.stages.select_config import SelectConfig
from vigor_jax.stages.stage import PREFERENCE_REWARD_MODEL, RunContext


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return make_folder(tmp_path_factory.mktemp("world"))


@pytest.fixture
def context(root, tmp_path) -> RunContext:
    folder = tmp_path / "run"
    found = [
        Candidate(item.image, item.prompt, number, text, (1,), -1.0, "stop")
        for item in items_in(root)
        for number, text in enumerate(item.texts)
        if text
    ]
    store.write_part(folder / "candidates", 0, 1, found, Candidate)
    policy = open_checkpoint(root / "model")
    return RunContext(
        folder, str(folder), ModelConfig(root / "model", dtype="float32"), policy, MeshConfig(),
        MeshConfig(data=-1, fsdp=1),
    )  # fmt: skip


def stream_config(root, **changes) -> PreferenceRewardStreamConfig:
    given = {"model": root / "model", "question": "Good? {captions}", "batch_size": 2, "bucket": 64, "template": "v1"}
    return PreferenceRewardStreamConfig(**given | {"captions": root / "captions.json"} | changes)


def stage(root, **changes) -> ScoreStage:
    own = stream_config(root, **changes)
    judges = (DetectionConfig(), RewardModelConfig(), str(root))
    return ScoreStage(ScoreConfig(("preference_reward",)), *judges, preference_reward=own)


def test_it_scores_and_selection_takes_the_highest_reward(root, context):
    judging = stage(root)
    (result,) = judging.results(context)
    assert (result.name, result.after) == ("score.preference_reward", ("sample",))
    judging.run(context, Told())
    verdicts = list(store.read_parts(context.dir / "verdicts" / "preference_reward", Verdict))
    alone = dataclasses.replace(stream_config(root), bucket=128)
    expected = rewards_of(make_stream(root, alone).judge(items_in(root)))
    texts = [text for own in TEXTS for text in own]
    flat = [reward for own in expected for reward in own]
    kept = [reward for reward, text in zip(flat, texts, strict=True) if text]
    assert [v.signals[0].positive - v.signals[0].negative for v in verdicts] == pytest.approx(kept, abs=1e-4)
    SelectStage(SelectConfig(refine="none"), judging.streams).run(context, Told())
    selections = {each.image: each.candidate for each in store.read_parts(context.dir / "selections", Selection)}
    by_image: dict[str, list[float]] = {}
    for verdict in verdicts:
        by_image.setdefault(verdict.image, []).append(verdict.signals[0].score)
    assert {image: int(np.argmax(scores)) for image, scores in by_image.items()} == selections


@pytest.mark.main
def test_the_runs_own_model_comes_after_its_training(root, context):
    own = stage(root, model=None)
    (result,) = own.results(context)
    assert result.after == ("sample", "train_preference_reward")
    assert own.trained_by == ("train_preference_reward",)
    assert stage(root).trained_by == ()
    with pytest.raises(
        InputError, match=r"preference_reward\.model is not given, and this run has trained none"
    ) as error:
        own.run(context, Told())
    assert "\n" not in str(error.value)
    shutil.copytree(root / "model", context.dir / PREFERENCE_REWARD_MODEL)
    own.run(context, Told())


def settings(root, context, **changes):
    return dict(stage(root, **changes).results(context)[0].settings)


def test_settings_name_all_that_verdicts_depend_on(root, context, tmp_path):
    first = settings(root, context)
    assert settings(root, context, batch_size=5) == first
    shutil.copytree(root / "model", tmp_path / "copy")
    shutil.copy(root / "captions.json", tmp_path / "c.json")
    assert settings(root, context, model=tmp_path / "copy", captions=tmp_path / "c.json") == first

    def changed(**changes):
        return {key for key, value in settings(root, context, **changes).items() if value != first[key]}

    assert changed(question="Is it? {captions}") == {"preference_reward.question"}
    (tmp_path / "c.json").write_text(json.dumps(CAPTIONS | {"0.png": ["Other."]}))
    assert changed(captions=tmp_path / "c.json") == {"preference_reward.captions"}
    write_head(RewardHead(np.ones(32, np.float32), 0.0), tmp_path / "copy" / "reward_head")
    assert changed(model=tmp_path / "copy") == {"preference_reward.model"}


def refused(root, context, message, **changes):
    with pytest.raises(InputError, match=message) as error:
        settings(root, context, **changes)
    assert "\n" not in str(error.value)


def test_refused_before_anything_is_sampled(root, context, tmp_path):
    refused(root, context, r"preference_reward\.model: .*absent is no directory; give", model=tmp_path / "absent")
    refused(root, context, r"preference_reward\.captions: there is no file .*c\.json", captions=tmp_path / "c.json")
    bare = shutil.copytree(root / "model", tmp_path / "bare")
    (bare / "reward_head").unlink()
    refused(
        root, context, r"preference_reward\.model: .*bare has no file reward_head, so it is no reward model", model=bare
    )
    write_head(RewardHead(np.ones(16, np.float32), 0.0), bare / "reward_head")
    refused(root, context, r"expected weight \[1, 32\] and bias \[1\], .* got weight \[1, 16\]", model=bare)
    trained = shutil.copytree(root / "model", tmp_path / "trained")

    def was(**training):
        (trained / "vigor_jax.json").write_text(json.dumps({"training": training}))

    was(question="Good? {captions}", template="v1", data={"captions": "x"})
    assert settings(root, context, model=trained)
    was(question="", template="v1", data={"captions": "x"})
    refused(root, context, r"preference_reward\.question is 'Good\? \{captions\}', and .*trained has ''", model=trained)
    was(question="Good? {captions}", template="v1", data={})
    refused(root, context, "trained was trained without captions; leave them out", model=trained)
    was(question="Good? {captions}", template="v1", data={"captions": "x"})
    refused(root, context, "trained was trained with captions; give a file", model=trained, captions=None)


def train_config(root, **changes) -> TrainConfig:
    given = {
        "run": RunConfig(dir=root / "run", stages=("score",)),
        "model": ModelConfig(path=root / "model", dtype="float32"),
        "sample": SampleConfig(images=str(root)),
        "score": ScoreConfig(streams=("preference_reward",)),
        "preference_reward": stream_config(root, max_length=128),
    }
    return TrainConfig(**given | changes)


SIZES = Sizes(prompt=64, response=32, branch_row=128, sentences=6, example=128)


@pytest.mark.main
def test_plans_have_its_programs(root):
    (judging,) = programs(train_config(root), LlavaConfig(), jax.devices()[:1], SIZES)
    assert (judging.stage, judging.name, judging.rows, judging.tokens) == ("score", "preference reward model", 2, 128)
    assert judging.lower().compile().cost_analysis()["flops"] > 0.5 * judging.flops
    training = PreferenceRewardConfig(batch_size=4, max_length=128, remat="none")
    run = RunConfig(dir=root / "run", stages=("train_preference_reward",))
    tiny = open_checkpoint(root / "model").config
    config = train_config(root, run=run, train_preference_reward=training)
    (update,) = programs(config, tiny, jax.devices()[:1], SIZES)
    assert (update.stage, update.name, update.rows) == ("train_preference_reward", "update", 4)
    # XLA counts the body of the loop over layers once, and there are two.
    assert update.lower().compile().cost_analysis()["flops"] > 0.25 * update.flops


def test_a_name_on_the_hub_is_pinned_where_it_judges(root, monkeypatch):
    monkeypatch.setattr("vigor_jax.config.pinned", lambda name: f"{name}@c" if str(name).startswith("org/") else name)
    named = train_config(root, preference_reward=stream_config(root, model="org/rm", base="org/base"))
    pinned = with_pinned_models(named).preference_reward
    assert (pinned.model, pinned.base) == ("org/rm@c", "org/base@c")
    unread = dataclasses.replace(named, score=ScoreConfig(streams=("detector",)))
    assert with_pinned_models(unread).preference_reward.model == "org/rm"


def test_training_and_judging_ask_the_same(root):
    config = train_config(
        root,
        run=RunConfig(dir=root / "run", stages=("train_preference_reward", "score")),
        preference_reward=stream_config(root, model=None),
    )
    with pytest.raises(InputError, match=r"preference_reward\.question is .*, and train_preference_reward has ''"):
        list(programs(config, LlavaConfig(), jax.devices()[:1], SIZES))


@pytest.mark.slow
@pytest.mark.main
def test_ppo_is_paid_rewards_at_the_end(root, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for name in CAPTIONS:
        shutil.copy(root / name, images / name)
    config = f"""
run: {{dir: {tmp_path / "run"}, stages: [ppo, export]}}
model: {{path: {root / "model"}, dtype: float32}}
score: {{streams: [preference_reward]}}
preference_reward: {{model: {root / "model"}, captions: {root / "captions.json"}, question: "Good? {{captions}}"}}
ppo:
  images: {images}
  prompts: ["Describe the image."]
  batch_size: 4
  minibatch: 4
  ppo_epochs: 1
  learning_rate: 3.0e-4
  bucket: 32
  kl_target: 0
  lora: {{rank: 4, alpha: 8}}
  sampling: {{temperature: 1.0, num_candidates: 1, max_new_tokens: 12, batch_size: 4, prompt_bucket: 8}}
"""
    (tmp_path / "c.yaml").write_text(config)
    train.main(["--config", str(tmp_path / "c.yaml")])
    (rollouts,) = iterations(tmp_path / "run")
    assert len(rollouts) == 4
    for rollout in rollouts:
        (verdict,) = rollout.verdicts
        (found,) = verdict.signals
        assert not any(rollout.rewards[:-1])
        assert rollout.rewards[-1] == pytest.approx(found.positive - found.negative, abs=1e-5)
    assert len({rollout.rewards[-1] for rollout in rollouts}) > 1
