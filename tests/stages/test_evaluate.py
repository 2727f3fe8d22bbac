"""The stage that asks the models before and after."""

import dataclasses
import json
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image

from tests.tiny_llava import Tiny, build_checkpoint
from vigor_jax.errors import InputError
from vigor_jax.evaluate import main
from vigor_jax.evaluation.benchmarks.pope import read_questions, write_questions
from vigor_jax.evaluation.benchmarks.pope_build import build_questions
from vigor_jax.evaluation.protocol import read_protocol
from vigor_jax.hf.load import open_checkpoint
from vigor_jax.hf.options import ModelConfig
from vigor_jax.inference.sampling_config import SamplingConfig
from vigor_jax.parallel.config import MeshConfig
from vigor_jax.parallel.sharding import make_mesh
from vigor_jax.stages.evaluate import EvaluateStage, evaluate
from vigor_jax.stages.evaluate_config import EvaluateConfig
from vigor_jax.stages.stage import RunContext

OBJECTS = {f"{i:02}.png": ["dog", "car"] if i % 2 else ["cat", "car", "kite"] for i in range(6)}
SAMPLING = SamplingConfig(num_candidates=1, temperature=0.0, max_new_tokens=8, batch_size=4)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    world = tmp_path_factory.mktemp("evaluate")
    (world / "images").mkdir()
    rng = np.random.default_rng(0)
    for name in OBJECTS:
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(world / "images" / name)
    (world / "objects.json").write_text(json.dumps(OBJECTS))
    write_questions(world / "random.json", build_questions(OBJECTS, "random", per_image=2, seed=0))
    boxes = {
        "images": [{"id": i, "file_name": name, "width": 50, "height": 40} for i, name in enumerate(OBJECTS)],
        "categories": [{"id": 1, "name": "car"}],
        "annotations": [{"id": i, "image_id": i, "category_id": 1, "bbox": [0, 0, 25, 40]} for i in range(6)],
    }
    (world / "instances.json").write_text(json.dumps(boxes))
    refs = [
        {"ann_id": i, "image_id": i, "split": split, "sentences": [{"sent_id": i, "sent": f"the car {i}"}]}
        for i, split in enumerate(("val", "val", "testA"))
    ]
    (world / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    (world / "mme" / "count").mkdir(parents=True)
    (world / "mme" / "count" / "a.txt").write_text("One dog?\tYes\nTwo dogs?\tNo\n")
    (world / "mme" / "count" / "a.png").write_bytes((world / "images" / "00.png").read_bytes())
    for seed, name in enumerate(("before", "after")):
        build_checkpoint(world / name, Tiny(), seed=seed)
    return world


def config_of(world: Path) -> EvaluateConfig:
    return EvaluateConfig(
        images=world / "images",
        objects=(world / "objects.json",),
        pope=(world / "random.json",),
        mme=world / "mme",
        instances=(world / "instances.json",),
        refs=(world / "refs(unc).p",),
        captions=SAMPLING,
        answers=SAMPLING,
    )


def run(world: Path, out: Path, config: EvaluateConfig) -> dict:
    models = {name: open_checkpoint(world / folder) for name, folder in (("base", "before"), ("tuned", "after"))}
    return evaluate(config, models, out, make_mesh(MeshConfig()), dtype="float32")


@pytest.mark.slow
def test_both_models_are_asked_everything(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    found = run(world, tmp_path / "out", config_of(world))
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].split() == ["base", "tuned"]
    assert (tmp_path / "out" / "table.txt").read_text() in printed
    for name in ("base", "tuned"):
        assert json.loads((tmp_path / "out" / name / "metrics.json").read_text()) == json.loads(json.dumps(found[name]))
        assert found[name]["chair"]["captions"] == 6
        assert set(found[name]["pope"]) - {"warnings"} == {"random", "mean", "strict", "protocol"}
        assert found[name]["pope"]["protocol"] == read_protocol("paper", "pope").stored()
        assert set(found[name]["mme"]["subtasks"]) == {"count"}
        assert found[name]["grounding"]["captions"] == 6
        parts = found[name]["referring"]
        assert {part: each["expressions"] for part, each in parts.items() if part != "protocol"} == {
            f"{world.name}_val": 2, f"{world.name}_testA": 1,
        }  # fmt: skip
    texts = [(tmp_path / "out" / name / "captions.jsonl").read_text() for name in ("base", "tuned")]
    assert texts[0] != texts[1]

    # The command says the same of the same answers.
    lines = [json.loads(line) for line in (tmp_path / "out" / "base" / "pope-random.jsonl").open()]
    answers = {(line["image"], line["prompt"]): line["text"] for line in lines}
    saved = tmp_path / "saved.jsonl"
    questions = read_questions(world / "random.json")
    saved.write_text(
        "".join(
            json.dumps({"question_id": q.question_id, "answer": answers[q.image, q.text]}) + "\n" for q in questions
        )
    )
    main([
        "pope", "--questions", str(world / "random.json"), "--answers", str(saved), "--out", str(tmp_path / "command"),
    ])  # fmt: skip
    metrics = json.loads((tmp_path / "command" / "metrics.json").read_text())
    assert metrics == json.loads(json.dumps(found["base"]["pope"]))

    parts = [str(tmp_path / "out" / "base" / f"expressions-{world.name}_{split}.jsonl") for split in ("val", "testA")]
    refs = str(world / "refs(unc).p")
    main(["grounding", "--refs", refs, "--answers", *parts, "--out", str(tmp_path / "command")])
    metrics = json.loads((tmp_path / "command" / "metrics.json").read_text())
    assert {part: metrics[part] for part in found["base"]["referring"]} == found["base"]["referring"]
    captions = str(tmp_path / "out" / "base" / "captions.jsonl")
    boxes = str(world / "instances.json")
    main(["grounding", "--objects", boxes, "--captions", captions, "--out", str(tmp_path / "command")])
    metrics = json.loads((tmp_path / "command" / "metrics.json").read_text())
    assert {key: metrics[key] for key in found["base"]["grounding"]} == found["base"]["grounding"]
    main(
        ["chair", "--objects", str(world / "objects.json"), "--captions", captions, "--out", str(tmp_path / "command")]
    )
    metrics = json.loads((tmp_path / "command" / "metrics.json").read_text())
    assert {key: metrics[key] for key in found["base"]["chair"]} == found["base"]["chair"]

    # Nothing is asked twice.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.jsonl")}
    assert run(world, tmp_path / "out", config_of(world)) == found
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.main
def test_a_run_has_its_card_and_its_export_carries_it(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "after", tmp_path / "export")
    provenance = {"base": "org/base", "checkpoint": "../checkpoints/sft", "step": 3, "layout": "llava-hf"}
    (tmp_path / "export" / "vigor_jax.json").write_text(json.dumps(provenance))
    checkpoint, mesh = open_checkpoint(world / "before"), MeshConfig()
    model = ModelConfig(path=world / "before", dtype="float32")
    context = RunContext(tmp_path, str(tmp_path), model, checkpoint, training=mesh, inference=mesh)
    config = dataclasses.replace(config_of(world), mme=None, refs=(), instances=())
    progress = SimpleNamespace(begin=lambda result: None)
    EvaluateStage(config).run(context, progress)
    content = json.loads((tmp_path / "evaluation" / "card.json").read_text())
    assert content["models"] == ["base", "tuned"]
    assert [each["name"] for each in content["benchmarks"]] == ["chair", "pope"]
    assert all(row["difference"] for each in content["benchmarks"] for row in each["rows"])
    readme = ModelCard.load(tmp_path / "export" / "README.md")
    assert readme.data.base_model == "org/base"
    assert {each.dataset_type for each in readme.data.eval_results} == {"chair", "pope"}

    # The same again, to the byte; and the export is the same model as before.
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.suffix in (".json", ".md", ".html")}
    EvaluateStage(config).run(context, progress)
    assert {path: path.read_bytes() for path in files} == files
    assert open_checkpoint(tmp_path / "export").digest() == open_checkpoint(world / "after").digest()


def test_what_cannot_be_asked_is_said(world: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is nothing to ask; give evaluate\.objects"):
        run(world, tmp_path, EvaluateConfig())
    for name in ("objects", "instances", "refs"):
        with pytest.raises(InputError, match=r"evaluate\.images is not given"):
            EvaluateConfig(**{name: (world / f"{name}.json",)})
    with pytest.raises(InputError, match=r"evaluate\.pope: two files are called random; give them different names"):
        EvaluateConfig(images="images", pope=(Path("a/random.json"), Path("b/random.json")))
    with pytest.raises(InputError, match=r"evaluate\.limit: expected 0 for all images, or how many, got -1"):
        EvaluateConfig(limit=-1)
    (tmp_path / "objects.json").write_text(json.dumps({"gone.png": ["dog"]}))
    config = dataclasses.replace(config_of(world), objects=(tmp_path / "objects.json",))
    with pytest.raises(InputError, match=r"gone\.png does not exist \(1 of 1 are missing\)"):
        run(world, tmp_path, config)
