"""Whole runs of PPO against an implementation in PyTorch, transformers and PEFT (`torch_ppo`).

Both learn from the same responses, of which some end and one is empty. After every update all metrics are compared,
and all weights that are trained.
"""

import importlib.util
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from tests.stages.ppo_world import make_world
from tests.stages.run_ppo import make_config
from tests.stages.test_ppo import iterations, run
from vigor_jax.inference.policy import Policy
from vigor_jax.inference.sampler import Completion, Request
from vigor_jax.models.lora_config import LoraConfig
from vigor_jax.records import Rollout
from vigor_jax.stages.ppo_config import PpoConfig
from vigor_jax.stages.ppo_learner import VALUE_HEAD, Learner

if importlib.util.find_spec("peft") is None:
    pytest.skip("NOT TESTED: PEFT is not installed; pip install -e '.[test]'", allow_module_level=True)

from tests.stages.torch_ppo import Response, TorchPpo

IMAGES, CANDIDATES, LENGTH, EOS = 8, 3, 12, 2
IN_THE_GATE = ("divergence in the reward",)
NUM_UPDATES = 8  # two iterations of two passes over two minibatches; the first one is at a rate of 0
SETTINGS: dict[str, Any] = {
    "batch_size": 4,
    "minibatch": 2,
    "ppo_epochs": 2,
    "learning_rate": 1e-2,
    "warmup_ratio": 0.1,
    "weight_decay": 0.1,
    "eps": 1e-8,
    "kl_target": 1.0,
    "kl_horizon": 20,
    "lora": LoraConfig(rank=4, alpha=8),
}
CASES: dict[str, dict[str, Any]] = {
    "divergence in the reward": {},
    "k3 in the loss": {"kl": "k3", "kl_in": "loss", "gamma": 0.9, "lam": 0.8, "accumulate": 2},
    "leave one out": {"baseline": "rloo"},
    "groups": {"baseline": "grpo", "kl": "k3", "whiten": False},
}


def config_of(world: Path, **changes: Any) -> PpoConfig:
    return make_config(world, sampling={"num_candidates": CANDIDATES, "max_new_tokens": LENGTH}, **SETTINGS | changes)


class Drawn:
    """Stands in for `Policy.sample`: the base draws with PyTorch, whatever was learned, so that all runs learn from the
    same responses.

    Args:
      world: with the base.
    """

    def __init__(self, world: Path) -> None:
        self._world, self._base = world, TorchPpo(world / "model", config_of(world), NUM_UPDATES)
        self.prompt_ids: dict[str, tuple[int, ...]] = {}
        self._found: dict[tuple[str, int], tuple[int, ...]] = {}

    def sample(self, policy: Policy, requests: Iterable[Request], *_: Any, **__: Any) -> Iterator[list[Completion]]:
        for request in requests:
            self.prompt_ids[request.image_id] = tuple(request.prompt_ids)
            yield [self._complete(policy, request, candidate) for candidate in range(CANDIDATES)]

    def _complete(self, policy: Policy, request: Request, candidate: int) -> Completion:
        key = request.image_id, candidate
        if key not in self._found:
            self._found[key] = self._draw(request, candidate)
        ids = self._found[key]
        text = policy.checkpoint.tokenizer.decode(ids).strip()
        reason = "stop" if ids[-1] == EOS else "length"
        return Completion(request.image_id, candidate, text, ids, np.zeros(len(ids), np.float32), reason)

    def _draw(self, request: Request, candidate: int) -> tuple[int, ...]:
        """The first one of an image is cut; the second one ends, soon or at once; the third one ends at the limit."""
        number = int(request.image_id.removesuffix(".png"))
        length = (LENGTH, number, LENGTH - 1)[candidate]
        generator = torch.Generator().manual_seed(CANDIDATES * number + candidate)
        found = self._base.draw(self._world / "images" / request.image_id, request.prompt_ids, length, generator)
        found += [EOS] * (candidate > 0)
        return tuple(found[: found.index(EOS) + 1] if EOS in found else found)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return make_world(tmp_path_factory.mktemp("reference") / "w", images=IMAGES)


@pytest.fixture(scope="module")
def drawn(world) -> Drawn:
    return Drawn(world)


class Run(NamedTuple):
    """What a run of ours has done: metrics of each update, the weights before all and after each, and its records."""

    metrics: list[dict[str, float]]
    weights: list[dict[str, np.ndarray]]
    rollouts: list[list[Rollout]]


