"""A run's small files as the page has them."""

import json
from pathlib import Path

import pytest

from tests.report.synthetic import draw_demo, write_config, write_evaluation, write_reward_model
from vigor_jax.errors import InputError
from vigor_jax.evaluation.card.card import Value
from vigor_jax.report.collect import collect, expand, headline


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "one"
    demo = draw_demo(run / "images", 30)
    write_evaluation(run, demo, "base", 0.5)
    write_evaluation(run, demo, "tuned", 0.95)
    write_reward_model(run)
    write_config(run, run / "images")
    return run


def test_headline_is_what_metrics_say(run):
    figures = collect("one", run)
    rows = {row.label: row for row in headline(figures.evaluation)}
    saved = {
        model: json.loads((run / "evaluation" / model / "metrics.json").read_text()) for model in ("base", "tuned")
    }
    for model, metrics in saved.items():
        chair, mean = metrics["chair"], metrics["pope"]["mean"]
        assert rows["CHAIR_i"].cells[model] == Value(chair["chair_i"], *chair["intervals"]["chair_i"])
        assert rows["Recall"].cells[model] == Value(chair["recall"], *chair["intervals"]["recall"])
        assert rows["POPE mean, F1"].cells[model] == Value(mean["f1"], *mean["intervals"]["f1"])
        score = metrics["mme"]["subtasks"]["existence"]["score"]
        assert rows["MME existence"].cells[model] == Value(score, *metrics["mme"]["intervals"]["existence"])
    chair_i = rows["CHAIR_i"]
    assert chair_i.change == saved["tuned"]["chair"]["chair_i"] - saved["base"]["chair"]["chair_i"]
    assert chair_i.verdict == "better"
    assert "POPE strict, accuracy" not in rows


def one_figure(base, tuned, interval=0.05):
    def metrics(value):
        return {"chair": {"chair_i": value, "intervals": {"chair_i": [value - interval, value + interval]}}}

    (row,) = headline({"base": metrics(base), "tuned": metrics(tuned)})
    return row


def test_a_change_is_called_so_where_the_intervals_are_apart():
    assert one_figure(0.4, 0.2).verdict == "better"
    assert one_figure(0.2, 0.4).verdict == "worse"
    assert one_figure(0.4, 0.31).verdict == ""
    assert one_figure(0.4, 0.31).change == pytest.approx(-0.09)


def test_without_intervals_or_with_one_model_nothing_is_called_better():
    (row,) = headline({"base": {"chair": {"chair_i": 0.9}}, "tuned": {"chair": {"chair_i": 0.1}}})
    assert row.cells["base"] == Value(0.9, None, None)
    assert row.verdict == ""
    (row,) = headline({"tuned": {"chair": {"chair_i": 0.1}}})
    assert row.change is None


def test_mme_sums_stand_for_their_subtasks():
    subtasks = {"existence": {"accuracy": 50.0, "accuracy_plus": 25.0}}
    rows = headline({"base": {"mme": {"subtasks": subtasks, "perception": None, "cognition": None}}})
    assert [(row.label, row.cells["base"].value) for row in rows] == [("MME existence", 75.0)]
    rows = headline({"base": {"mme": {"subtasks": subtasks, "perception": 1400.0, "cognition": None}}})
    assert [(row.label, row.cells["base"].value) for row in rows] == [("MME perception", 1400.0)]


def test_files_that_are_not_there_are_left_out(tmp_path):
    figures = collect("empty", tmp_path)
    assert (figures.evaluation, figures.caption_words, figures.reward_model, figures.summary) == ({}, {}, None, None)
    assert figures.images is None


def test_the_reward_models_last_whole_line_counts(run):
    lines = (run / "metrics" / "reward_eval.jsonl").read_text().split("\n")
    assert collect("one", run).reward_model == json.loads(lines[1])


def test_lengths_of_captions(run):
    lines = (run / "evaluation" / "base" / "captions.jsonl").read_text().splitlines()
    assert collect("one", run).caption_words["base"] == [len(json.loads(line)["text"].split()) for line in lines]


def test_images_are_found_from_any_folder(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (run / "config.yaml").write_text("sample:\n  images: one/images\n")
    assert Path(collect("one", run).images).resolve() == (run / "images").resolve()
    assert collect("one", run, tmp_path).images == str(tmp_path)
    with pytest.raises(InputError, match="no directory"):
        collect("one", run, tmp_path / "nowhere")


def test_records_may_be_elsewhere(tmp_path):
    (tmp_path / "config.yaml").write_text("run:\n  records: gs://bucket/name\n")
    assert collect("one", tmp_path).records == "gs://bucket/name"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.yaml", "run: [1"),
        ("summary.json", "{"),
        ("evaluation/base/metrics.json", "not JSON"),
        ("metrics/reward_eval.jsonl", "{\n{}\n"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, content):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    with pytest.raises(InputError, match=path.name) as caught:
        collect("one", tmp_path)
    assert "\n" not in str(caught.value)


def test_runs_get_names_of_their_own(tmp_path):
    for name in ("a/demo", "b/demo", "c/other"):
        (tmp_path / name).mkdir(parents=True)
    assert list(expand([tmp_path / "a/demo"])) == ["demo"]
    assert list(expand([tmp_path / "a/demo", tmp_path / "c/other", tmp_path / "a/demo"])) == ["demo", "other"]
    assert list(expand([tmp_path / "a/demo", tmp_path / "b/demo"])) == ["a/demo", "b/demo"]
    with pytest.raises(InputError, match="no directory"):
        expand([tmp_path / "d"])


def test_rounds_are_runs(tmp_path):
    for number in (1, 2, 10):
        (tmp_path / "demo" / f"round-{number}").mkdir(parents=True)
    assert list(expand([tmp_path / "demo"])) == ["demo/round-1", "demo/round-2", "demo/round-10"]


@pytest.mark.parametrize("content", ["8", "null", "[]", '"x"', "[" * 100_000, "\0"])
@pytest.mark.parametrize(
    "name",
    ["summary.json", "evaluation/tuned/metrics.json", "evaluation/base/captions.jsonl", "metrics/reward_eval.jsonl"],
)
def test_what_is_no_object_is_refused_by_its_file(tmp_path, name, content):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(content + "\n")
    with pytest.raises(InputError, match=rf"{name}: (malformed JSON|expected a JSON object)"):
        collect("one", tmp_path)


@pytest.mark.parametrize("line", [{}, {"text": None}, {"text": ["a"]}, {"text": 8}])
def test_captions_without_text_are_refused(tmp_path, line):
    (tmp_path / "evaluation" / "base").mkdir(parents=True)
    (tmp_path / "evaluation" / "base" / "captions.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(InputError, match=r"captions.jsonl: a line has no text"):
        collect("one", tmp_path)


def test_a_config_nested_without_end_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_text("[" * 100_000)
    with pytest.raises(InputError, match=r"config.yaml: expected YAML"):
        collect("one", tmp_path)
