"""What a fingerprint has of a config, and how two are compared."""

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigor_jax import fingerprint
from vigor_jax.config import RunConfig, TrainConfig
from vigor_jax.hf.options import ModelConfig

# Every option of a run that changes no result. Who adds one answers for it: a run continues with another value.
NEUTRAL = """
train_reward: skip_bad accumulate bucket remat save_every keep log_every
sample: sampling.batch_size sampling.prompt_bucket
detection: backend in_flight timeout connect_timeout phrases.download
reward_model: batch_size max_length bucket
clip_attributes: batch_size
clip: batch_size
sft: skip_bad accumulate pack bucket remat loss_chunk save_every keep log_every
pair: sampling.batch_size sampling.prompt_bucket
train_preference_reward: skip_bad accumulate bucket remat save_every keep log_every
preference_reward: batch_size max_length bucket
dpo: skip_bad accumulate bucket remat save_every keep log_every
ppo: skip_bad accumulate bucket remat save_every keep log_every sampling.batch_size sampling.prompt_bucket
evaluate: captions.batch_size captions.prompt_bucket answers.batch_size answers.prompt_bucket
"""
# Every option that only says where something is.
PLACES = """
train_reward: annotations images
sample: images
detection: addresses model python token_file tls_ca tls_cert tls_key
clip_attributes: model
clip: model baselines entities
sft: data images
train_preference_reward: data images captions
preference_reward: captions
dpo: data images
ppo: data images
"""


@dataclasses.dataclass(frozen=True)
class Inner:
    depth: int = 1
    folder: Path | None = None
    workers: int = fingerprint.neutral(4)


@dataclasses.dataclass(frozen=True)
class Outer:
    name: str = "a"
    many: tuple[int, ...] = (1, 2)
    inner: Inner = dataclasses.field(default_factory=Inner)
    images: str = fingerprint.place("here")
    workers: int = 8  # of the name of a neutral one elsewhere, and not neutral itself


def test_a_fingerprint_is_flat_json():
    config = Outer(inner=Inner(folder=Path("x")))
    wanted = {"s.name": "a", "s.many": [1, 2], "s.inner.depth": 1, "s.inner.folder": "x", "s.workers": 8}
    assert fingerprint.of(config, "s") == wanted
    assert fingerprint.of(config, "s", with_neutral=True) == wanted | {"s.inner.workers": 4}
    assert list(fingerprint.of(Inner())) == ["depth", "folder"]


@given(st.text(), st.lists(st.integers()), st.integers())
def test_a_fingerprint_survives_a_file(name, many, depth):
    settings = fingerprint.of(Outer(name, tuple(many), Inner(depth)), "s")
    assert json.loads(json.dumps(settings)) == settings


def flags(metadata: str) -> dict[str, set[str]]:
    """Section → options whose metadata have a key."""

    def found(config: object, section: str = "") -> set[str]:
        names = set()
        for field in dataclasses.fields(config):
            if metadata in field.metadata:
                names.add(section + field.name)
            elif dataclasses.is_dataclass(value := getattr(config, field.name)):
                names |= found(value, f"{section}{field.name}.")
        return names

    config = TrainConfig(RunConfig(Path()), ModelConfig(Path()))
    every = {field.name: found(getattr(config, field.name)) for field in dataclasses.fields(TrainConfig)}
    return {name: names for name, names in every.items() if names}


def listed(lines: str) -> dict[str, set[str]]:
    return {line.split(":")[0]: set(line.split(":")[1].split()) for line in lines.strip().splitlines()}


def test_options_that_change_no_result_are_these():
    neutral, places = listed(NEUTRAL), listed(PLACES)
    both = {name: neutral.get(name, set()) | places.get(name, set()) for name in neutral | places}
    assert flags("affects_results") == both
    assert flags("differs_on_hosts") == places


@pytest.mark.parametrize(
    ("before", "now", "wanted"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": 1}, {"a": 2}, ["a 1, which is now 2"]),
        ({"a": 1}, {}, ["a 1, which is now null"]),
        ({}, {"a": False}, ["a null, which is now false"]),
        ({"a": None}, {}, ["a null, which is now null"]),  # a key that was and is no more
        ({"a": {"b": [1]}, "c": 1}, {"c": 2, "a": {"b": [2], "d": 3}},
         ["c 1, which is now 2", "a.b [1], which is now [2]", "a.d null, which is now 3"]),
        ({"a": "x" * 60}, {"a": "y"}, [f'a "{"x" * 36}..., which is now "y"']),
    ],
)  # fmt: skip
def test_differences(before, now, wanted):
    assert list(map(str, fingerprint.differences(before, now))) == wanted


def test_a_digest_does_not_depend_on_the_order_of_keys():
    assert fingerprint.digest({"a": 1, "b": [2]}) == fingerprint.digest({"b": [2], "a": 1})
    assert fingerprint.digest({"a": 1}) != fingerprint.digest({"a": 2}) != fingerprint.digest({"a": "2"})


@dataclasses.dataclass(frozen=True)
class WithOptional:
    rate: float = 0.1
    adapter: Inner | None = fingerprint.optional()
    boxes: str = fingerprint.optional("none")


def test_a_section_that_is_left_out_leaves_nothing():
    """So results of versions without it stay valid."""
    assert fingerprint.of(WithOptional(), "s") == {"s.rate": 0.1}
    given = {"s.rate": 0.1, "s.adapter.depth": 1, "s.adapter.folder": None}
    assert fingerprint.of(WithOptional(adapter=Inner()), "s") == given
    assert fingerprint.of(WithOptional(adapter=Inner()), "s", with_neutral=True) == given | {"s.adapter.workers": 4}
    assert fingerprint.of(WithOptional(boxes="text"), "s") == {"s.rate": 0.1, "s.boxes": "text"}
    sft = fingerprint.of(TrainConfig(RunConfig(Path()), ModelConfig(Path())).sft, "sft")
    assert not [key for key in sft if "lora" in key]