def ours(world: Path, run_dir: Path, config: PpoConfig, drawn: Drawn, monkeypatch: pytest.MonkeyPatch) -> Run:
    metrics: list[dict[str, float]] = []
    weights: list[dict[str, np.ndarray]] = []
    update = Learner.update

    def watched(learner: Learner, rows: Any) -> Any:
        def kept() -> dict[str, np.ndarray]:
            return {path: np.array(weight) for path, weight in learner.state.params.items()}  # donated later

        if not weights:
            weights.append(kept())
        found = update(learner, rows)
        metrics.append({name: float(value) for name, value in found.items()})
        weights.append(kept())
        return found

    monkeypatch.setattr(Learner, "update", watched)
    monkeypatch.setattr(Policy, "sample", lambda *args, **kwargs: drawn.sample(*args, **kwargs))
    run(world, run_dir, config)
    return Run(metrics, weights, iterations(run_dir))


def adapter_of(weights: dict[str, np.ndarray]) -> dict[tuple[int, str, str], np.ndarray]:
    """Our stacked matrices as PEFT has them."""
    found = {}
    for path, stacked in weights.items():
        if match := re.fullmatch(r"language_model\.layers\.(\w+)\.lora_([ab])", path):
            for layer, matrix in enumerate(stacked):
                found[layer, match[1], match[2].upper()] = matrix.T
    return found


def replayed(world: Path, config: PpoConfig, drawn: Drawn, run: Run) -> Iterator[tuple[TorchPpo, dict[str, float]]]:
    """The same updates in PyTorch; the state after each, and its metrics."""
    reference = TorchPpo(world / "model", config, NUM_UPDATES)
    reference.load(adapter_of(run.weights[0]))
    for iteration, rollouts in enumerate(run.rollouts, 1):
        groups: dict[str, list[Response]] = {}
        for each in rollouts:
            file, prompt_ids = world / "images" / each.image, drawn.prompt_ids[each.image]
            response = Response(file, prompt_ids, each.token_ids, each.rewards, each.finish_reason == "stop")
            groups.setdefault(each.image, []).append(response)
        for metrics in reference.iterate(list(groups.values()), iteration):
            yield reference, metrics


def distance(found: Any, expected: Any, of: Any) -> float:
    """As a share of the length of something."""
    found, expected, of = (np.asarray(x, np.float64) for x in (found, expected, of))
    return float(np.linalg.norm(found - expected) / max(np.linalg.norm(of), 1e-12))


def assert_equal_weights(weights: dict[str, np.ndarray], first: dict[str, np.ndarray], reference: TorchPpo) -> None:
    """To 1e-4 of themselves, and to 1e-3 of what was learned so far."""
    found, before = adapter_of(weights), adapter_of(first)
    for key, matrix in reference.adapter().items():
        expected = matrix.detach().numpy()
        assert distance(found[key], expected, expected) < 1e-4, key
        assert distance(found[key], expected, expected - before[key]) < 1e-3, key
    if f"{VALUE_HEAD}kernel" in weights:
        expected = reference.value_head.weight[0].detach().numpy()
        assert distance(weights[f"{VALUE_HEAD}kernel"], expected, expected) < 1e-4
        assert float(weights[f"{VALUE_HEAD}bias"]) == pytest.approx(reference.value_head.bias.item(), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=[pytest.mark.main] * (name in IN_THE_GATE)) for name in CASES]
)
def test_a_run_equals_that_of_torch_and_peft(world, drawn, tmp_path, monkeypatch, case):
    """Measured: losses to 5e-6 of themselves, weights to 1e-5, and what was learned of them to 1e-4."""
    config = config_of(world, **CASES[case])
    run = ours(world, tmp_path, config, drawn, monkeypatch)
    worked: set[str] = set()
    for update, (reference, metrics) in enumerate(replayed(world, config, drawn, run)):
        found = run.metrics[update]
        for name, expected in metrics.items():
            assert found[name] == pytest.approx(expected, rel=1e-4, abs=1e-6), (update, name)
        assert_equal_weights(run.weights[update + 1], run.weights[0], reference)
        worked |= {name for name, value in metrics.items() if value}
        worked.add("a short gradient" if metrics["grad_norm"] < config.max_grad_norm else "a long gradient")
    assert len(run.metrics) == update + 1 == NUM_UPDATES
    # Every rule had something to do.
    expected = {"clip_share", "approx_kl", "a short gradient", "a long gradient"}
    expected |= {"value_loss", "value_clip_share"} if config.baseline == "value" else set()
    assert expected | ({"kl_loss"} if config.kl_in == "loss" else set()) <= worked
    assert abs(reference.kl_factor - config.kl_factor) > 0.01
    every = [rollout for rollouts in run.rollouts for rollout in rollouts]
    assert {rollout.finish_reason for rollout in every} == {"stop", "length"}
    assert "" in {rollout.text for rollout in every}
    assert any(reward < 0 for rollout in every for reward in rollout.rewards)
