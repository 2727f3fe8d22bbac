"""A page about a run that the stages themselves have made: PPO with an adapter, exported merged."""

import json

import jax
import pytest

from tests.report.test_build import Page
from tests.report.test_ppo_report import ppo, says
from tests.stages.ppo_world import Letters, make_world
from tests.stages.run_ppo import make_config
from vigor_jax.data.records import store
from vigor_jax.hf.load import open_checkpoint
from vigor_jax.hf.options import ExportConfig
from vigor_jax.models.lora_config import LoraConfig
from vigor_jax.parallel.config import MeshConfig
from vigor_jax.parallel.sharding import make_mesh
from vigor_jax.records import Rollout
from vigor_jax.report import build_report
from vigor_jax.stages.export import export
from vigor_jax.stages.ppo import ppo as train


@pytest.mark.slow
@pytest.mark.main
def test_a_run_as_the_stages_write_it(tmp_path):
    world, run = make_world(tmp_path / "world", images=16), tmp_path / "run"
    mesh, checkpoint = make_mesh(MeshConfig(), jax.devices()[:1]), open_checkpoint(world / "model")
    config = make_config(world, lora=LoraConfig(rank=4, alpha=8), learning_rate=1e-2)
    checkpoints = train(config, checkpoint, run, mesh, mesh, lambda: {"letters": Letters()}, dtype="float32")
    export(ExportConfig(layout="llava-hf", dtype="bfloat16"), checkpoint, checkpoints, run / "export", mesh)
    lora = {"rank": 4, "alpha": 8.0, "target": ["language_model"], "also": [], "rslora": False}
    settings = {"run": {"stages": ["ppo", "export"]}, "ppo": {"images": str(world / "images"), "lora": lora}}
    (run / "config.yaml").write_text(json.dumps(settings))

    page = Page(build_report([run], tmp_path / "page.html"))
    lines = [json.loads(line) for line in (run / "metrics" / "ppo.jsonl").read_text().splitlines()]
    assert says(page, "Iterations 2 of 2")
    assert says(page, f"Tokens of a response {lines[0]['length']:.3g} → {lines[1]['length']:.3g}")
    assert says(page, "Adapter of PPO rank: 4 alpha: 8.0 target: language_model")
    kept = json.loads((run / "export" / "vigor_jax.json").read_text())["update_kept"]
    assert says(page, f"layout: llava-hf dtype: bfloat16 {100 * kept:.0f}% of the adapter’s update survived")
    (shown,) = ppo(page)
    assert shown["iterations"] == [1, 2]
    for side, each in enumerate(shown["iterations"]):
        rollouts = {(r.image, r.candidate): r for r in store.read_part(run / "ppo", each - 1, 2, Rollout)}
        for example in shown["examples"]:
            for response in example[side]["responses"]:
                rollout = rollouts[example[side]["name"], response["candidate"]]
                assert response["text"] == rollout.text
                assert response["rewards"] == pytest.approx(rollout.rewards, rel=0.01)
                assert response["advantages"] == pytest.approx(rollout.advantages, rel=0.01)
                assert len(response["spans"]) == 2 * len(rollout.token_ids)
                assert len(response["signals"]) == len(rollout.verdicts[0].signals)

    (run / "ppo" / store.part_name(1, 2)).unlink()  # as a kill in the second iteration leaves it
    (run / "metrics" / "ppo.jsonl").write_text(json.dumps(lines[0]) + "\n")
    page = Page(build_report([run], tmp_path / "page.html"))
    assert says(page, "Iterations 1 of 2")
    assert [each["iterations"] for each in ppo(page)] == [[1]]
