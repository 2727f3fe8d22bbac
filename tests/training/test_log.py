"""The log of a training run on resumption."""

import json
from pathlib import Path

import pytest

from vigor_jax.errors import InputError
from vigor_jax.training.log import keep_steps

LINES = "".join(json.dumps({"step": step, "loss": 0.5}) + "\n" for step in (1, 2, 3))


@pytest.mark.parametrize("end", ["", '{"step": 4, "lo', "\0\0\0"])
def test_later_steps_and_what_a_kill_cut_short_go(tmp_path: Path, end: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(LINES + end)
    keep_steps(tmp_path / "metrics.jsonl", 2)
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == LINES.splitlines()[:2]


@pytest.mark.parametrize("line", [b"x", b"{}", b"[]", b"1", b"\xff", b'{"step": "2"}', b"[" * 100_000, b"\0"])
def test_a_damaged_line_is_named_and_nothing_is_lost(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line + b"\n" + LINES.encode())
    with pytest.raises(InputError, match=r"metrics.jsonl:1: expected the metrics of a step as JSON; remove that line"):
        keep_steps(path, 2)
    assert path.read_bytes() == line + b"\n" + LINES.encode()
