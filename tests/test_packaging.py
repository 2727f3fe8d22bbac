"""What pyproject.toml says is supported is what the gate installs; what is installed holds all that commands need."""

import email
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import vigor_jax

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = ("vigor_jax", "detector_bridge")


def test_the_oldest_environment_has_the_oldest_jax():
    lowest = {each.name: str(each.specifier) for each in map(Requirement, PROJECT["dependencies"])}
    constraints = runpy.run_path(str(ROOT / ".ci" / "oldest.py"))["oldest"]()
    assert {"jax", "flax", "orbax-checkpoint"} <= constraints.keys()
    assert {name: f">={version}" for name, version in constraints.items()} == {
        name: lowest[name] for name in constraints
    }


def test_every_dependency_states_its_oldest_version():
    for requirement in map(Requirement, PROJECT["dependencies"]):
        assert [clause.operator for clause in requirement.specifier] == [">="], requirement


def test_the_gate_tries_the_oldest_and_the_newest_python():
    named = re.findall(r":: (3\.\d+)$", "\n".join(PROJECT["classifiers"]), re.MULTILINE)
    assert PROJECT["requires-python"] == f">={named[0]}"
    gate = (ROOT / ".ci" / "run").read_text()
    assert f"OLDEST={named[0]}" in gate
    assert f"NEWEST={named[-1]}" in gate


def test_the_version_is_said_once_and_told_alike():
    assert "version" not in PROJECT
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert str(citation["version"]) == released[0] == vigor_jax.__version__
    program = "import sys, vigor_jax; print(vigor_jax.__version__, 'importlib.metadata' in sys.modules)"
    # Isolated, with nothing of site-packages: from a checkout alone.
    command = [sys.executable, "-S", "-E", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == [vigor_jax.__version__, "False"]


def test_the_citation_names_the_software_and_the_paper():
    """By the schema of CFF 1.2.0, whose required keys these are; license and files are those of pyproject.toml."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["license"] in PROJECT["license"].split(" AND ")
    (paper,) = citation["references"]
    for work in (citation, paper):
        assert work["title"]
        assert all("name" in author or {"family-names", "given-names"} <= author.keys() for author in work["authors"])
    assert citation["message"]
    assert "2402.06118" in paper["url"]


def call_backend(source: Path, hook: str, out: Path) -> Path:
    """What the build backend makes of a source tree."""
    out.mkdir(parents=True, exist_ok=True)
    program = f"import sys; from setuptools import build_meta; print(build_meta.{hook}(sys.argv[1]))"
    command = [sys.executable, "-c", program, str(out)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, env=clean_environment())
    assert done.returncode == 0, done.stderr[-3000:]
    return out / done.stdout.splitlines()[-1]


def clean_environment() -> dict[str, str]:
    """Without the checkout on the path."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel and the source distribution of a copy of the checkout."""
    folder = tmp_path_factory.mktemp("built")
    ignored = shutil.ignore_patterns(".*", "build", "dist", "runs", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT, folder / "checkout", ignore=ignored)
    sdist = call_backend(folder / "checkout", "build_sdist", folder / "dist")
    return call_backend(folder / "checkout", "build_wheel", folder / "dist"), sdist


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def shipped(folder: Path) -> set[str]:
    """All files of a package in the checkout, the compiled left out."""
    paths = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(ROOT).as_posix() for path in paths}


@pytest.mark.slow
@pytest.mark.main
def test_the_wheel_holds_all_files_of_both_packages_and_nothing_else(built: tuple[Path, Path]) -> None:
    found = contents(built[0])
    info = f"vigor_jax-{vigor_jax.__version__}.dist-info/"
    files = {name: data for name, data in found.items() if not name.startswith(info)}
    assert files.keys() == shipped(ROOT / "vigor_jax") | shipped(ROOT / "detector_bridge")
    assert all(data == (ROOT / name).read_bytes() for name, data in files.items())
    # Of every kind that a command reads, lest the packages themselves have lost it.
    for name in ("vigor_jax/py.typed", "detector_bridge/py.typed", "vigor_jax/demo/demo.yaml",
                 "vigor_jax/rewards/language/wordnet.txt", "vigor_jax/report/page/template.html",
                 "vigor_jax/demo/checkpoints/policy/model.safetensors", "detector_bridge/detector.proto",
                 "vigor_jax/demo/checkpoints/detector/config.json", "detector_bridge/detector_pb2.pyi",
                 "detector_bridge/detector_pb2_grpc.py"):  # fmt: skip
        assert name in files
    for path in PROJECT["license-files"]:
        assert found[f"{info}licenses/{path}"] == (ROOT / path).read_bytes()
    metadata = email.message_from_bytes(found[f"{info}METADATA"])
    assert metadata["Version"] == vigor_jax.__version__
    assert metadata["License-Expression"] == PROJECT["license"]
    assert set(metadata.get_all("Provides-Extra")) == set(PROJECT["optional-dependencies"])


