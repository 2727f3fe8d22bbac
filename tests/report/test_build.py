"""The page as a file: what is in it, what is left out, and what it says to wrong input."""

import base64
import gzip
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pyarrow.parquet as pq
import pytest

from tests.report.synthetic import draw_demo, make_run, write_config, write_evaluation, write_records
from vigor_jax.data.records import store
from vigor_jax.errors import InputError
from vigor_jax.records import Candidate
from vigor_jax.report import build_report
from vigor_jax.report.__main__ import main

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"


class Page(HTMLParser):
    """Tags, ids, links and data of a page."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.ids, self.text, self.data, self._script = [], set(), "", {}, None
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.ids |= {value for name, value in attributes if name == "id"}
        self._script = dict(attributes).get("id") if tag == "script" else None

    def handle_data(self, data):
        if self._script:
            self.data[self._script] = data
        self.text += data

    def handle_endtag(self, tag):
        self._script = None

    @property
    def runs(self):
        return json.loads(gzip.decompress(base64.b64decode(self.data["records"])))["runs"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "one"
    make_run(run, 20)
    return run


def test_a_whole_run(run, tmp_path):
    out = build_report([run], tmp_path / "deep" / "index.html")
    page = Page(out)
    assert {"benchmarks", "selection", "rewards", "reward-model", "lengths", "gallery"} <= page.ids
    (shown,) = page.runs
    assert (shown["name"], shown["streams"], shown["terms"]) == ("one", *2 * [["detector", "reward_model"]])
    assert len(shown["groups"]) == 20
    sizes = json.loads(page.data["sizes"])
    assert len(sizes) == 3 * 20
    assert sum(sizes[2::3]) == len(base64.b64decode(page.data["thumbnails"]))
    metrics = json.loads((run / "evaluation" / "tuned" / "metrics.json").read_text())
    assert f"{100 * metrics['chair']['chair_i']:.1f}" in page.text


def test_nothing_is_asked_for(run, tmp_path):
    page = Page(build_report([run], tmp_path / "index.html"))
    links = [attributes.get(name) for _, attributes in page.tags for name in ("src", "href", "xlink:href", "srcset")]
    assert {link.split(":")[0] for link in links if link and not link.startswith("#")} == {"data"}
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and a.get("http-equiv"))
    assert policy.startswith("default-src 'none'")
    assert "unsafe-inline" not in policy.split("script-src")[1]


def test_equal_runs_give_equal_pages(run, tmp_path):
    first, second = (build_report([run], tmp_path / name).read_bytes() for name in ("a.html", "b.html"))
    assert first == second


def test_hostile_names_and_captions_stay_text(tmp_path):
    run = tmp_path / "<img src=x onerror=alert(1)>"
    demo = draw_demo(run / "images", 4)
    texts = {("00000.png", number): HOSTILE for number in range(5)}
    write_records(run, demo, texts=texts)
    write_evaluation(run, demo, "base", 0.5)
    write_config(run, run / "images")
    summary = json.loads((run / "summary.json").read_text())
    summary["dropped"] = {HOSTILE: 0.5}
    (run / "summary.json").write_text(json.dumps(summary))
    page = Page(build_report([run], tmp_path / "index.html"))
    assert "img" not in {tag for tag, _ in page.tags}
    assert sum(tag == "script" for tag, _ in page.tags) == 4
    assert HOSTILE in page.text
    assert [each["text"] for each in page.runs[0]["groups"][0]["candidates"]] == [HOSTILE] * 5


@pytest.mark.parametrize(
    ("removed", "gone"),
    [
        ("evaluation", {"benchmarks"}),
        ("metrics", {"reward-model"}),
        ("selections", set()),
        ("summary.json", set()),
        ("verdicts/detector", set()),
        ("verdicts", set()),
        ("config.yaml", set()),
        ("evaluation/base", set()),
        ("evaluation/tuned/captions.jsonl", set()),
    ],
)
def test_what_a_run_lacks_is_left_out(run, tmp_path, removed, gone):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    path = copy / removed
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    page = Page(build_report([copy], tmp_path / "index.html"))
    sections = {"benchmarks", "selection", "rewards", "reward-model", "lengths", "gallery"}
    assert page.ids & sections == sections - gone
    assert page.runs[0]["groups"]


def test_only_candidates(run, tmp_path):
    shutil.copytree(run / "candidates", tmp_path / "copy" / "candidates")
    page = Page(build_report([tmp_path / "copy"], tmp_path / "index.html"))
    assert {"selection", "lengths", "gallery"} <= page.ids
    assert not page.ids & {"benchmarks", "rewards", "reward-model"}
    assert page.runs[0]["streams"] == []


def test_a_model_without_one_benchmark(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    path = copy / "evaluation" / "tuned" / "metrics.json"
    metrics = json.loads(path.read_text())
    path.write_text(json.dumps({"pope": metrics["pope"]}))
    text = " ".join(Page(build_report([copy, run], tmp_path / "index.html")).text.split())
    cells = text.split("CHAIR_i, first three mentions")[0].split("CHAIR_i")[-1].split()
    assert cells.count("–") == 2 + 3  # neither figure nor change; and one in each of three intervals
    assert "".join(cells).count("better") == 1


def test_only_an_evaluation(run, tmp_path):
    shutil.copytree(run / "evaluation", tmp_path / "copy" / "evaluation")
    page = Page(build_report([tmp_path / "copy"], tmp_path / "index.html"))
    assert "benchmarks" in page.ids
    assert not page.ids & {"gallery", "selection", "rewards", "reward-model"}


def test_several_runs(run, tmp_path):
    other = tmp_path / "other"
    demo = draw_demo(other / "images", 10, seed=5)
    write_records(other, demo, streams=("detector",))
    write_config(other, other / "images")
    page = Page(build_report([run, other], tmp_path / "index.html"))
    assert [shown["name"] for shown in page.runs] == ["one", "other"]
    assert [shown["streams"] for shown in page.runs] == [["detector", "reward_model"], ["detector"]]
    numbers = [{group["image"] for group in shown["groups"]} for shown in page.runs]
    assert not numbers[0] & numbers[1]  # of one name, and not the same pictures
    assert len(numbers[0] | numbers[1]) == 30


def test_nearly_all_is_not_all(run, tmp_path):
    """999 of 1,000 images with a target, and an accuracy just short of perfect."""
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    summary = json.loads((copy / "summary.json").read_text())
    summary |= {"images": 1000, "targets": 999, "dropped": {"the response is empty": 0.001}}
    summary["decisive_stream"] = {"detector": 996, "reward_model": 1}
    (copy / "summary.json").write_text(json.dumps(summary))
    path = copy / "evaluation" / "tuned" / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["chair"] |= {"recall": 0.9998, "chair_i": 0.0002}
    path.write_text(json.dumps(metrics))
    out = build_report([copy], tmp_path / "index.html")
    text = "".join(Page(out).text.split())
    assert "Targets99999.9%" in text
    assert "notarget:theresponseisempty0.1%" in text
    assert "mostlythedetector’s99.6%" in text
    assert "mostlytherewardmodel’s0.1%" in text
    for figure in ("99.98", "0.02"):
        assert f'<span class="value">{figure}</span>' in out.read_text()


def test_a_run_of_an_earlier_version(run, tmp_path):
    """Its selections know neither content nor repetitions."""
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    for path in (copy / "selections").iterdir():
        pq.write_table(pq.read_table(path).drop_columns(["has_content", "repeats"]), path)
    summary = json.loads((copy / "summary.json").read_text())
    del summary["without_content"], summary["repeating"]
    (copy / "summary.json").write_text(json.dumps(summary))
    page = Page(build_report([copy], tmp_path / "index.html"))
    assert len(page.runs[0]["groups"]) == 20
    assert "Repeating a sentence" not in page.text
    page = Page(build_report([copy, run], tmp_path / "index.html"))
    assert "Repeating a sentence" in page.text


def test_settings_are_on_the_page(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "config.yaml").write_text(
        "model: {path: <b>llava</b>}\n"
        f"sample: {{images: {copy}/images, prompts: [Describe it.], sampling: {{temperature: 0.7}}}}\n"
    )
    (copy / "log.txt").write_text("2026-02-27 23:59:59,1 vigor_jax.pipeline.run stage sample\n")
    page = Page(build_report([copy], tmp_path / "index.html"))
    text = "".join(page.text.split())
    assert "Model<b>llava</b>" in text
    assert "PromptDescribeit.Temperature0.7" in text
    assert "Date2026-02-27" in text
    (copy / "config.yaml").unlink()
    (copy / "log.txt").unlink()
    page = Page(build_report([copy], tmp_path / "index.html", copy / "images"))
    assert "settings" not in page.ids


def test_a_limit_takes_images_evenly_and_says_so(run, tmp_path):
    page = Page(build_report([run], tmp_path / "index.html", limit=5))
    assert [group["name"] for group in page.runs[0]["groups"]] == [f"{n:05d}.png" for n in (0, 4, 9, 14, 19)]
    assert re.search(r"5 of 20 images", page.text)


@pytest.mark.slow
@pytest.mark.main
def test_several_runs_share_a_limit(run, tmp_path):
    shutil.copytree(run, tmp_path / "two")
    page = Page(build_report([run, tmp_path / "two"], tmp_path / "index.html", limit=8))
    assert [len(shown["groups"]) for shown in page.runs] == [4, 4]


def test_images_from_elsewhere_or_nowhere(run, tmp_path, caplog):
    (tmp_path / "images").mkdir()
    shutil.copy(run / "images" / "00002.png", tmp_path / "images")
    page = Page(build_report([run], tmp_path / "index.html", tmp_path / "images"))
    sizes = json.loads(page.data["sizes"])
    assert [number for number in range(20) if sizes[3 * number]] == [2]
    assert "19 of 20 images are missing" in caplog.text


def test_wrong_input(run, tmp_path):
    with pytest.raises(InputError, match="neither candidates nor"):
        build_report([tmp_path], tmp_path / "index.html")
    with pytest.raises(InputError, match="limit"):
        build_report([run], tmp_path / "index.html", limit=0)
    store.write_part(tmp_path / "candidates", 0, 2, [], Candidate)
    with pytest.raises(InputError, match="1 of 2 parts are missing"):
        build_report([tmp_path], tmp_path / "index.html")


def command(*arguments):
    done = subprocess.run([sys.executable, "-m", "vigor_jax.report", *arguments], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_options(run, tmp_path, capsys):
    main([str(run), "--out", str(tmp_path / "a.html"), "--limit", "3", "--images", str(tmp_path)])
    assert capsys.readouterr().out == f"{tmp_path / 'a.html'}\n"
    page = Page(tmp_path / "a.html")
    assert len(page.runs[0]["groups"]) == 3
    assert set(json.loads(page.data["sizes"])) == {0}


def test_the_command(run):
    out = run / "report" / "index.html"
    assert command(str(run)) == (0, f"{out}\n", "")
    assert out.stat().st_size > 100_000


@pytest.mark.slow
@pytest.mark.main
def test_the_command_refuses_in_one_line():
    code, out, err = command("nowhere")
    assert (code, out) == (2, "")
    assert err == "error: report: nowhere is no directory; name a run's, such as runs/demo\n"


@pytest.mark.parametrize("arguments", [[], [".", "--limit", "many"], [".", "--color", "red"], [".", "--limit", "0"]])
def test_wrong_options(arguments):
    with pytest.raises(InputError, match=r"^report: [^\n]+$"):
        main(arguments)


@pytest.mark.slow
@pytest.mark.main
def test_no_jax_is_loaded():
    program = "import sys, vigor_jax.report.__main__; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {name.split(".")[0] for name in done.stdout.split()} & {"jax", "flax", "torch", "transformers"}
