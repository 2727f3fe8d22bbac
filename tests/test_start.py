"""What a command imports before it has work: nothing that its options do not need."""

import json
import subprocess
import sys

import pytest

# Half a second to two each, of those that --help and scores of saved answers need not wait for.
HEAVY = {"flax", "grain", "grpc", "inflect", "jax", "nltk", "optax", "orbax", "pyarrow", "scipy", "tensorstore"}
PROGRAM = """
import runpy
import sys

_, module, *arguments = sys.argv
sys.argv = [module, *arguments]
try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
except SystemExit as end:
    assert not end.code
print(*{name.partition(".")[0] for name in sys.modules})
"""


def imported(module: str, *arguments: str) -> set[str]:
    """Packages that a command has imported when it ends."""
    command = [sys.executable, "-c", PROGRAM, module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("command", ["train", "caption", "export", "evaluate"])
def test_help_needs_no_jax(command):
    arguments = ["pope"] if command == "evaluate" else []
    found = imported(f"vigor_jax.{command}", *arguments, "--help")
    assert "jsonargparse" in found
    assert not found & HEAVY


def test_saved_answers_are_scored_without_jax(tmp_path):
    questions, answers = tmp_path / "random.json", tmp_path / "answers.jsonl"
    question = {"question_id": 1, "image": "a.jpg", "text": "Is there a dog in the image?", "label": "yes"}
    questions.write_text(json.dumps(question))
    answers.write_text(json.dumps({"question_id": 1, "answer": "Yes."}))
    given = ["--questions", questions, "--answers", answers, "--out", tmp_path / "out"]
    found = imported("vigor_jax.evaluate", "pope", *map(str, given))
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["mean"]["accuracy"] == 1
    assert "numpy" in found
    assert not found & HEAVY
