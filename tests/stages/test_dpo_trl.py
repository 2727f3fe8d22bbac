"""Runs of DPO against TRL's DPOTrainer, in an environment of TRL's own; CONTRIBUTING.md says how to make it.

TRL differs from ours in what it is given here in another way: its collator for images writes neither the token that
begins a text nor the one that ends an answer, so both stand in the texts; it cuts rows at `max_length`, also within an
image, so there is none. `ipo` is of means over tokens there: ours with `length_normalized`.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.stages.dpo_pairs import (
    LORA,
    UPDATES,
    Run,
    assert_equal_weights,
    before,
    config_of,
    in_order,
    make_pairs,
    ours,
)
from tests.stages.torch_dpo import PROMPT
from vigor_jax.stages.dpo_config import DpoConfig

ROOT = Path(__file__).resolve().parents[2]
PYTHON = Path(os.environ.get("VIGOR_TRL_PYTHON", ROOT / ".venv-trl" / "bin" / "python"))
MOST = 1e-4  # losses and weights, of themselves
CASES: dict[str, dict[str, Any]] = {
    "in full": {"learning_rate": 1e-3},
    "adapter": {"lora": LORA},
    "adapter, ipo": {"lora": LORA, "loss": "ipo", "length_normalized": True},
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason="NOT TESTED: TRL; CONTRIBUTING.md says how to install it"),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pairs(tmp_path_factory.mktemp("dpo-trl") / "root")


@pytest.fixture(scope="module")
def theirs(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """The same updates by TRL."""
    folder = tmp_path_factory.mktemp("trl")
    jobs = []
    for number, changes in enumerate(CASES.values()):
        (folder / str(number)).mkdir()
        job = job_of(root, folder / str(number), config_of(root, **changes))
        jobs.append(folder / str(number) / "job.json")
        jobs[-1].write_text(json.dumps(job))
    done = subprocess.run(
        [PYTHON, Path(__file__).with_name("trl_dpo.py"), *jobs],
        capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"losses"')]
    return {
        case: Run(each["losses"], each["grad_norms"], dict(np.load(job.with_name("last.npz"))))
        for case, each, job in zip(CASES, said, jobs, strict=True)
    }


def job_of(root: Path, folder: Path, config: DpoConfig) -> dict[str, Any]:
    """What `trl_dpo` is told."""
    rows = [
        {
            "images": [str(root / "images" / row["images"][0])],
            "prompt": "<s>" + PROMPT.format(row["prompt"]),
            "chosen": row["chosen"] + "</s>",
            "rejected": row["rejected"] + "</s>",
        }
        for row in in_order(root, config)
    ]
    settings = {
        "output_dir": str(folder / "out"),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "max_length": None,
        "per_device_train_batch_size": config.batch_size,
        "num_train_epochs": 1,
        "train_sampling_strategy": "sequential",
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0,
        "weight_decay": config.weight_decay,
        "adam_beta1": config.beta1,
        "adam_beta2": config.beta2,
        "adam_epsilon": config.eps,
        "max_grad_norm": config.max_grad_norm,
        "beta": config.beta,
        "loss_type": [config.loss],
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    lora = config.lora and {
        "r": config.lora.rank,
        "lora_alpha": config.lora.alpha,
        "target_modules": r".*language_model\..*\.(q|k|v|o|gate|up|down)_proj",
    }
    first, last = folder / "first.npz", folder / "last.npz"
    np.savez(first, **before(root, config))
    model = str(root / "model")
    return {"model": model, "rows": rows, "settings": settings, "lora": lora, "first": str(first), "out": str(last)}


@pytest.mark.parametrize("case", CASES)
def test_five_updates_equal_those_of_trl(root, theirs, tmp_path, case):
    config = config_of(root, **CASES[case])
    found, expected = ours(root, tmp_path, config), theirs[case]
    assert len(expected.losses) == len(found.losses) == UPDATES
    assert found.losses == pytest.approx(expected.losses, rel=MOST)
    assert found.grad_norms == pytest.approx(expected.grad_norms, rel=MOST)
    assert_equal_weights(found.weights, expected.weights, before(root, config), MOST)
