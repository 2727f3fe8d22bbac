"""What a change of settings makes stale, and what is removed then."""

import itertools
import json
from pathlib import Path

import pytest

from vigor_jax.errors import InputError
from vigor_jax.pipeline.manifest import RunManifest
from vigor_jax.stages.stage import Lazy, Result

AFTER = {"sample": (), "score": ("sample",), "train": (), "select": ("sample", "score", "train"), "sft": ("select",)}


def manifest(run_dir: Path, **settings: int) -> RunManifest:
    stages = [
        Result(name, {f"{name}.x": settings.get(name, 0)}, after, (run_dir / name, run_dir / f"{name}.json"))
        for name, after in AFTER.items()
    ]
    return RunManifest(run_dir, stages)


def downstream(changed: set[str]) -> list[str]:
    """Brute force: a stage is stale if any path leads to it from a changed one."""
    return [name for name in AFTER if upstream(name) & changed]


def upstream(name: str) -> set[str]:
    """A stage and all that it is made of."""
    return {name}.union(*map(upstream, AFTER[name]))


@pytest.fixture
def run_dir(tmp_path):
    """All stages done."""
    for name in AFTER:
        manifest(tmp_path).begin(name)
        (tmp_path / name).mkdir()
        (tmp_path / name / "part").touch()
        (tmp_path / f"{name}.json").touch()
    return tmp_path


@pytest.mark.parametrize("begun", [(), ("sample",), ("sample", "score"), tuple(AFTER)], ids=", ".join)
@pytest.mark.parametrize("wanted", AFTER)
def test_settings_are_read_of_what_plays_a_part(tmp_path, wanted, begun):
    """Of what is to be made, of what was begun, and of what these are made of: nothing else need be there."""
    for name in begun:
        manifest(tmp_path).begin(name)
    read: list[str] = []

    def reads(name: str) -> Lazy:
        return Lazy(lambda: (read.append(name), {f"{name}.x": 0})[1])

    found = RunManifest(tmp_path, [Result(name, reads(name), after, ()) for name, after in AFTER.items()])
    assert read == []
    assert found.stale() == []
    found.begin(wanted)
    needed = set().union(*(upstream(name) for name in (wanted, *begun)))
    assert sorted(read) == sorted(needed)  # each once
    assert found.after("sample") == downstream({"sample"})  # which needs no settings
    assert sorted(read) == sorted(needed)


def test_settings_that_cannot_be_read_are_refused_where_they_are_wanted(run_dir):
    def absent() -> dict[str, int]:
        raise InputError("score.x is not given")

    stages = [Result("sample", {"sample.x": 0}, (), ()), Result("score", Lazy(absent), ("sample",), ())]
    with pytest.raises(InputError, match=r"score\.x is not given"):
        RunManifest(run_dir, stages).stale()  # it was begun


@pytest.mark.parametrize("count", range(len(AFTER) + 1))
def test_stale_is_what_follows_a_change(run_dir, count):
    for changed in itertools.combinations(AFTER, count):
        assert manifest(run_dir, **dict.fromkeys(changed, 1)).stale() == downstream(set(changed))


def test_what_was_not_begun_is_not_stale(tmp_path):
    manifest(tmp_path).begin("sample")
    assert manifest(tmp_path, sample=1, select=1).stale() == ["sample"]


def test_check_refuses_and_says_what_changed(run_dir):
    with pytest.raises(InputError) as error:
        manifest(run_dir, score=3).check(AFTER, overwrite=False)
    message = str(error.value)
    assert f"{run_dir} was made with score.x 0, which is now 3; this makes score, select, sft stale" in message
    assert "--run.overwrite true" in message
    assert "\n" not in message


def test_overwrite_does_not_remove_what_will_not_be_made_again(run_dir):
    with pytest.raises(InputError, match=r"add sft to run\.stages"):
        manifest(run_dir, score=3).check(("score", "select"), overwrite=True)
    assert manifest(run_dir, score=3).check(AFTER, overwrite=True) == ["score", "select", "sft"]


def test_remove_takes_outputs_and_entries_of_the_stale_only(run_dir):
    changed = manifest(run_dir, score=3)
    changed.remove(changed.check(AFTER, overwrite=True))
    assert {path.name for path in run_dir.iterdir()} == {"sample", "sample.json", "train", "train.json", "stages.json"}
    assert set(json.loads((run_dir / "stages.json").read_text())) == {"sample", "train"}
    assert changed.stale() == []
    assert changed.check(AFTER, overwrite=False) == []


def test_a_stage_that_no_longer_feeds_one_makes_it_stale(run_dir):
    stages = [Result("sample", {"sample.x": 0}, (), ()), Result("select", {"select.x": 0}, ("sample",), ())]
    with pytest.raises(InputError, match="made with other stages; this makes select stale"):
        RunManifest(run_dir, stages).check(("select",), overwrite=False)


def test_after(run_dir):
    assert manifest(run_dir).after("score") == ["score", "select", "sft"]
    assert manifest(run_dir).after("sft") == ["sft"]


@pytest.mark.parametrize("order", itertools.permutations(AFTER))
def test_the_order_in_which_results_are_given_plays_no_part(tmp_path, order):
    stages = [Result(name, {}, AFTER[name], ()) for name in order]
    found = RunManifest(tmp_path, stages)
    names = [result.name for result in found.results]
    assert sorted(names) == sorted(AFTER)
    assert all(names.index(before) < names.index(name) for name in AFTER for before in AFTER[name])
    for name in AFTER:
        assert set(found.after(name)) == set(downstream({name}))
    if list(order) == list(AFTER):
        assert names == list(AFTER)


def test_a_damaged_file_is_named(run_dir):
    (run_dir / "stages.json").write_text("{")
    with pytest.raises(InputError, match=r"stages\.json is damaged"):
        manifest(run_dir).stale()


@pytest.mark.parametrize("name", AFTER)
def test_a_setting_that_a_stage_does_not_have_is_left_alone(tmp_path, name):
    """Fine-tuning on the run's own targets has no `sft.data`; killed before the next stage, it continues."""
    manifest(tmp_path).begin(name)
    again = manifest(tmp_path)
    again.leave_to_stage(name, f"{name}.data")
    assert again.stale() == []


def test_a_setting_may_be_left_to_its_stage_until_another_was_begun_after_it(tmp_path):
    manifest(tmp_path).begin("score")
    for change, stale in (({"score": 1}, []), ({"score": 1, "sample": 2}, ["score"]), ({"train": 1}, [])):
        changed = manifest(tmp_path, **change)
        changed.leave_to_stage("score", "score.x")
        assert changed.stale() == stale
    manifest(tmp_path).begin("select")
    changed = manifest(tmp_path, score=1)
    changed.leave_to_stage("score", "score.x")
    assert changed.stale() == ["score", "select"]
