"""Runs of DPO against an implementation in PyTorch, transformers and PEFT (`torch_dpo`)."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from tests.stages.dpo_pairs import LORA, UPDATES, assert_equal_weights, before, config_of, in_order, make_pairs, ours

if importlib.util.find_spec("peft") is None:
    pytest.skip("NOT TESTED: PEFT is not installed; pip install -e '.[test]'", allow_module_level=True)

from tests.stages.torch_dpo import Pair, TorchDpo

CASES: dict[str, dict[str, Any]] = {
    # AdamW divides by what is near eps where gradients are small, so that 1e-6 leaves much to rounding.
    "in full": {"learning_rate": 1e-3, "sft_factor": 0.5, "eps": 1e-5},
    "adapter": {"lora": LORA, "sft_factor": 0.5, "eps": 1e-5},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pairs(tmp_path_factory.mktemp("dpo-torch") / "root")


@pytest.mark.slow
@pytest.mark.parametrize("case", ["in full", pytest.param("adapter", marks=pytest.mark.main)])
def test_five_updates_equal_those_of_torch(root, tmp_path, case):
    config = config_of(root, **CASES[case])
    run, first = ours(root, tmp_path, config), before(root, config)
    reference = TorchDpo(root / "model", config, UPDATES)
    reference.load(first)
    rows = in_order(root, config)
    for update in range(UPDATES):
        batch = rows[config.batch_size * update : config.batch_size * (update + 1)]
        pairs = [
            Pair(root / "images" / row["images"][0], row["prompt"], row["chosen"], row["rejected"]) for row in batch
        ]
        loss, norm = reference.update(pairs)
        assert run.losses[update] == pytest.approx(loss, rel=1e-4), update
        assert run.grad_norms[update] == pytest.approx(norm, rel=1e-4), update
    assert len(run.losses) == UPDATES
    assert_equal_weights(run.weights, reference.weights(), first, 1e-4)
