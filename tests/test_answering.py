"""Kept answers: what a text holds never decides where a line ends."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from tests.tiny_llava import Tiny, build_checkpoint
from vigor_jax.answering import Answerer, Question, read_answers
from vigor_jax.decoding import SamplingConfig
from vigor_jax.hf.load import open_checkpoint
from vigor_jax.sharding import MeshConfig, make_mesh

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


@pytest.mark.parametrize("mark", BREAKS, ids=ascii)
def test_any_text_is_read_back_and_kept(world, tmp_path, mark):
    answerer = Answerer(open_checkpoint(world / "model"), "v1", make_mesh(MeshConfig(), jax.devices()[:1]))
    questions = [Question(f"{i}.png", world / f"{i}.png", f"What{mark}is {i}?") for i in range(3)]
    out = tmp_path / "answers.jsonl"
    texts = answerer.ask(questions[:2], out, GREEDY)

    # As a model says it whose texts hold such characters.
    lines = read_answers(out)
    lines[0]["text"] = f"one{mark}two"
    out.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), newline="")
    kept = out.read_bytes()
    assert answerer.ask(questions, out, GREEDY)[:2] == [f"one{mark}two", texts[1]]
    assert out.read_bytes().startswith(kept)