@pytest.mark.slow
@pytest.mark.main
def test_the_source_distribution_makes_the_same_wheel(built: tuple[Path, Path], tmp_path: Path) -> None:
    wheel, sdist = built
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    names = {path.relative_to(source).parts[0] for path in source.rglob("*")}
    assert {"LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "configs", *PACKAGES} <= names
    for folder in ("docs", "launch", "scripts"):  # the pages, and what they say to run
        found = {path.relative_to(source).as_posix() for path in (source / folder).rglob("*") if path.is_file()}
        assert found == shipped(ROOT / folder)
    assert not names & {"tests", "benchmarks", "findings", "runs"}
    assert contents(call_backend(source, "build_wheel", tmp_path / "dist")) == contents(wheel)


# The installed package

# A demo whose first stage takes seconds.
SMALL_DEMO = """
import vigor_jax
from vigor_jax import cli, train
from vigor_jax.demo import dataset
small = dataset.DemoDataConfig(unlabeled=2, annotated=12, held_out=8, asked=4, mme=1)
dataset.DemoDataConfig = lambda: small
print(vigor_jax.__file__, flush=True)
cli.run(train.main)
"""


@pytest.fixture(scope="module")
def installed(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The Python of an environment that has the wheel, and its site-packages.

    What the wheel depends on is found in the environment of the tests, behind the wheel: to install it all again would
    take minutes. A `.pth` file there is not read, so an editable install of the checkout is not found.
    """
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "-q", built[0]]
    subprocess.run(install, check=True, env=clean_environment())
    (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    others = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (packages / "of_the_tests.pth").write_text("".join(f"{other}\n" for other in others))
    return python, packages


def run_installed(python: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(python), *arguments]
    return subprocess.run(command, cwd=cwd, env=clean_environment(), capture_output=True, text=True, timeout=600)


def commands(packages: Path) -> list[str]:
    """All modules whose last lines run their `main`, as they are named behind `python -m`."""
    paths = (path for package in PACKAGES for path in (packages / package).rglob("*.py"))
    runs_main = re.compile(r'^if __name__ == "__main__":\n(?:.*\n)*? .*\bmain\b', re.MULTILINE)
    found = (path.relative_to(packages).with_suffix("") for path in paths if runs_main.search(path.read_text()))
    return sorted(".".join(name.parts).removesuffix(".__main__") for name in found)


@pytest.mark.slow
def test_every_command_of_the_installed_package_helps(installed: tuple[Path, Path], tmp_path: Path) -> None:
    python, packages = installed
    where = run_installed(
        python, tmp_path, "-c", "import vigor_jax as v, detector_bridge as d; print(v.__file__, d.__file__)"
    )
    assert where.stdout.split() == [str(packages / package / "__init__.py") for package in PACKAGES], where.stderr
    names = commands(packages)
    known = ("train", "caption", "evaluate", "export", "report", "plan", "demo.compare", "demo.build")
    assert {*(f"vigor_jax.{name}" for name in known), "detector_bridge.server", "detector_bridge.client"} <= set(names)
    for name in names:
        done = run_installed(python, tmp_path, "-m", name, "--help")
        assert done.returncode == 0, f"{name}: {done.stderr[-3000:]}"
        assert f"python -m {name}" in done.stdout or "usage:" in done.stdout, name
        assert "Traceback" not in done.stderr, name
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.main
def test_the_installed_package_runs_the_first_stage_of_the_demo(installed: tuple[Path, Path], tmp_path: Path) -> None:
    from vigor_jax.demo.config import demo_config

    python, packages = installed
    stage = demo_config().run.stages[0]
    done = run_installed(python, tmp_path, "-c", SMALL_DEMO, "--run.stages", stage)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == [str(packages / "vigor_jax" / "__init__.py")]
    run = tmp_path / "runs" / "demo"
    assert (run / "checkpoints" / stage).is_dir()
    assert len(json.loads((run / "data" / "scenes.json").read_text())) < 40  # a small one, not the users'
    assert yaml.safe_load((run / "config.yaml").read_text())["run"]["stages"] == [stage]
