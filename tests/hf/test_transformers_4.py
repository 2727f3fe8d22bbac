"""Exports must load in transformers 4 too, which lives in a separate environment (scripts/detector_env.sh)."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import transformers

from tests.hf.served_world import SOURCES as KINDS
from tests.hf.served_world import TEMPLATE_NAMES, asked, greedy, job_of, never_said, with_image_id
from tests.hf.test_round_trip import TINY, build_original, params_of, through_jax
from tests.tiny_llava import Tiny, build_checkpoint
from vigor_jax.data.text.conversation import TEMPLATES
from vigor_jax.hf.export import export_checkpoint
from vigor_jax.hf.load import open_checkpoint

ROOT = Path(__file__).resolve().parents[2]
PYTHON = Path(os.environ.get("VIGOR_DETECTOR_PYTHON", ROOT / ".venv-detector" / "bin" / "python"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason="NOT TESTED: transformers 4; make it with scripts/detector_env.sh"),
]


def run_4(directory: Path, resaved: Path) -> dict:
    script = Path(__file__).with_name("transformers_4.py")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    done = subprocess.run(
        [PYTHON, script, directory, resaved], capture_output=True, text=True, env=environment, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def serve_4(jobs: list[dict], tmp_path: Path) -> list[dict]:
    """`served.serve` in transformers 4."""
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    script = Path(__file__).with_name("served.py")
    done = subprocess.run(
        [PYTHON, script, tmp_path / "jobs.json"], capture_output=True, text=True, env=environment, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_greedy_answers_equal_ours(tmp_path, kind):
    """Every template, with and without its chat template; one process for them all."""
    checkpoint = open_checkpoint(KINDS[kind](tmp_path / "llava-base"))
    jobs, prompts = [], []
    for name in TEMPLATE_NAMES:
        out = tmp_path / name
        export_checkpoint(checkpoint, {}, out, layout="llava-hf", dtype="float32", template=TEMPLATES[name])
        again = open_checkpoint(out)
        prompts.append(asked(checkpoint, name, again.config.image_token_id))
        jobs.append(job_of(out, prompts[-1]))
    one_image = [prompt for prompt in prompts[0] if prompt.text.count("<image>") == 1]
    jobs.append(job_of(tmp_path / "v1", one_image, num_new_tokens=8, never=never_said(again)))
    *served, answered = serve_4(jobs, tmp_path)
    for theirs, ours in zip(served, prompts, strict=True):
        assert theirs["version"].startswith("4.")
        assert theirs["chat_texts"] == [prompt.text for prompt in ours]
        assert theirs["chat_ids"] == theirs["text_ids"] == [prompt.ids for prompt in ours]
    assert answered["answers"] == greedy(checkpoint, with_image_id(one_image, again, checkpoint), 8)


def run_5(directory: Path) -> dict:
    model = transformers.LlavaForConditionalGeneration.from_pretrained(directory, dtype=torch.float32)
    processor = transformers.AutoProcessor.from_pretrained(directory)
    image = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    inputs = processor(images=image, text="USER: <image>\nWhat is there? ASSISTANT:", return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits
    tokens = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    return {"input_ids": inputs["input_ids"].tolist(), "logits": logits.tolist(), "tokens": tokens.tolist()}


SOURCES = {
    "llava-hf": lambda d: build_checkpoint(d, TINY),
    "llava-hf, another theta": lambda d: build_checkpoint(d, Tiny(rope_theta=500.0, kv_heads=4)),
    "llava v1.0": lambda d: build_original(d, Tiny(linear_projector=True), tower_inside=True),
    "llava v1.5": lambda d: build_original(d, TINY, tower_inside=False),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_export_loads_in_both_versions(tmp_path, kind):
    checkpoint = SOURCES[kind](tmp_path / "llava-source")
    out = through_jax(checkpoint, tmp_path / "out", layout="llava-hf", dtype="float32")
    theirs = run_4(out, tmp_path / "resaved")
    assert theirs["version"].startswith("4.")
    assert theirs["problems"] == [[], [], []]
    ours = run_5(out)
    assert theirs["input_ids"] == ours["input_ids"]
    logits = np.asarray(ours["logits"])
    assert np.abs(np.asarray(theirs["logits"]) - logits).max() <= 2e-4 * logits.std()
    assert theirs["tokens"] == ours["tokens"]


def test_what_transformers_4_saves_loads_here(tmp_path):
    checkpoint = build_checkpoint(tmp_path / "source", TINY)
    export_checkpoint(open_checkpoint(checkpoint), {}, tmp_path / "out")
    run_4(tmp_path / "out", tmp_path / "resaved")
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        (tmp_path / "resaved" / name).write_bytes((checkpoint / name).read_bytes())
    assert open_checkpoint(tmp_path / "resaved").config == open_checkpoint(checkpoint).config
    before, after = params_of(checkpoint), params_of(tmp_path / "resaved")
    for path in before:
        np.testing.assert_array_equal(after[path], before[path])
