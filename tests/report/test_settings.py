"""What the page says that a run was made with."""

import json
import os
from pathlib import Path

import pytest
import yaml

from vigor_jax import cli
from vigor_jax.config import TrainConfig
from vigor_jax.errors import InputError
from vigor_jax.report.settings import _SETTINGS, LABELS, describe_settings

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def resolved(name, *more):
    """A config as a run keeps it."""
    return yaml.safe_load(
        cli.dump(cli.parse(TrainConfig, ["--config", str(CONFIGS / f"{name}.yaml"), *more], description=""))
    )


def test_of_a_whole_run(tmp_path):
    config = resolved("vigor_all_7b", "--model.path", "my-llava", "--sample.sampling.temperature", "0.9")
    (tmp_path / "log.txt").write_text(
        "2026-02-27 23:59:59,1 vigor_jax.pipeline.run stage sample\na line\n2026-03-01 00:00:00,1 x y\n2026-02-28 1 x\n"
    )
    settings = describe_settings(config, tmp_path)
    assert list(settings) == [label for label in LABELS if label in settings]
    assert settings["Model"] == ["my-llava"]
    assert settings["Prompt"] == config["sample"]["prompts"]
    assert settings["Temperature"] == ["0.9"]
    assert settings["Rewards"] == ["detector", "reward_model"]
    assert {"box threshold: 0.25", "model: checkpoints/groundingdino-swint"} <= set(settings["Detector"])
    assert {"refine: drop", "continuations: keep", "repetitions: count", "rule: paper", "min words: 2"} <= set(
        settings["Selection"]
    )
    assert "learning rate: 2e-05" in settings["Fine-tuning"]
    assert settings["Date"] == ["2026-02-27 – 2026-03-01"]


def test_every_key_is_one_of_the_config():
    """So that a renamed option does not fall off the page in silence."""
    assert {key for keys in _SETTINGS.values() for key in keys} <= cli._keys(TrainConfig).keys()


# Of each kind one.
OFTEN = {"vigor_all_claims_7b", "fisao_7b", "dpo_7b"}


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.name, marks=[pytest.mark.slow] * (path.stem not in OFTEN))
        for path in sorted(CONFIGS.glob("*.yaml"))
    ],
)
def test_of_every_config(path, tmp_path):
    config = resolved(path.stem)
    settings = describe_settings(config, tmp_path)
    assert settings["Model"] == [config["model"]["path"]]
    assert ("Detector" in settings) == ("detector" in config["score"]["streams"])
    assert ("Temperature" in settings) == ("sample" in config["run"]["stages"])


def test_of_ppo(tmp_path):
    config = resolved("fisao_7b", "--ppo.lora.rank", "16", "--ppo.lora.also", "[multi_modal_projector]")
    settings = describe_settings(config, tmp_path)
    assert settings["Adapter of PPO"] == [
        "rank: 16",
        "alpha: 256.0",
        "target: language_model",
        "also: multi_modal_projector",
        "rslora: no",
    ]
    assert settings["Rewards"] == ["clip"]
    assert {"margin: 10.0", "scale: 250.0", "margin unit: absolute"} <= set(settings["Verifier"])
    assert {"learning rate: 5e-07", "ppo epochs: 4", "clip range: 0.2"} <= set(settings["PPO"])
    assert "mentions: first" in settings["Rewards of tokens"]
    assert not settings.keys() & {"Fine-tuning", "Detector", "Sampling", "Adapter of the fine-tuning"}


