"""A page about PPO: whole runs, runs that were killed, long ones, and what the page knows of their images."""

import base64
import gzip
import json
import shutil
from pathlib import Path

import pytest

from tests.report.synthetic import PROMPT, draw_demo, make_rollout, write_evaluation, write_ppo
from tests.report.test_build import HOSTILE, Page
from vigor_jax.data.records import store
from vigor_jax.errors import InputError
from vigor_jax.records import Rollout, Signal, Span, Verdict
from vigor_jax.report import build_report
from vigor_jax.report.__main__ import main


def write_settings(run, *, objects=None, asked=None, records=None):
    config = {"ppo": {"images": str(run / "images")}, "run": {"records": records, "stages": ["ppo"]}}
    if objects:
        config["evaluate"] = {"images": str(asked or run / "images"), "objects": [str(objects)]}
    (run / "config.yaml").write_text(json.dumps(config))  # which is YAML


def write_objects(path, demo):
    objects = {name: sorted({item.shape for item in scene.objects}) for name, scene in demo.scenes.items()}
    path.write_text(json.dumps(objects))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """6 iterations, whose last has 4 of the first one's images."""
    run = tmp_path_factory.mktemp("runs") / "one"
    demo = draw_demo(run / "images", 32)
    write_ppo(run, demo, iterations=6, batch=6)
    write_objects(run / "objects.json", demo)
    write_settings(run, objects=run / "objects.json")
    return run


@pytest.fixture
def copy(run, tmp_path):
    shutil.copytree(run, tmp_path / "copy")
    write_settings(tmp_path / "copy", objects=run / "objects.json")
    return tmp_path / "copy"


def page_of(run, *others, **options):
    return Page(build_report([run, *others], run.parent / "page.html", **options))


def ppo(page):
    return json.loads(gzip.decompress(base64.b64decode(page.data["records"])))["ppo"]


def says(page, text):
    """Whether a page says so, whatever the white space."""
    return "".join(text.split()) in "".join(page.text.split())


def test_a_run_of_nothing_but_ppo(run):
    page = page_of(run)
    assert {"ppo", "responses", "settings"} <= page.ids
    assert not page.ids & {"gallery", "benchmarks", "selection", "rewards"}
    (shown,) = ppo(page)
    assert (shown["name"], shown["iterations"], len(shown["examples"])) == ("one", [1, 6], 6)
    rollouts = list(store.read_part(run / "ppo", 0, 6, Rollout))
    texts = {(each.image, each.candidate): each.text for each in rollouts}
    for first, last in shown["examples"]:
        assert [each["text"] for each in first["responses"]] == [texts[first["name"], n] for n in (0, 1)]
        assert first["image"] == last["image"] if first["name"] == last["name"] else first["image"] != last["image"]
    same = [first["name"] for first, last in shown["examples"] if first["name"] == last["name"]]
    assert same == ["00000.png", "00001.png", "00002.png", "00003.png"]
    sizes = json.loads(page.data["sizes"])
    assert len(sizes) == 3 * 8
    assert all(sizes)
    assert says(page, "Iterations 6 of 6")
    assert says(page, "4 images in both iterations")
    assert says(page, "AUC by word")


def test_a_run_without_ppo_has_no_such_section(tmp_path):
    run = tmp_path / "run"
    write_evaluation(run, draw_demo(run / "images", 4), "base", 0.5)
    assert not page_of(run).ids & {"ppo", "responses"}


@pytest.mark.parametrize(
    ("parts", "metrics", "iterations", "said"),
    [
        ((1, 2), 2, [1, 2], "Iterations 2 of 6"),
        ((1, 2), 1, [1, 2], "Iterations 1 of 6"),  # killed between the records and the end of an iteration
        ((1,), 0, [1], "Iterations 1 of 6"),
        ((2, 5), 6, [2, 5], "Iterations 6 of 6"),
        ((), 3, None, "Iterations 3 Reward of a response"),
        ((1, 2, 3, 4, 5, 6), None, [1, 6], "Iterations 6 of 6"),
    ],
)
def test_what_a_killed_run_left(copy, parts, metrics, iterations, said):
    for number in range(1, 7):
        if number not in parts:
            (copy / "ppo" / store.part_name(number - 1, 6)).unlink()
    path = copy / "metrics" / "ppo.jsonl"
    if metrics is None:
        path.unlink()
    else:
        text = "".join(path.read_text().splitlines(keepends=True)[:metrics])
        path.write_text(text + '{"step": 7, "rew')  # a line that the kill cut short
    page = page_of(copy)
    assert says(page, said)
    assert [each["iterations"] for each in ppo(page)] == ([iterations] if iterations else [])
    assert ("responses" in page.ids) == bool(iterations)
    assert ("Reward of a response" in page.text) == bool(metrics)


