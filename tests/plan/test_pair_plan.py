"""The plan of the stage `pair`: the sampler behind the longest text, next to the streams on the devices."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from tests.inference.test_tree_attention import CONFIG
from vigor_jax.config import RunConfig, TrainConfig
from vigor_jax.hf.options import ModelConfig
from vigor_jax.inference.sampling_config import SamplingConfig
from vigor_jax.models.vlm import abstract_model
from vigor_jax.parallel.config import MeshConfig
from vigor_jax.pipeline.table import make_stages
from vigor_jax.plan.planning import programs
from vigor_jax.rewards.reward_model_config import RewardModelConfig
from vigor_jax.stages.pair_config import PairConfig
from vigor_jax.stages.programs import Sizes, Work
from vigor_jax.stages.score_config import ScoreConfig

SAMPLING = SamplingConfig(max_new_tokens=16, num_candidates=3, batch_size=4, prompt_bucket=32)
SIZES = Sizes(prompt=32, response=64, branch_row=128, sentences=6, example=128)


def config(streams, **settings) -> TrainConfig:
    return TrainConfig(
        RunConfig(Path("run"), ("pair",)),
        ModelConfig(Path("model"), dtype="float32"),
        inference_mesh=MeshConfig(),
        score=ScoreConfig(streams, reward_model=Path("judge")),
        reward_model=RewardModelConfig(batch_size=2),
        pair=PairConfig(**{"kind": "sentences", "sampling": SAMPLING, "max_sentences": 3} | settings),
    )


def found(whole):
    return list(programs(whole, CONFIG, jax.devices()[:1], SIZES))


@pytest.mark.parametrize(("sentences", "length"), [(1, 32), (3, 64), (4, 96), (5, 96)])
def test_the_prefix_is_the_longest_text(sentences, length):
    """Rounded up to the bucket."""
    made = found(config(("detector",), max_sentences=sentences))
    assert [(each.name, each.rows, each.tokens) for each in made] == [("prefill", 1, length), ("decode", 12, 16)]


def test_no_prefix_is_beyond_the_positions():
    made = found(config(("detector",), max_sentences=1000))
    positions = CONFIG.text.max_position_embeddings
    assert positions - 16 <= made[0].tokens < positions - 16 + 32


def test_the_streams_stay_on_the_devices():
    weights = sum(
        leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract_model(CONFIG, dtype=jnp.float32))
    )
    made = {each.name: each for each in found(config(("detector", "reward_model")))}
    assert made.keys() == {"prefill", "decode", "reward model"}
    for each in made.values():  # sampling has caches, too
        assert each.held + each.held_by_others >= 2 * weights, each.name
    assert made["reward model"].held + made["reward model"].held_by_others == 2 * weights


def test_responses_need_no_device():
    whole = config(("detector", "reward_model"), kind="responses")
    assert found(whole) == []


@dataclasses.dataclass(frozen=True)
class Cost:
    name: str
    rows: int
    seconds: float


def test_what_it_costs():
    """A step for each sentence of an answer and one more, at most `max_sentences`."""
    costs = [Cost("prefill", 2, 1.0), Cost("decode", 12, 8.0), Cost("reward model", 4, 3.0)]
    for most, steps in ((20, 7), (3, 3)):
        stage = make_stages(config(("reward_model",), max_sentences=most))["pair"]
        calls, seconds = stage.cost(Work(images=8, answer=150), costs)
        assert (calls, seconds) == (steps * 4, steps * (4 * 1.0 + 8 / 4 * 8.0 + 2 * 3.0))
