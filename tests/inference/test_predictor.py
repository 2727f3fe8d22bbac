"""Kept answers: what a text holds never decides where a line ends."""

import errno
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from tests.tiny_llava import Tiny, build_checkpoint
from vigor_jax.errors import InputError
from vigor_jax.hf.load import open_checkpoint
from vigor_jax.inference.predictor import Predictor, Question, read_answers
from vigor_jax.inference.sampling_config import SamplingConfig
from vigor_jax.parallel.config import MeshConfig
from vigor_jax.parallel.sharding import make_mesh
from vigor_jax.run_lock import RunLock

GREEDY = SamplingConfig(num_candidates=1, temperature=0, max_new_tokens=4, batch_size=2)
# All that str.splitlines() takes for the end of a line.
BREAKS = ("\n", "\r", "\r\n", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = tmp_path_factory.mktemp("answering")
    build_checkpoint(world / "model", Tiny())
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (30, 30, 3), np.uint8)).save(world / f"{i}.png")
    return world


@pytest.fixture(scope="module")
def predictor(world):
    """One for all tests: what it answers and keeps is told by the file that it is given."""
    return Predictor(open_checkpoint(world / "model"), "v1", make_mesh(MeshConfig(), jax.devices()[:1]))


@pytest.mark.parametrize("mark", BREAKS, ids=ascii)
def test_any_text_is_read_back_and_kept(world, predictor, tmp_path, mark):
    questions = [Question(f"{i}.png", world / f"{i}.png", f"What{mark}is {i}?") for i in range(3)]
    out = tmp_path / "answers.jsonl"
    texts = predictor.ask(questions[:2], out, GREEDY)

    # As a model says it whose texts hold such characters.
    lines = read_answers(out)
    lines[0]["text"] = f"one{mark}two"
    out.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), newline="")
    kept = out.read_bytes()
    assert predictor.ask(questions, out, GREEDY)[:2] == [f"one{mark}two", texts[1]]
    assert out.read_bytes().startswith(kept)


@pytest.fixture
def asked(world, predictor, tmp_path):
    """A model, a question that it has answered, and the file of the answer."""
    questions = [Question("0.png", world / "0.png", "What is it?")]
    predictor.ask(questions, tmp_path / "answers.jsonl", GREEDY)
    return predictor, questions, tmp_path / "answers.jsonl"


def test_two_processes_do_not_write_one_file(asked):
    predictor, questions, out = asked
    program = (
        "import sys, pathlib; from vigor_jax.run_lock import RunLock\n"
        f"with RunLock(pathlib.Path({str(out.parent)!r}), file={out.name!r}): print('held', flush=True); input()"
    )
    other = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    with pytest.raises(InputError, match=f"answers.jsonl is in use by process {other.pid} .* choose another --out"):
        predictor.ask(questions, out, GREEDY)
    with RunLock(out.parent), RunLock(out.parent, file="others.jsonl"):
        pass  # other locks than that of this file
    other.kill()
    other.communicate()
    assert len(predictor.ask(questions, out, GREEDY)) == 1  # the lock of a process that was killed is nobody's
    assert {path.name for path in out.parent.iterdir()} == {out.name, f"{out.name}.settings.json"}


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_what_is_complete_is_read_where_nothing_can_be_written(asked, monkeypatch, number):
    predictor, questions, out = asked

    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pwrite", refuse)
    assert len(predictor.ask(questions, out, GREEDY)) == 1
    assert {path.name for path in out.parent.iterdir()} == {out.name, f"{out.name}.settings.json"}


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff", b'"x"', b"[" * 100_000])
def test_damaged_settings_of_answers_are_one_line(asked, content):
    predictor, questions, out = asked
    out.with_name(f"{out.name}.settings.json").write_bytes(content)
    with pytest.raises(InputError, match=r"answers.jsonl.settings.json is damaged.*choose another --out"):
        predictor.ask(questions, out, GREEDY)


@pytest.mark.parametrize("line", ["1", "[]", "null", '{"image": 1}', "x"])
def test_a_damaged_line_of_answers_is_named(asked, line):
    predictor, questions, out = asked
    out.write_text(line + "\n" + out.read_text())
    with pytest.raises(InputError, match=r"answers.jsonl:1: expected an answer"):
        predictor.ask(questions, out, GREEDY)
