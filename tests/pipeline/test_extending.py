"""The stage that docs/extending.md adds, applied to a copy of the package."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys
from pathlib import Path

from vigor_jax import cli
from vigor_jax.config import TrainConfig
from vigor_jax.data.records.store import write_part
from vigor_jax.pipeline.table import make_stages
from vigor_jax.records import Target
from vigor_jax.stages.stage import RunContext

run = Path(sys.argv[1])
write_part(run / "targets", 0, 1, [Target(f"{n}.png", "?", "word " * n) for n in range(4)], Target)
options = ["--run.dir", str(run), "--run.stages", "select,lengths", "--model.path", "m", *sys.argv[2:]]
config = cli.parse(TrainConfig, options, description="")
context = RunContext(run, str(run), config.model, None, config.mesh, config.inference_mesh)
stages = make_stages(config)


class Progress:
    def begin(self, result):
        print("begun", result)


stages["lengths"].run(context, Progress())
print(dict(stages["lengths"].results(context)[0].settings))
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A copy of the package with the files and the changes that the page shows."""
    copy = tmp_path_factory.mktemp("copy")
    for name in ("vigor_jax", "detector_bridge"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "checkpoints"))
    page = (ROOT / "docs" / "extending.md").read_text()
    section = page[page.index("## A stage") : page.index("## A loss")]
    ((name, code),) = re.findall(r"`(\S+\.py)`:\n\n```python\n(.*?)```", section, re.DOTALL)
    (diff,) = re.findall(r"```diff\n(.*?)```", section, re.DOTALL)
    (copy / name).write_text(code)
    done = subprocess.run(["git", "apply", "--verbose"], input=diff, cwd=copy, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert 1 + len(re.findall(r"^\+\+\+ ", diff, re.MULTILINE)) <= 3  # files
    return copy


def run(package: Path, folder: Path, *options: str) -> list[str]:
    command = [sys.executable, "-c", PROGRAM, str(folder), *options]
    done = subprocess.run(command, cwd=package, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.main
def test_the_documented_stage_works(package, tmp_path):
    assert run(package, tmp_path / "run") == ["begun lengths", "{'lengths.least': 1}"]
    assert json.loads((tmp_path / "run" / "lengths.json").read_text()) == [1, 2, 3]
    assert run(package, tmp_path / "run", "--lengths.least", "2")[1] == "{'lengths.least': 2}"
    assert json.loads((tmp_path / "run" / "lengths.json").read_text()) == [2, 3]
