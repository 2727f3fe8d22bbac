"""The comparison of variants: its table of them, its options, and its file of results, which later runs add to."""

import contextlib
import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pipeline.loop_world import ROOT
from vigor_jax.config import TrainConfig
from vigor_jax.demo import compare as command
from vigor_jax.demo.dataset import DemoDataConfig
from vigor_jax.demo.results import COLUMNS, Results, plot, summarize, to_markdown
from vigor_jax.demo.shared import counted, counting
from vigor_jax.demo.variants import VARIANTS, SharedRecords, Variant, choose, replaced
from vigor_jax.errors import InputError

SETTINGS = command.settings(DemoDataConfig())
BASE, ALL = choose(["base", "all"])
ASKED = ("chair_i", "c3", "chair_s", "recall", "words", "repeats", "color", "count", "place", "any", "pope", "seconds")


def figures(value: float) -> dict[str, float]:
    """A value for each column, none like another."""
    return {column.name: value + number / 100 for number, column in enumerate(COLUMNS)}


def strict(path: Path) -> Any:
    """A file's JSON; NaN is none."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    return json.loads(path.read_text(), parse_constant=refuse)


def refusal(call: Any, *arguments: Any) -> str:
    with pytest.raises(InputError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# The table of variants


def test_variants_can_be_told_apart() -> None:
    for kind in ("name", "label", "description"):
        shown = [getattr(variant, kind) for variant in VARIANTS]
        assert len(set(shown)) == len(shown)
        assert all(text and text.isprintable() and "|" not in text for text in shown)
    assert all(variant.name.isidentifier() for variant in VARIANTS)
    # A run's directory is called after its variant, and what several take from is next to it.
    assert not {variant.name for variant in VARIANTS} & {*get_args(SharedRecords), "data"}
    ways = [(sorted(v.overrides.items()), v.stages, v.judged, v.rounds, v.preferences) for v in VARIANTS]
    assert all(one not in ways[:number] for number, one in enumerate(ways))


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_overrides_are_options_of_the_config_and_change_nothing_else(variant: Variant) -> None:
    before = command._config(Path("data"), 0)
    after = replaced(before, variant.overrides)
    assert isinstance(after, TrainConfig)

    def flat(config: Any, prefix: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for field in dataclasses.fields(config):
            value = getattr(config, field.name)
            inner = dataclasses.is_dataclass(value)
            found |= flat(value, f"{prefix}{field.name}.") if inner else {prefix + field.name: value}
        return found

    changed = {key: value for key, value in flat(after).items() if value != flat(before)[key]}
    assert changed.items() <= dict(variant.overrides).items()
    same = {key: value for key, value in variant.overrides.items() if key not in changed}
    assert all(flat(before)[key] == value for key, value in same.items())


def test_an_override_that_is_no_option_is_a_defect() -> None:
    for key in ("select.nothing", "nothing.refine", "select.refine.deeper"):
        with pytest.raises((TypeError, AttributeError)):
            replaced(command._config(Path("data"), 0), {key: True})


def test_variants_are_chosen_by_name_each_once() -> None:
    assert [variant.name for variant in choose(["all", "base", "all"])] == ["all", "base"]
    message = refusal(choose, ["base", "faiso"])
    assert "'faiso' is no variant" in message
    assert all(variant.name in message for variant in VARIANTS)
    assert "got none" in refusal(choose, [])


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--variants", "base,unknown"], "'unknown' is no variant; known ones are base, random,"),
        (["--variants", " , "], "--variants: expected names with commas between them, got none"),
        (["--seeds", "0"], "--seeds: expected at least 1, got 0"),
        (["--first-seed", "-1"], "--first-seed: expected at least 0, got -1"),
        (["--seeds", "many"], "argument --seeds: invalid int value: 'many'"),
        (["--seed", "1", "--nothing"], "--help lists the options"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(tmp_path: Path, options: list[str], message: str) -> None:
    assert message in refusal(command.main, ["--out", str(tmp_path / "out"), *options])
    assert not (tmp_path / "out").exists()


def test_help_shows_all_options_variants_and_columns(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        command.main(["--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    for option in ("--variants", "--seeds", "--first-seed", "--out", "--json"):
        assert f"\n  {option} " in shown
    for variant in VARIANTS:
        assert f"\n  {variant.name} " in shown
        assert variant.description in shown
    for name in ASKED:
        assert f"\n  {name} " in shown


def test_the_command_refuses_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"accuracy": 1}')
    run = [sys.executable, "-m", "vigor_jax.demo.compare", "--json", "other.json"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: other.json holds no results of this command, and is left as it is; give another file as --json"
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["other.json"]


# The file


def test_a_file_has_all_columns_and_what_made_them(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.json"
    results = Results(path, SETTINGS)
    results.add(ALL, 3, figures(0.5))
    results.add(BASE, 3, figures(0.25) | {"place": math.nan})
    results.add_auc("reward_auc", 3, {"object": 0.9, "place": math.nan})
    content = strict(path)
    assert set(ASKED) <= content["columns"].keys()
    base, tuned = content["runs"]  # in the order of the table
    assert (base["variant"], tuned["variant"], base["seed"]) == ("base", "all", 3)
    assert base["place"] is None
    assert {name: tuned[name] for name in ASKED} == {name: figures(0.5)[name] for name in ASKED}
    assert {"version", "commit"} <= base.keys()
    assert content["variants"]["all"]["overrides"]["score.streams"] == ["detector", "reward_model"]
    assert content["settings"]["data"]["held_out"] == DemoDataConfig().held_out
    assert content["settings"]["sft"]["learning_rate"] > 0
    assert content["summary"]["base"]["place"] == {"mean": None, "std": None, "seeds": 0}
    assert content["summary"]["all"]["words"]["std"] is None
    assert content["reward_auc"] == {"3": {"object": 0.9, "place": None}}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-100, 100) | st.just(math.nan), min_size=1, max_size=8))
def test_means_and_standard_deviations(values: list[float]) -> None:
    found, numbers = summarize(values), [value for value in values if not math.isnan(value)]
    assert found["seeds"] == len(numbers)
    expected = (np.mean(numbers) if numbers else math.nan, np.std(numbers, ddof=1) if len(numbers) > 1 else math.nan)
    np.testing.assert_allclose((found["mean"], found["std"]), expected, atol=1e-9)


def test_results_are_added_to_an_earlier_file_and_stay(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    Results(path, SETTINGS).add(BASE, 0, figures(0.1))
    first = strict(path)["runs"]
    results = Results(path, SETTINGS)
    assert results.has(BASE, 0)
    assert not results.has(BASE, 1)
    assert not results.has(ALL, 0)
    results.add(BASE, 0, figures(0.9))  # what is there stays
    results.add(BASE, 1, figures(0.3))
    results.add(ALL, 0, figures(0.7))
    assert strict(path)["runs"][:1] == first
    assert [(run["variant"], run["seed"]) for run in strict(path)["runs"]] == [("base", 0), ("base", 1), ("all", 0)]
    summary = strict(path)["summary"]["base"]["chair_i"]
    assert summary == {"mean": pytest.approx(0.2), "std": pytest.approx(0.2 / math.sqrt(2)), "seeds": 2}


def test_two_processes_may_add_to_one_file(tmp_path: Path) -> None:
    one, other = (Results(tmp_path / "results.json", SETTINGS) for _ in range(2))
    one.add(BASE, 0, figures(0.1))
    other.add(BASE, 1, figures(0.2))
    one.add(ALL, 0, figures(0.3))
    one.add_auc("reward_auc", 0, {"object": 1.0})
    other.add_auc("reward_auc", 1, {"object": 0.5})
    content = strict(tmp_path / "results.json")
    assert [(run["variant"], run["seed"]) for run in content["runs"]] == [("base", 0), ("base", 1), ("all", 0)]
    assert content["reward_auc"].keys() == {"0", "1"}


def change(content: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    *path, last = key.split("/")
    inner = content
    for name in path:
        inner = inner[name]
    inner[last] = value
    return content


@pytest.mark.parametrize(
    ("key", "value", "fragment"),
    [
        ("settings/data/held_out", 7, "settings.data.held_out is 7 there and 400 here"),
        ("settings/sft/learning_rate", 1.0, "settings.sft.learning_rate is 1.0 there and 0.0003 here"),
        ("settings/sample/sampling/temperature", 1, "settings.sample.sampling.temperature is 1 there and 0.7 here"),
        ("settings/sft", None, "settings.sft is None there"),
        ("variants/all/rounds", 2, "variants.all.rounds is 2 there and 1 here"),
        ("variants/all/overrides/select.refine", "none", "variants.all.overrides is"),
        ("variants/all/overrides", {}, "variants.all.overrides is [] there and [('score.streams', ["),
    ],
)
def test_a_file_with_other_settings_is_refused(tmp_path: Path, key: str, value: Any, fragment: str) -> None:
    path = tmp_path / "results.json"
    Results(path, SETTINGS).add(ALL, 0, figures(0.1))
    path.write_text(json.dumps(change(strict(path), key, value)))
    before = path.read_bytes()
    message = refusal(Results, path, SETTINGS)
    assert f"{path} holds results with other settings: {fragment}" in message
    assert message.endswith("give another file as --json")
    assert path.read_bytes() == before


def test_a_file_of_a_program_with_more_or_fewer_options_and_variants_is_taken(tmp_path: Path) -> None:
    """A stage that came later has its own options; what was measured before it stays comparable."""
    path = tmp_path / "results.json"
    Results(path, SETTINGS).add(ALL, 0, figures(0.1))
    content = strict(path)
    del content["settings"]["select"]
    content["settings"]["later"] = {"rate": 1}
    content["variants"]["later"] = content["variants"]["all"] | {"label": "Later", "overrides": {"later.rate": 2}}
    content["runs"].append(content["runs"][0] | {"variant": "later"})
    path.write_text(json.dumps(content))
    results = Results(path, SETTINGS)
    results.add(BASE, 0, figures(0.1))
    assert [run["variant"] for run in strict(path)["runs"]] == ["base", "all", "later"]
    assert "| Later |" in to_markdown(results)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "results",
        "[]",
        "{}",
        "[{}]",
        '[{"base": {"chair_i": 0.1}}]',
        '{"settings": {}, "variants": {}, "runs": [{}], "reward_auc": {}}',
        '{"settings": {}, "variants": {}, "runs": [{"variant": "base", "seed": 0}], "reward_auc": {}}',
        '{"settings": [], "variants": {}, "runs": [], "reward_auc": {}}',
        '{"settings": {}, "variants": {"base": {}}, "runs": [], "reward_auc": {}}',
        '{"settings": {}, "variants": {}, "runs": 3, "reward_auc": {}}',
        '{"settings": {}, "variants": {}, "runs": [], "reward_auc": {"0": {"object": "high"}}}',
        '{"settings": {}, "variants": {}, "runs": [], "reward_auc": {}, "verifier_auc": {"0": {"word": "high"}}}',
        '{"settings": {}, "variants": {"base": {"label": "base", "overrides": {}}}, "reward_auc": {}, '
        '"runs": [{"variant": "base", "seed": 0, "recall": "high"}]}',
        "[" * 100_000,
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(content)
    assert f"{path} holds no results of this command" in refusal(Results, path, SETTINGS)
    assert path.read_text() == content


# The table and the command over a whole file


def test_the_table_has_means_over_seeds(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.json", SETTINGS)
    results.add(ALL, 0, figures(0.1) | {"words": 20.0})
    results.add(ALL, 1, figures(0.3) | {"words": 26.0, "repeats": math.nan})
    results.add(BASE, 0, {key: value for key, value in figures(0.5).items() if key != "taught"})
    lines = to_markdown(results).splitlines()
    head, _, base, tuned = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    assert head == ["variant", *(column.label for column in COLUMNS)]
    cells = dict(zip(head, tuned, strict=True))
    assert cells["variant"] == "All"
    assert cells["CHAIR_i"] == "20.0 ±14.1"
    assert cells["words"] == "23.0 ±4.2"
    repeats = [column.name for column in COLUMNS].index("repeats")
    assert cells["repeats"] == f"{100 * (0.1 + repeats / 100):.1f}"
    assert base[0] == "base"
    assert "" not in (set(tuned) | set(base[: head.index("absent in targets")]))
    assert base[head.index("absent in targets")] == ""
    results.add_auc("reward_auc", 0, {"object": 0.75, "place": math.nan})
    results.add_auc("reward_auc", 1, {"object": 0.25, "place": 0.5})
    assert to_markdown(results).endswith("object 0.500, place 0.500.")
    results.add_auc("verifier_auc", 0, {"word": 0.9, "caption": 0.5})
    results.add_auc("verifier_auc", 1, {"word": 0.8, "caption": 0.5})
    last = to_markdown(results).splitlines()[-1]
    assert last == (
        "AUC of the verifier, correct against hallucinated mentions, by the score of: word 0.850, caption 0.500."
    )
    plot(results, tmp_path / "results.png")
    assert (tmp_path / "results.png").stat().st_size > 10_000


def test_a_file_that_has_everything_is_shown_and_nothing_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = Results(tmp_path / "kept.json", SETTINGS)
    for variant in (BASE, ALL):
        for seed in (4, 5):
            results.add(variant, seed, figures(seed / 10))
    before = (tmp_path / "kept.json").read_bytes()
    options = ["--variants", "all,base", "--seeds", "2", "--first-seed", "4", "--json", str(tmp_path / "kept.json")]
    command.main([*options, "--out", str(tmp_path / "out")])
    assert capsys.readouterr().out.strip() == to_markdown(results)
    assert (tmp_path / "kept.json").read_bytes() == before
    assert (tmp_path / "out" / "results.md").read_text().strip() == to_markdown(results)
    assert not list((tmp_path / "out").glob("seed-*"))


# CPU time


def burn(seconds: float) -> str:
    return f"import time\nwhile time.process_time() < {seconds}: pass"


def test_cpu_seconds_of_children_and_of_interrupted_blocks_count(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    assert counted(directory) == 0
    with contextlib.suppress(KeyboardInterrupt), counting(directory):
        subprocess.run([sys.executable, "-c", burn(0.5)], check=True)
        raise KeyboardInterrupt
    assert 0.45 <= counted(directory) < 1.5
    first = counted(directory)
    with counting(directory):
        subprocess.run([sys.executable, "-c", burn(0.5)], check=True)
    assert 0.45 <= counted(directory) - first < 1.5
    done = counted(directory)
    with counting(directory):  # a later look at what is done
        subprocess.run([sys.executable, "-c", burn(0.2)], check=True)
    assert counted(directory) == done


@pytest.mark.slow
def test_one_variant_by_its_command(tmp_path: Path) -> None:
    run = [sys.executable, "-m", "vigor_jax.demo.compare", "--variants", "base", "--seeds", "1", "--json", "base.json"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=850)
    assert done.returncode == 0, done.stderr[-3000:]
    content = strict(tmp_path / "base.json")
    (found,) = content["runs"]
    assert (found["variant"], found["seed"]) == ("base", 0)
    # docs/results.md: means and standard deviations over three seeds, this one among them.
    expected = {
        "chair_i": (13.2, 0.5),
        "c3": (9.3, 0.7),
        "recall": (85.0, 0.5),
        "color": (8.9, 0.4),
        "any": (32.9, 0.9),
    }
    for name, (mean, deviation) in expected.items():
        assert abs(100 * found[name] - mean) < 2 * deviation + 0.05, name
    assert 0 <= found["repeats"] < 0.1
    assert 5 < found["seconds"] < 850
    assert found["shared_seconds"] == 0
    assert set(ASKED) <= found.keys()
    directory = tmp_path / "runs" / "compare" / "seed-0"
    assert not list(directory.glob("shared"))
    # FiSAO's figure 1: words are told apart, the score of a whole caption hardly says which.
    auc = command.find_verifier_auc(directory, 0)
    assert auc is not None
    assert auc["word"] > 0.9 > 0.75 > auc["caption"]
    assert command.find_verifier_auc(tmp_path, 0) is None
    assert "\n| variant | CHAIR_i | C@3 |" in done.stdout
