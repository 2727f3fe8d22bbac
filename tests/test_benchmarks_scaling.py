"""`benchmarks/scaling.py`: its configs exist, its tables are those of the page, and it writes them there."""

import json

import pytest

from benchmarks.scaling import NOT_PLANNED, TABLES, file_of, line, markdown, replaced
from tests.stages.sft_world import ROOT
from vigor_jax import cli
from vigor_jax.config import TrainConfig
from vigor_jax.plan.hardware import GIB, parse_topology

PAGE = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", TABLES)
def test_the_page_has_the_rows_of_the_table(name):
    table = TABLES[name]
    _, rule, *rows = PAGE[PAGE.index(line(table.head)) :].split("\n\n")[0].splitlines()
    assert rule == line(["---"] * len(table.head))
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [tuple(row[: len(table.rows[0].labels)]) for row in cells] == [row.labels for row in table.rows]
    assert {len(row) for row in cells} == {len(table.head)}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "ppo")) for name in TABLES])
def test_its_configs_and_machines_exist(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    for row in TABLES[name].rows:
        assert cli.parse(TrainConfig, row.arguments, description="").run.stages
        assert parse_topology(row.topology).num_chips


def test_plans_that_are_kept_are_not_made_again(tmp_path, monkeypatch):
    """What has none, where nothing can compile, says so."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    table = TABLES["dpo"]
    estimates = [
        {"stage": "dpo", "name": name, "arguments": 2 * GIB, "peak": size * GIB, "memory": 8 * GIB}
        for name, size in (("reference", 3), ("update", 5))
    ]
    found = {"fits": True, "estimates": estimates, "stages": [{"device_hours": 4.04, "hours": 1.01}]}
    (tmp_path / file_of(table.rows[0])).write_text(json.dumps(found))
    page = f"Before.\n\n{line(table.head)}\n| --- |\n| old |\n\nBehind.\n"
    made = replaced(page, table, markdown(table, tmp_path))
    assert made.startswith("Before.\n\n| config |")
    assert made.endswith("|\n\nBehind.\n")
    rows = made.splitlines()[4:7]
    assert rows[0].endswith("| `a100-80g:4` | 2.0 | 5.0 | 3.0 | 8.0 | 4 | 1 |")
    assert [NOT_PLANNED in row for row in rows] == [False, True, True]
    with pytest.raises(SystemExit, match="no table with the head"):
        replaced("Before.\n", table, "")
