"""PPO for hundreds of iterations, in a separate process: nothing piles up and nothing is compiled again."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.stages.ppo_world import make_world
from tests.stages.sft_world import spawn_python

ITERATIONS, WARM_UP = 220, 60
SETTINGS = {"batch_size": 4, "minibatch": 4, "epochs": 110, "keep": 1, "lora": {"rank": 4, "alpha": 8}}
# Of the process, an iteration: allocators and logs take some. A program that is compiled again takes 1.8 MB.
MOST_GROWTH = 200_000


@pytest.mark.slow
def test_memory_is_flat(tmp_path):
    world = make_world(tmp_path / "world", images=8)
    runs = [{"run_dir": str(tmp_path / "run"), "ppo": SETTINGS}]
    job = {"world": str(world), "watch": str(tmp_path / "watch.jsonl"), "runs": runs}
    arguments = ["-m", "tests.stages.run_ppo", json.dumps(job)]
    process = spawn_python(arguments, devices=1, cache=tmp_path / "cache")
    said, _ = process.communicate(timeout=850)
    assert process.returncode == 0, said[-3000:]
    lines = [json.loads(line) for line in Path(job["watch"]).read_text().splitlines()]
    assert len(lines) == ITERATIONS
    early, late = lines[:WARM_UP], lines[WARM_UP:]
    assert len({line["compiled"] for line in lines[1:]}) == 1
    for name in ("held", "arrays"):  # a checkpoint that is still being written holds some more
        least = min(line[name] for line in early)
        assert min(line[name] for line in late[-20:]) == least, name
        assert max(line[name] for line in late) < 2 * least, name
    growth = np.polynomial.Polynomial.fit(range(len(late)), [line["resident"] for line in late], 1).convert().coef[1]
    assert growth < MOST_GROWTH, f"{growth / 1e3:.0f} kB an iteration"
