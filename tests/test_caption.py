"""The caption command as a user runs it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from tests.pixels import normalize
from tests.tiny_llava import Tiny, build_checkpoint
from vigor_jax.caption import main
from vigor_jax.data.images.preprocessing import find_images, load_image, preprocess
from vigor_jax.data.text.conversation import TEMPLATES, encode_prompt
from vigor_jax.errors import InputError
from vigor_jax.hf.load import open_checkpoint

PROMPT = "What is on the table?"
# <image>, <pad>, and rows of the embedding that no token has: we never sample them.
NEVER = list(range(509, 576))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A random checkpoint and thirty pictures, some in a folder within the folder."""
    world = tmp_path_factory.mktemp("caption")
    build_checkpoint(world / "model", Tiny())
    (world / "images" / "more").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(30):
        folder = world / "images" / ("more" if i % 5 == 0 else "")
        Image.fromarray(rng.integers(0, 256, (40, 30 + i, 3), np.uint8)).save(
            folder / f"{i:02}.{'jPg' if i % 2 else 'png'}"
        )
    (world / "images" / "notes.txt").write_text("no image")
    return world


def options(world: Path, out: Path, *more: str) -> list[str]:
    places = ["--model", world / "model", "--images", world / "images", "--out", out]
    return [
        *map(str, places),
        "--prompt",
        PROMPT,
        "--sampling.max_new_tokens",
        "24",
        "--sampling.batch_size",
        "2",
        *more,
    ]


def start(arguments: list[str]) -> subprocess.Popen:
    command = [sys.executable, "-m", "vigor_jax.caption", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})


def read(out: Path) -> list[dict]:
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.fixture(scope="module")
def sampled(world):
    """Three candidates an image, in one go."""
    out = world / "whole.jsonl"
    main(options(world, out, "--sampling.num_candidates", "3"))
    return read(out)


def test_lines(world, sampled):
    names = list(find_images(world / "images"))
    assert len(names) == 30
    assert names == sorted(names)
    assert {"more/00.png", "01.jPg"} <= set(names)
    assert [(line["image"], line["candidate"]) for line in sampled] == [(name, c) for name in names for c in range(3)]
    for line in sampled:
        assert line.keys() == {"image", "prompt", "candidate", "text", "mean_logprob", "num_tokens", "finish_reason"}
        assert line["prompt"] == PROMPT
        assert line["mean_logprob"] < 0
        assert (line["num_tokens"] == 24) or line["finish_reason"] == "stop"
    assert len({line["text"] for line in sampled}) == 90


def test_greedy_caption_equals_transformers(world):
    """From the files on disk to the words, one caption an image and one image alone."""
    name = "more/05.jPg"
    out = world / "greedy.jsonl"
    main([*options(world, out, "--sampling.temperature", "0"), "--images", str(world / "images" / name)])
    (line,) = read(out)
    assert line.keys() == {"image", "prompt", "text", "mean_logprob", "num_tokens", "finish_reason"}
    assert line["image"] == "05.jPg"

    checkpoint = open_checkpoint(world / "model")
    ids = encode_prompt(checkpoint.tokenizer, TEMPLATES["v1"], PROMPT, image_token_id=509, num_image_tokens=4)
    pixels = preprocess(load_image(world / "images" / name), checkpoint.preprocessing)
    pixel_values = torch.tensor(normalize(pixels, checkpoint.preprocessing).transpose(2, 0, 1)[None])
    theirs = transformers.LlavaForConditionalGeneration.from_pretrained(world / "model", dtype=torch.float32).eval()
    wanted = theirs.generate(
        input_ids=torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        pixel_values=pixel_values,
        do_sample=False,
        max_new_tokens=24,
        suppress_tokens=NEVER,
        pad_token_id=0,
    )[0, len(ids) :]
    assert line["num_tokens"] == len(wanted)
    assert line["text"] == checkpoint.tokenizer.decode(wanted.tolist()).strip()


@pytest.mark.slow
def test_a_killed_run_continues(world, sampled, tmp_path):
    """Killed in the middle, its last line torn: the same command makes the file that one run makes."""
    out = tmp_path / "out" / "captions.jsonl"
    arguments = options(world, out, "--sampling.num_candidates", "3")
    process = start(arguments)
    deadline = time.monotonic() + 240
    while not (out.exists() and out.stat().st_size) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors
    before = len(read(out))
    assert 0 < before < 90
    with out.open("ab") as file:
        file.write(json.dumps(sampled[before]).encode()[:-7])

    # Whole images are kept as they stand.
    kept = out.read_bytes().splitlines(keepends=True)[: before // 3 * 3]
    process = start([*arguments, "--sampling.batch_size", "4"])
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert out.read_bytes().startswith(b"".join(kept))
    for line, wanted in zip(read(out), sampled, strict=True):
        assert line.pop("mean_logprob") == pytest.approx(wanted["mean_logprob"], abs=1e-4)
        assert line == {key: value for key, value in wanted.items() if key != "mean_logprob"}


@pytest.mark.main
def test_a_torn_image_is_made_again(world, sampled, tmp_path):
    """Candidates of one image belong together: two of three are not enough."""
    out = tmp_path / "captions.jsonl"
    arguments = options(world, out, "--sampling.num_candidates", "3")
    one_image = [*arguments, "--images", str(world / "images" / "01.jPg")]
    main(one_image)
    first = out.read_bytes()
    out.write_bytes(b"".join(first.splitlines(keepends=True)[:2]))
    main(one_image)
    assert out.read_bytes() == first


@pytest.mark.slow
@pytest.mark.main
def test_a_finished_run_loads_no_weights(world, tmp_path, monkeypatch):
    out = tmp_path / "captions.jsonl"
    arguments = [*options(world, out), "--images", str(world / "images" / "01.jPg")]
    main(arguments)
    first = out.read_bytes()
    monkeypatch.delattr("vigor_jax.inference.policy.load_model")
    main(arguments)
    assert out.read_bytes() == first


@pytest.mark.main
def test_other_settings_are_refused(world, tmp_path):
    out = tmp_path / "captions.jsonl"
    arguments = [*options(world, out), "--images", str(world / "images" / "01.jPg")]
    main(arguments)
    with pytest.raises(InputError, match=r"made with sampling.temperature 0.7, which is now 0.5; choose another --out"):
        main([*arguments, "--sampling.temperature", "0.5"])
    (tmp_path / "captions.jsonl.settings.json").unlink()
    with pytest.raises(InputError, match="was not written by this command"):
        main(arguments)


@pytest.mark.main
def test_errors_are_one_line_and_exit_code_2(world, tmp_path):
    for change, message in (
        (["--images", str(tmp_path / "none")], "is neither a file nor a folder"),
        (["--images", str(tmp_path)], "no file below"),
        (["--model", str(tmp_path)], "config.json"),
        (["--sampling.batch_size", "0"], "sampling.batch_size must be at least 1, got 0"),
        (["--dtype", "float16"], "dtype float16 needs a GPU"),
        (["--prompt", "What is it? " * 100], "fewer than the model's 512 positions"),
    ):
        with pytest.raises(InputError) as error:
            main([*options(world, tmp_path / "captions.jsonl"), *change])
        assert message in str(error.value)
        assert "\n" not in str(error.value)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    process = start([*options(world, tmp_path / "captions.jsonl"), "--images", str(broken)])
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2
    assert errors.splitlines()[-1].startswith("error: ")
    assert "broken.jpg: not a readable image" in errors
    assert "Traceback" not in errors
