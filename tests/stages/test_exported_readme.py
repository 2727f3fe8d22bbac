"""README.md of an export: the card of the run's evaluation, and what people have written."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard

from tests.evaluation.card.saved import chair, write_run
from vigor_jax.evaluation.card.compare import make_card
from vigor_jax.evaluation.card.results import read_systems
from vigor_jax.hf.export import ExportConfig
from vigor_jax.stages.export import ExportStage
from vigor_jax.stages.exported_readme import carry_card, carry_card_of, put_aside, put_back

OWN = "\nI wrote this.\n"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = tmp_path / "my-run"
    for name, truth in (("base", 0.6), ("tuned", 0.9)):
        write_run(run / "evaluation" / name, {"chair": chair(truth)})
    (run / "export").mkdir()
    provenance = {"base": "org/base@abc", "checkpoint": "../checkpoints/sft", "step": 7, "layout": "llava-hf"}
    (run / "export" / "vigor_jax.json").write_text(json.dumps(provenance))
    (run / "export" / "preprocessor_config.json").write_text("{}")
    return run


def carry(run: Path) -> Path:
    carry_card(make_card(*read_systems([run / "evaluation"])), run / "export", run)
    return run / "export" / "README.md"


def test_the_hub_reads_it(run: Path) -> None:
    read = ModelCard.load(carry(run))
    assert read.data.model_name == "my-run"
    assert read.data.base_model == "org/base"
    assert read.data.library_name == "transformers"
    assert {each.metric_type for each in read.data.eval_results} >= {"chair_i", "recall", "words"}
    assert "tuned against base" in read.text


def test_another_export_of_the_same_checkpoint_has_it_too(run: Path, tmp_path: Path) -> None:
    text = carry(run).read_text()
    carry(run).write_text(text + OWN)
    for number, (given, has) in enumerate(
        [(("sft", 7), True), ((), True), (("sft", 8), False), (("dpo", 7), False)],
    ):
        out = tmp_path / f"out{number}"
        out.mkdir()
        (out / "adapter_config.json").write_text("{}")
        carry_card_of(run, out, *given)
        assert (out / "README.md").exists() == has
        if has:
            assert ModelCard.load(out / "README.md").data.model_name == "my-run"
    assert (tmp_path / "out1" / "README.md").read_text().endswith(OWN)
    assert ModelCard.load(tmp_path / "out0" / "README.md").data.library_name == "peft"
    carry_card_of(tmp_path / "no-run", tmp_path)
    assert not (tmp_path / "README.md").exists()


def test_a_new_export_keeps_what_people_wrote_and_not_the_old_card(run: Path) -> None:
    path = carry(run)
    path.write_text(path.read_text() + OWN)
    stage = ExportStage(ExportConfig(), of="sft")
    stage.before_removal(SimpleNamespace(dir=run))  # type: ignore[arg-type]
    path.unlink()
    (run / "export" / "vigor_jax.json").unlink()
    put_aside(run / "export")  # stopped and begun again: there is no README.md by now
    put_back(run / "export")
    text = path.read_text()
    assert text.endswith(OWN)
    assert "model-index" not in text
    assert "CHAIR" not in text
    assert not list(run.glob(".*README*"))
    put_back(run / "export")
    assert path.read_text() == text