def test_records_that_are_in_a_bucket(copy):
    place = "memory://bucket/run"
    for number in range(6):
        rows = list(store.read_part(copy / "ppo", number, 6, Rollout))
        store.write_part(f"{place}/ppo", number, 6, rows, Rollout)
    expected = ppo(page_of(copy))
    shutil.rmtree(copy / "ppo")
    write_settings(copy, objects=copy / "objects.json", records=place)
    assert ppo(page_of(copy)) == expected


def test_a_run_of_thousands_of_iterations_is_a_small_page(tmp_path):
    run = tmp_path / "run"
    demo = draw_demo(run / "images", 64)
    write_ppo(run, demo, iterations=3, batch=32, candidates=4)
    rows = [list(store.read_part(run / "ppo", number, 3, Rollout)) for number in (0, 2)]
    shutil.rmtree(run / "ppo")
    for number, own in zip((0, 4999), rows, strict=True):
        store.write_part(run / "ppo", number, 5000, own, Rollout)
    line = json.loads((run / "metrics" / "ppo.jsonl").read_text().splitlines()[0])
    lines = (json.dumps(line | {"step": n, "reward": (n * 0.37) % 1}) for n in range(1, 5001))
    (run / "metrics" / "ppo.jsonl").write_text("\n".join(lines) + "\n")
    write_settings(run)
    page = page_of(run)
    assert (tmp_path / "page.html").stat().st_size < 1_000_000
    assert says(page, "Iterations 5000 of 5000")
    assert says(page, "A point is the mean of up to 34 iterations")
    assert len(ppo(page)[0]["examples"]) == 12


def test_hostile_responses_stay_text(copy):
    signal = Signal(HOSTILE, (Span(0, 9),), 1.0, 0.0, 0.5)
    verdicts = (Verdict(HOSTILE, 0, HOSTILE, (signal,)),)
    rows = [make_rollout(HOSTILE, 0, HOSTILE, verdicts, draw_demo(copy / "more", 1).rng, HOSTILE)]
    store.write_part(copy / "ppo", 5, 6, rows, Rollout)
    page = page_of(copy)
    assert "img" not in {tag for tag, _ in page.tags}
    assert sum(tag == "script" for tag, _ in page.tags) == 4
    assert HOSTILE in page.text  # the stream, in a title
    assert ppo(page)[0]["examples"][0][1]["responses"][0]["text"] == HOSTILE


def test_two_runs(run, copy):
    page = page_of(run, copy)
    assert [each["name"] for each in ppo(page)] == ["one", "copy"]
    assert [len(each["examples"]) for each in ppo(page)] == [6, 6]
    assert says(page, "one, detector")


def test_objects_of_another_folder_are_not_those_of_these_images(copy, tmp_path):
    """Two folders may each have a 00000.png; the evaluation's is held out, and another picture."""
    write_settings(copy, objects=copy / "objects.json", asked=tmp_path / "held_out")
    page = page_of(copy)
    assert "AUC by word" not in page.text
    assert says(page, "with --objects FILE")
    write_settings(copy, objects=copy / "objects.json", asked=f"{copy}/./images")
    assert "AUC by word" in page_of(copy).text


def test_objects_may_be_given(copy, tmp_path):
    shutil.move(copy / "objects.json", tmp_path / "elsewhere.json")
    write_settings(copy)
    assert "AUC by word" not in page_of(copy).text
    out = tmp_path / "page.html"
    main([str(copy), "--out", str(out), "--objects", str(tmp_path / "elsewhere.json")])
    assert "AUC by word" in Page(out).text
    some = dict(list(json.loads((tmp_path / "elsewhere.json").read_text()).items())[:3])
    (tmp_path / "some.json").write_text(json.dumps(some))
    main([str(copy), "--out", str(out), "--objects", str(tmp_path / "some.json")])
    assert says(Page(out), "Images whose objects are known 3 of 6")


def test_objects_that_cannot_be_read(copy, tmp_path, caplog):
    write_settings(copy, objects=tmp_path / "gone.json")
    assert "AUC by word" not in page_of(copy).text
    assert "gone.json is not there; give --objects" in caplog.text
    for arguments, message in (
        (["--synonyms", "s.txt"], "report: --synonyms goes with --objects"),
        (["--objects", str(tmp_path / "gone.json")], r"gone\.json"),
        (["--objects", str(Path(__file__))], r"test_ppo_report\.py"),
    ):
        with pytest.raises(InputError, match=rf"^[^\n]*{message}[^\n]*$"):
            main([str(copy), *arguments])


def test_damaged_metrics_are_named(copy):
    (copy / "metrics" / "ppo.jsonl").write_text('{"step": 1\n{"step": 2}\n')
    with pytest.raises(InputError, match=r"ppo\.jsonl: malformed JSON[^\n]*$"):
        page_of(copy)


def test_pictures_that_are_missing(copy, caplog):
    shutil.rmtree(copy / "images")
    page = page_of(copy)
    assert set(json.loads(page.data["sizes"])) == {0}
    assert "the images' folder" in caplog.text
    assert ppo(page)[0]["examples"][0][0]["prompt"] == PROMPT
