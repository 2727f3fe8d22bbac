"""What pyproject.toml says is supported is what the gate installs."""

import re
import runpy
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


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