@pytest.mark.parametrize(("kind", "other"), [("responses", "sentences"), ("sentences", "responses")])
def test_of_pairs(tmp_path, kind, other):
    """Of the options those of their kind; and of sentences what is asked about which images, and who judges."""
    stages = "pair,dpo" if kind == "sentences" else "sample,score,select,pair,dpo"
    given = ("--pair.kind", kind, "--run.stages", stages, "--pair.sampling.num_candidates", "7")
    settings = describe_settings(resolved("dpo_7b", *given), tmp_path)
    assert settings["Pairs"] == [f"kind: {kind}", "match lengths: 0.8"]
    assert f"Pairs of {kind}" in settings
    assert f"Pairs of {other}" not in settings
    assert ("num candidates: 7" in settings[f"Pairs of {kind}"]) == (kind == "sentences")
    assert settings["Images"] == ["data/ade20k/images"]
    assert settings["Rewards"] == ["detector", "reward_model"]
    assert len(settings["Prompt"]) == 3
    assert "beta: 0.1" in settings["Preferences"]


@pytest.mark.parametrize("stage", ["sft", "train_reward"])
def test_adapters_of_other_stages(tmp_path, stage):
    label = {"sft": "Adapter of the fine-tuning", "train_reward": "Adapter of the reward model"}[stage]
    whole = resolved("vigor_all_7b")
    assert label not in describe_settings(whole, tmp_path)
    adapted = resolved("vigor_all_7b", f"--{stage}.lora.rank", "8", "--run.stages", stage)
    assert describe_settings(adapted, tmp_path)[label][0] == "rank: 8"
    adapted["run"]["stages"] = ["sample"]
    assert label not in describe_settings(adapted, tmp_path)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"layout": "peft", "dtype": None}, ["layout: peft"]),
        ({"layout": "llava-hf", "dtype": "float16", "update_kept": 0.9712}, ["97% of the adapter’s update survived"]),
        ({"layout": "llava-hf", "update_kept": 0.00004}, ["0.004% of the adapter’s update survived"]),
        ({"layout": "llava-hf", "update_kept": 1.0003}, ["100% of the adapter’s update survived"]),
        ({"layout": "llava-hf"}, ["layout: llava-hf"]),  # of an earlier version, or without an adapter
    ],
)
def test_what_was_exported(tmp_path, record, said):
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "vigor_jax.json").write_text(json.dumps(record))
    lines = describe_settings({}, tmp_path)["Export"]
    assert lines[-1].startswith(said[0])
    assert lines[0] == f"layout: {record['layout']}"


def test_a_damaged_record_of_an_export_is_one_line(tmp_path):
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "vigor_jax.json").write_text('{"layout": "peft", "update_kept": "most"}')
    with pytest.raises(InputError, match=r"^[^\n]*vigor_jax\.json: update_kept: expected a number[^\n]*$"):
        describe_settings({}, tmp_path)


def test_what_a_run_does_not_say_is_left_out(tmp_path):
    assert describe_settings({}, tmp_path) == {}
    assert describe_settings(None, tmp_path) == {}
    assert describe_settings(["no", "mapping"], tmp_path) == {}
    assert describe_settings({"model": "a name", "sample": {"sampling": None, "prompts": []}}, tmp_path) == {}
    assert describe_settings({"sample": {"prompts": "Describe."}, "select": {"refine": "drop"}}, tmp_path) == {
        "Prompt": ["Describe."],
        "Selection": ["refine: drop"],
    }


def test_without_a_log_the_config_tells_the_day(tmp_path):
    (tmp_path / "config.yaml").write_text("{}")
    os.utime(tmp_path / "config.yaml", (1_700_000_000, 1_700_000_000))
    assert describe_settings({}, tmp_path)["Date"][0] in ("2023-11-14", "2023-11-15")  # wherever this runs
    (tmp_path / "log.txt").write_text("")
    assert describe_settings({}, tmp_path)["Date"][0].startswith("2023-11-1")


def test_streams_with_options_are_in_plain_words(tmp_path):
    streams = "[detector, {path: my.py:Stream, options: {min_score: 0.5, names: [a, b], strict: true}}, {path: x:Y}]"
    config = resolved("vigor_all_7b", "--score.streams", streams)
    rewards = describe_settings(config, tmp_path)["Rewards"]
    assert rewards == ["detector", "my.py:Stream (min score 0.5, names a, b, strict yes)", "x:Y"]
