"""The main job by its commands, in real processes: load, caption, fine-tune, resume, export, transformers."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.tiny_llava import Tiny, build_checkpoint
from vigor_jax import cli, train

ROOT = Path(__file__).resolve().parents[1]
PHOTOS = ROOT.parent / "shared" / "data" / "photos"
TINY = Tiny()
WORDS = ("man", "dog", "red circle", "wave", "bench", "car", "traffic light")
# Compiled as users compile it.
CPU = {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}


def write_photographs(folder: Path, count: int = 12) -> list[str]:
    """Smooth pictures of many sizes and modes, since no photograph may be shipped."""
    folder.mkdir(parents=True)
    rng, names = np.random.default_rng(0), []
    for i in range(count):
        small = PIL.Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        image = small.resize((60 + 7 * i, 90 - 4 * i), PIL.Image.Resampling.BICUBIC)
        name = f"{'deep/' if i % 3 == 0 else ''}{i:03}.{'png' if i % 2 else 'jpg'}"
        (folder / name).parent.mkdir(exist_ok=True)
        (image.convert("L") if i == 5 else image).save(folder / name)
        names.append(name)
    return names


def write_conversations(path: Path, names: list[str]) -> Path:
    rng = np.random.default_rng(1)
    examples = []
    for i, name in enumerate(names):
        answer = "The image shows a " + " and a ".join(rng.choice(WORDS, 1 + i % 3)) + "."
        turns = [{"from": "human", "value": "<image>\nWhat is there?"}, {"from": "gpt", "value": answer}]
        examples.append({"id": f"example-{i}", "image": name, "conversations": turns})
    path.write_text(json.dumps(examples))
    return path


@pytest.fixture
def world(tmp_path):
    """A checkpoint, images and conversations, and the arguments that train on them."""
    names = write_photographs(tmp_path / "images")
    write_conversations(tmp_path / "chat.json", names)
    weights = build_checkpoint(tmp_path / "model", TINY) / "model.safetensors"
    tensors = load_file(weights)
    # transformers may choose rows of the vocabulary that no token has, sampling here never does; so make them unlikely.
    tensors["language_model.lm_head.weight"][TINY.image_token_id :] = 0
    save_file(tensors, weights, metadata={"format": "pt"})
    return tmp_path


def arguments(world: Path, **changes) -> list[str]:
    options = {
        "run.dir": world / "run",
        "model.path": world / "model",
        "model.dtype": "float32",
        "sft.data": world / "chat.json",
        "sft.images": world / "images",
        "sft.batch_size": 4,
        "sft.epochs": 4,
        "sft.learning_rate": 3e-3,
        "sft.max_length": 256,
        "sft.save_every": 3,
    } | {name.replace("__", "."): value for name, value in changes.items()}
    return [str(part) for name, value in options.items() for part in (f"--{name}", value)]


def environment(world: Path) -> dict[str, str]:
    cache = {"JAX_COMPILATION_CACHE_DIR": str(world / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return os.environ | CPU | cache


def start(world: Path, module: str, given: list[str], **more) -> subprocess.Popen:
    command = [sys.executable, "-m", f"vigor_jax.{module}", *given]
    return subprocess.Popen(command, env=environment(world) | more, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def run(world: Path, module: str, given: list[str]) -> str:
    process = start(world, module, given)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors[-3000:]
    return errors


def curve(run_dir: Path) -> list[tuple]:
    lines = [json.loads(line) for line in (run_dir / "metrics" / "sft.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["grad_norm"]) for line in lines]


def captions(world: Path, model: Path, out: Path, images: Path) -> dict[str, str]:
    options = ["--sampling.temperature", "0", "--sampling.max_new_tokens", "24", "--prompt", "What is there?"]
    given = ["--model", str(model), "--images", str(images), "--out", str(out), "--dtype", "float32", *options]
    run(world, "caption", given)
    return {line["image"]: line["text"] for line in map(json.loads, out.read_text().splitlines())}


def transformers_caption(model: Path, image: Path) -> str:
    """transformers' own answer to the training prompt."""
    llava = transformers.LlavaForConditionalGeneration.from_pretrained(model, dtype=torch.float32)
    processor = transformers.AutoProcessor.from_pretrained(model)
    system = (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    )
    text = f"{system} USER: <image>\nWhat is there? ASSISTANT:"
    inputs = processor(images=PIL.Image.open(image).convert("RGB"), text=text, return_tensors="pt")
    tokens = llava.generate(**inputs, max_new_tokens=24, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    return processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()


@pytest.mark.slow
@pytest.mark.main
def test_main_job(world):
    """Killed while it trains, resumed, exported; the export captions in transformers as it does here, and better."""
    images = world / "images"
    before = captions(world, world / "model", world / "before.jsonl", images)
    assert len(before) == 12

    process = start(world, "train", arguments(world))
    deadline = time.monotonic() + 300
    while not (world / "run" / "checkpoints" / "sft" / "3").exists():
        assert process.poll() is None, process.stderr.read()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run(world, "train", arguments(world))
    steps = [step for step, _, _ in curve(world / "run")]
    assert steps == list(range(1, 13))
    losses = [loss for _, loss, _ in curve(world / "run")]
    assert np.mean(losses[-3:]) < 0.8 * losses[0]

    export = world / "run" / "export"
    after = captions(world, export, world / "after.jsonl", images)
    assert after != before
    for name in list(after)[:4]:
        assert after[name] == transformers_caption(export, images / name)

    again = run(world, "train", arguments(world))
    assert "all 12 updates are done" in again
    assert "holds step 12 already" in again

    run(
        world,
        "export",
        ["--checkpoint", f"{world}/run/checkpoints/sft", "--out", f"{world}/llava", "--layout", "llava"],
    )
    run(world, "export", ["--checkpoint", f"{world}/llava", "--out", f"{world}/back", "--layout", "llava-hf"])
    ours, theirs = (load_file(place / "model.safetensors") for place in (world / "back", export))
    rows = TINY.image_token_id
    for name in theirs:
        kept = slice(rows) if "embed_tokens" in name or "lm_head" in name else slice(None)
        assert torch.equal(ours[name][kept], theirs[name][kept]), name


@pytest.mark.slow
@pytest.mark.skipif(not PHOTOS.is_dir(), reason="no photographs next to the repository")
def test_real_photographs(world):
    names = sorted(path.name for path in PHOTOS.glob("*.jpg"))
    write_conversations(world / "chat.json", names)
    run(world, "train", arguments(world, sft__images=PHOTOS, sft__epochs=1))
    export = world / "run" / "export"
    for name, text in captions(world, export, world / "photos.jsonl", PHOTOS).items():
        assert text == transformers_caption(export, PHOTOS / name)


@pytest.mark.slow
def test_two_processes_train_and_export_what_one_does(world):
    run(world, "train", arguments(world, run__dir=world / "one", mesh__fsdp=1))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    processes = []
    for index in range(2):
        place = {"distributed__coordinator": coordinator, "distributed__num_processes": 2}
        given = arguments(world, run__dir=world / "two", distributed__process_id=index, mesh__fsdp=2, **place)
        processes.append(start(world, "train", given))
    for process in processes:
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors[-3000:]
    one, two = (np.array(curve(world / name)) for name in ("one", "two"))
    np.testing.assert_allclose(two[:, 1], one[:, 1], rtol=1e-5)
    ours, theirs = (load_file(world / name / "export" / "model.safetensors") for name in ("two", "one"))
    assert ours.keys() == theirs.keys()
    for name in theirs:
        # Twelve updates of AdamW, which turns rounding of tiny gradients into steps of up to the learning rate.
        assert torch.linalg.norm(ours[name] - theirs[name]) <= 1e-3 * torch.linalg.norm(theirs[name]), name


def cut_shard(world: Path) -> None:
    tensors = load_file(world / "model" / "model.safetensors")
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    names = list(tensors)
    save_file({name: tensors[name] for name in names[:9]}, world / "model" / first)
    weight_map = {name: first if name in names[:9] else second for name in names}
    (world / "model" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (world / "model" / "model.safetensors").unlink()


def malform_line(world: Path) -> None:
    lines = [json.dumps(example) for example in json.loads((world / "chat.json").read_text())]
    lines[6] = lines[6][:-20]
    (world / "chat.json").write_text("\n".join(lines))


def keep_only_text(world: Path) -> None:
    examples = json.loads((world / "chat.json").read_text())
    examples[3]["conversations"] = examples[3]["conversations"][:1]
    (world / "chat.json").write_text(json.dumps(examples))


BAD = {
    "missing shard": (cut_shard, {}, "model-00002-of-00002.safetensors"),
    "corrupt shard": (lambda w: (w / "model" / "model.safetensors").write_bytes(b"x" * 99), {}, "model.safetensors"),
    "missing tokenizer": (lambda w: (w / "model" / "tokenizer.json").unlink(), {}, "no tokenizer.json"),
    "unreadable image": (lambda w: (w / "images" / "001.png").write_bytes(b"no image"), {}, "001.png"),
    "missing image": (lambda w: (w / "images" / "001.png").unlink(), {}, "001.png"),
    "malformed line": (malform_line, {}, "line 7"),
    "no answer": (keep_only_text, {}, "example-3"),
    "no such data": (lambda w: None, {"sft__data": "nowhere.json"}, "nowhere.json"),
    "mesh": (lambda w: None, {"mesh__fsdp": 3}, "does not divide the 1 devices"),
    "batch": (lambda w: None, {"sft__batch_size": 64}, "fewer than one batch of 64"),
    "too long for the model": (lambda w: None, {"sft__max_length": 4096}, "at most 512"),
    "image cut": (lambda w: None, {"sft__max_length": 16}, "image"),
    "nothing to freeze": (lambda w: None, {"sft__freeze": "vision_towr"}, "vision_tower"),
    "no coordinator's count": (lambda w: None, {"distributed__coordinator": "localhost:1"}, "num_processes"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_line_and_exit_code_2(world, what, capsys):
    spoil, changes, message = BAD[what]
    spoil(world)
    with pytest.raises(SystemExit) as end:
        cli.run(lambda: train.main(arguments(world, **changes)))
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert end.value.code == 2
    assert len(errors) == 1
    assert message in errors[0]


@pytest.mark.slow
def test_checkpoint_of_another_config_is_refused(world, capsys):
    train.main(arguments(world, sft__epochs=1))
    with pytest.raises(SystemExit) as end:
        cli.run(lambda: train.main(arguments(world, sft__epochs=1, sft__learning_rate=1e-4)))
    assert end.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "was made with sft.learning_rate 0.003, which is now 0.0001; this makes sft, export stale" in error


def test_export_without_checkpoint_is_refused(world, capsys):
    with pytest.raises(SystemExit) as end:
        cli.run(lambda: train.main(arguments(world, run__stages="export")))
    assert end.value.code == 2
    assert "no checkpoint in" in capsys.readouterr().err
