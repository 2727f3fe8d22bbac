"""What PPO refuses on its way, through the command or the stage: one line each, and nothing is learned from it."""

import json
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.test_lora import random_adapter
from tests.stages.ppo_world import Letters, make_world
from tests.stages.run_ppo import make_config
from tests.stages.sft_world import TINY, spawn_python
from tests.stages.test_ppo import run
from tests.tiny_llava import build_checkpoint
from vigor_jax import train
from vigor_jax.errors import InputError
from vigor_jax.hf.export import export_checkpoint
from vigor_jax.hf.load import open_checkpoint
from vigor_jax.inference.policy import Policy
from vigor_jax.inference.sampler import Completion, Request
from vigor_jax.models.lora import add_lora
from vigor_jax.models.lora_config import LoraConfig
from vigor_jax.models.vlm import abstract_model
from vigor_jax.records import ScoreItem, Signal, Span, Verdict
from vigor_jax.stages.ppo import _check_finite
from vigor_jax.stages.ppo_questions import Question
from vigor_jax.stages.ppo_rollout import TokenArrays
from vigor_jax.training.loop import TrainingDiverged

ROOT = Path(__file__).resolve().parents[2]
EOS = 2


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return make_world(tmp_path_factory.mktemp("refusals") / "w", images=8)


def arguments(world: Path, run_dir: Path, **changes: Any) -> list[str]:
    """Of the command."""
    options = {
        "run.dir": run_dir,
        "run.stages": '["ppo"]',
        "model.path": world / "model",
        "model.dtype": "float32",
        "score.streams": json.dumps([f"{ROOT / 'tests/stages/ppo_world.py'}:Letters"]),
        "ppo.data": world / "data.json",
        "ppo.images": world / "images",
        "ppo.batch_size": 8,
    }
    options |= {name.replace("__", "."): value for name, value in changes.items()}
    return [piece for name, value in options.items() for piece in (f"--{name}", str(value))]


def test_an_image_that_is_missing(world, tmp_path):
    records = json.loads((world / "data.json").read_text())
    records[3]["image"] = "absent.png"
    (tmp_path / "data.json").write_text(json.dumps(records))
    with pytest.raises(InputError, match=r"absent\.png does not exist; 1 of 8") as error:
        train.main(arguments(world, tmp_path / "run", ppo__data=tmp_path / "data.json"))
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_an_image_that_cannot_be_read(world, tmp_path):
    shutil.copytree(world, tmp_path / "w")
    (tmp_path / "w" / "images" / "05.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"05\.png") as error:
        run(tmp_path / "w", tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run" / "ppo").exists()


@pytest.mark.slow
def test_an_adapter_of_another_base(world, tmp_path):
    checkpoint, lora = open_checkpoint(world / "model"), LoraConfig(rank=4, alpha=8)
    adapter = random_adapter(add_lora(abstract_model(checkpoint.config), lora))
    values = {path: jnp.asarray(value) for path, value in adapter.items()}
    export_checkpoint(checkpoint, values, tmp_path / "adapter", lora=lora)
    other = build_checkpoint(tmp_path / "other", TINY, seed=1)
    given = {"model__path": other, "model__adapter": tmp_path / "adapter", "ppo__lora__rank": 4, "ppo__lora__alpha": 8}
    command = ["-m", "vigor_jax.train", *arguments(world, tmp_path / "run", **given)]
    process = spawn_python(command, devices=1, cache=tmp_path / "cache")
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 2, said
    assert re.search(r"^error: .*adapter.* was trained on another model: the weights of .*other differ", said, re.M)
    assert "Traceback" not in said


def test_responses_that_are_all_empty(world, tmp_path, monkeypatch):
    def silent(_: Policy, requests: Iterable[Request], *__: Any, **___: Any) -> Iterator[list[Completion]]:
        for request in requests:
            yield [Completion(request.image_id, c, "", (EOS,), np.zeros(1, np.float32), "stop") for c in range(2)]

    monkeypatch.setattr(Policy, "sample", silent)
    with pytest.raises(InputError) as error:
        run(world, tmp_path)
    expected = (
        "iteration 1: 16 responses are empty, and none of the 16 tokens of 16 responses has a reward: rewarded 0.0%"
    )
    assert expected in str(error.value)
    assert str(error.value).endswith("; give questions (ppo.prompts, ppo.data) that the model answers")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ppo").exists()


class Huge(Letters):
    """Every reward is a number, but the sums of two are none in float32."""

    def judge(self, items: Iterable[ScoreItem]) -> Iterator[list[Verdict]]:
        for item in items:
            yield [Verdict(item.image, i, self.name, tuple(_huge(text))) for i, text in enumerate(item.texts)]


def _huge(text: str) -> Iterator[Signal]:
    """On the first letter and on the last one."""
    for start in {0, len(text) - 1} if text else ():
        yield Signal("letter", (Span(start, start + 1),), 0.0, 3e38, 0.5)


@pytest.mark.slow
def test_advantages_that_are_no_numbers(world, tmp_path):
    message = r"iteration 1: advantages is (nan|-?inf) at token \d+ of candidate \d of \d\d\.png; nothing was learned"
    with pytest.raises(TrainingDiverged, match=message) as error:
        run(world, tmp_path, make_config(world), huge=Huge())
    assert "\n" not in str(error.value)
    assert "such rewards are too large" in str(error.value)
    assert not (tmp_path / "ppo").exists()


@pytest.mark.parametrize("field", [name for name in TokenArrays._fields if name != "mask"])
@pytest.mark.parametrize("iteration", [1, 2])
def test_what_is_blamed_for_numbers_that_are_none(field, iteration):
    """No learning rate made those of the first iteration or of the reference."""
    arrays = TokenArrays(*(np.zeros((2, 3, 4), np.float32) for _ in TokenArrays._fields))
    getattr(arrays, field)[1, 2, 3] = np.nan
    questions = [Question(name, Path(name), "?") for name in ("a.png", "b.png")]
    with pytest.raises(TrainingDiverged) as error:
        _check_finite(arrays, SimpleNamespace(questions=questions), iteration)
    said = str(error.value)
    assert f"ppo: iteration {iteration}: {field} is nan at token 3 of candidate 2 of b.png; nothing was learned" in said
    rewards, policy = {"rewards", "advantages", "returns"}, {"old_logps", "sampled_logps", "entropies", "values"}
    assert ("rewards are too large" in said) == (field in rewards)
    assert ("lower ppo.learning_rate" in said) == (field in policy and iteration > 1)
    assert ("are its weights sound" in said) == (field == "ref_logps" or (field in policy and iteration == 1))
