"""Which benchmarks a folder has; the card and `vigor_jax.evaluate` have the same ones."""

import dataclasses
import json
from pathlib import Path

import pytest

from vigor_jax.errors import InputError
from vigor_jax.evaluate import COMMANDS, WITHOUT_A_MODEL, command_class
from vigor_jax.evaluation.card.figures import FIGURES, TITLES, rates_of
from vigor_jax.evaluation.card.find import BENCHMARKS, find


def test_every_benchmark_that_asks_a_model_is_looked_for_and_shown() -> None:
    assert {benchmark for benchmark, _, _ in BENCHMARKS.values()} == set(COMMANDS) - set(WITHOUT_A_MODEL)
    assert all(command_class(benchmark) is command for benchmark, command, _ in BENCHMARKS.values())
    shown = {benchmark for benchmark, _, _ in BENCHMARKS.values()} | {"referring"}
    assert shown == set(FIGURES)
    assert set(BENCHMARKS) == set(TITLES)
    assert all(rates_of(benchmark, "", benchmark) for benchmark in FIGURES)


def test_every_folder_is_in_the_docs() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "card.md").read_text()
    table = page.partition("## The folder of benchmarks")[2].partition("##")[0]
    named = {
        name.strip(" `") for line in table.splitlines() for name in line.split("|")[1:2] for name in name.split(",")
    }
    assert set(BENCHMARKS) <= named


# Files of each folder → the options that come of them.
LAYOUTS = {
    "chair": (["instances.json", "captions.json", "synonyms.txt"], {"objects", "synonyms"}),
    "amber": (["data/annotations.json"], {"data"}),
    "object-halbench": (["obj_halbench_300.jsonl", "instances.json", "synonyms_refine.txt"], {"questions", "synonyms"}),
    "mmhal": (["response_template.json"], {"questions"}),
    "pope": (["random.json", "popular.json"], {"questions"}),
    "hallusion": (["HallusionBench.json"], {"questions"}),
    "mme": (["color/a.txt"], {"data"}),
    "grounding": (["instances.json"], {"objects"}),
    "referring": (["refcoco/refs(unc).p", "refcoco+/refs(unc).p"], {"refs"}),
    "llava-bench": (["questions.jsonl", "context.jsonl", "answers_gpt4.jsonl"], {"questions", "context", "references"}),
    "detailcaps": (["detailcaps.parquet"], {"references"}),
    "captions": (["captions_val2014.json"], {"references"}),
    "seed": (["SEED-Bench.json"], {"questions", "layout"}),
    "mmbench": (["mmbench_dev.tsv"], {"questions", "layout"}),
    "scienceqa": (["problems.json", "pid_splits.json"], {"questions", "splits"}),
    "gqa": (["testdev.json"], {"questions"}),
    "mmvet": (["mm-vet.json"], {"questions"}),
}


def test_files_are_found_by_the_names_that_their_authors_gave_them(tmp_path: Path) -> None:
    for name, (files, _) in LAYOUTS.items():
        for file in files:
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_text("{}")
    (tmp_path / "pope" / "images").mkdir()
    found, skipped = find(tmp_path)
    assert not skipped
    assert [each.name for each in found] == list(BENCHMARKS)
    for each in found:
        files, options = LAYOUTS[each.name]
        given = {key: value for key, value in each.options.items() if value is not None}
        assert options <= given.keys()
        known = {field.name: field for field in dataclasses.fields(each.command)}
        assert given.keys() <= known.keys()
        free = {"out", "judge"} | given.keys()
        required = {name for name, one in known.items() if one.default is dataclasses.MISSING}
        assert required <= free, f"{each.name} lacks {required - free}"
    places = {each.name: each.images for each in found}
    assert places["pope"] == tmp_path / "pope" / "images"
    assert places["chair"] == tmp_path / "images"
    assert places["mme"] is None
    assert len(next(each for each in found if each.name == "referring").options["refs"]) == 2
    assert find(tmp_path, ["chair"], Path("elsewhere"))[0][0].images == Path("elsewhere")


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    for name in ("chair", "pope", "seed"):
        (tmp_path / name).mkdir()
    (tmp_path / "pope" / "a.json").write_text("[]")
    for name in ("a.json", "b.json"):
        (tmp_path / "seed" / name).write_text(json.dumps({}))
    found, skipped = find(tmp_path)
    assert [each.name for each in found] == ["pope"]
    reasons = {each.name: each.reason for each in skipped}
    assert reasons["chair"] == f"{tmp_path / 'chair'} has no file *.json"
    assert reasons["seed"] == f"{tmp_path / 'seed'}: expected one file, found a.json and b.json; keep one"
    assert reasons["mme"] == f"there is no folder {tmp_path / 'mme'}"
    with pytest.raises(InputError, match="has no benchmark: "):
        find(tmp_path, ["chair"])
