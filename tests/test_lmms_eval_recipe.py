"""docs/lmms_eval.md as a user follows it: an environment, a task of lmms-eval on our engine, its log read."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.tiny_llava import Tiny, build_checkpoint
from vigor_jax.evaluate import main

ROOT = Path(__file__).resolve().parents[1]
LABELS = ("yes", "no", "no", "yes")

# As lmms-eval's own task `pope`, but with questions and images that lie on a disk.
TASK = """\
task: tiny_pope
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function tiny_pope.to_visual
doc_to_text: !function tiny_pope.to_text
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 8, temperature: 0, num_beams: 1, do_sample: false}}
process_results: !function tiny_pope.process
metric_list: [{{metric: pope_accuracy, aggregation: !function tiny_pope.mean, higher_is_better: true}}]
metadata: [{{version: 0.0}}]
"""
TASK_CODE = """\
from PIL import Image


def to_visual(doc):
    return [Image.open(doc["image_path"]).convert("RGB")]


def to_text(doc):
    return doc["question"] + "\\nAnswer the question using a single word or phrase."


def process(doc, results):
    right = float(results[0].lower().strip() == doc["answer"])
    return {"pope_accuracy": {"question_id": doc["question_id"], "score": right}}


def mean(results):
    return sum(result["score"] for result in results) / len(results)
"""


def in_environment(venv: Path, command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment |= {"PATH": f"{venv / 'bin'}:{environment['PATH']}", "HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu"}
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, **options)


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The environment of the recipe, by the recipe's own lines."""
    venv = tmp_path_factory.mktemp("recipe") / "lmms"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    probe = in_environment(venv, ["pip", "download", "--no-deps", "-q", "-d", str(venv / "probe"), "filelock<4"])
    if probe.returncode:
        pytest.skip(f"the package index cannot be reached: {probe.stderr.splitlines()[-1]}")
    recipe = (ROOT / "docs" / "lmms_eval.md").read_text()
    lines = re.findall(r"^pip install [^#\n]*", recipe, re.MULTILINE)
    assert [line.strip() for line in lines] == ["pip install -e '.[lmms]'"]
    for line in lines:
        done = in_environment(venv, ["bash", "-c", line])
        assert done.returncode == 0, done.stderr[-3000:]
    return venv


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_recipe_runs_a_task_and_its_log_is_read(venv: Path, tmp_path: Path) -> None:
    build_checkpoint(tmp_path / "model", Tiny())
    (tmp_path / "tasks").mkdir()
    rng, records, questions = np.random.default_rng(0), [], []
    for number, label in enumerate(LABELS, 1):
        image = tmp_path / f"COCO_val2014_{number:012}.png"
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(image)
        text = f"Is there a {'dog' if number % 2 else 'cat'} in the image?"
        records.append({"question_id": str(number), "question": text, "answer": label, "image_path": str(image)})
        questions.append({"question_id": number, "image": image.name, "text": text, "label": label})
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "questions.json").write_text("".join(json.dumps(question) + "\n" for question in questions))
    (tmp_path / "tasks" / "tiny_pope.yaml").write_text(TASK.format(data=data))
    (tmp_path / "tasks" / "tiny_pope.py").write_text(TASK_CODE)
    command = ["lmms-eval", "eval", "--model", "vigor_jax", "--model_args", f"pretrained={tmp_path / 'model'}"]
    command += ["--include_path", str(tmp_path / "tasks"), "--tasks", "tiny_pope", "--batch_size", "2"]
    done = in_environment(venv, [*command, "--log_samples", "--output_path", str(tmp_path / "out")])
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    (log,) = (tmp_path / "out").rglob("*_samples_tiny_pope.jsonl")
    logged = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(logged) == len(LABELS)

    # Our reader, on lmms-eval's own log; and our engine says the same without lmms-eval.
    arguments = ["pope", "--questions", str(tmp_path / "questions.json")]
    main([*arguments, "--answers", str(log), "--out", str(tmp_path / "read")])
    metrics = json.loads((tmp_path / "read" / "metrics.json").read_text())
    assert metrics["protocol"]["name"] == "llava-1.5"
    asked = ["--model", str(tmp_path / "model"), "--images", str(tmp_path), "--sampling.max_new_tokens", "8"]
    main([*arguments, *asked, "--protocol", "llava-1.5", "--out", str(tmp_path / "own")])
    assert json.loads((tmp_path / "own" / "metrics.json").read_text()) == metrics
