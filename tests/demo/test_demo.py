"""The demo by its command: from nothing to its report, interrupted, again; and the comparison of all variants."""

import dataclasses
import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import PIL.Image
import pytest

from tests.demo.run_demo import SMALL
from tests.pipeline.loop_world import ROOT
from vigor_jax.data.records.store import part_metadata, read_parts, write_part
from vigor_jax.demo.compare import compare, find_auc, settings
from vigor_jax.demo.contact_sheet import Shown, draw_sheet
from vigor_jax.demo.drawing import draw
from vigor_jax.demo.erring import FALSE_ALARMS, MISSES, erring, misjudge
from vigor_jax.demo.results import COLUMNS, Results, plot, to_markdown
from vigor_jax.demo.variants import choose
from vigor_jax.parallel.compilation_cache import keep_compiled
from vigor_jax.records import Signal, Span, Verdict

STAGES = ("train_reward", "sample", "score", "select", "sft", "export", "evaluate")


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """The demo, in a process whose working directory is `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "0"  # compiled as users compile it
    command = [sys.executable, "-m", "tests.demo.run_demo", *arguments]
    pipe, heed = subprocess.PIPE, functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    # Who runs tests in the background may have had Ctrl-C ignored, and children inherit that.
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, stdout=pipe, stderr=pipe, preexec_fn=heed)


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors[-3000:]
    return out, errors


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Where the demo ran, and what it printed."""
    folder = tmp_path_factory.mktemp("demo")
    out, _ = finish(start(folder))
    return folder, out


@pytest.mark.slow
@pytest.mark.main
def test_the_demo_prints_its_results(demo: tuple[Path, str]) -> None:
    folder, out = demo
    for row in ("CHAIR_i", "CHAIR_s", "recall", "words", "POPE", "with a wrong color", "AUC of the reward model"):
        assert re.search(rf"^ *{row}.*\d", out, re.MULTILINE), row
    run = folder / "runs" / "demo"
    assert len(json.loads((run / "data" / "scenes.json").read_text())) < 100  # a small one, not the users'
    page = (run / "report" / "index.html").read_text(encoding="utf-8")
    assert str(Path("runs/demo/report/index.html")) in out
    assert 'src="http' not in page
    with PIL.Image.open(run / "demo.png") as sheet:
        assert sheet.width > 1000
    # It ends with the card, which the export carries.
    card = json.loads((run / "evaluation" / "card.json").read_text())
    assert card["models"] == ["base", "tuned"]
    assert [each["name"] for each in card["benchmarks"]] == ["chair", "pope", "mme"]
    assert re.search(r"^CHAIR CHAIR_i +\d.*p [<=] 0\.\d+", out, re.MULTILINE)
    assert str(Path("runs/demo/evaluation/card.html")) in out
    assert "model-index:" in (run / "export" / "README.md").read_text(encoding="utf-8")
    report = json.loads((run / "metrics" / "demo.json").read_text())
    assert set(report["captions"]) == {"base", "tuned"}
    assert 0 < report["captions"]["base"]["bad"] < 1


@pytest.mark.slow
def test_a_second_start_finds_everything_done(demo: tuple[Path, str]) -> None:
    folder, printed = demo
    weights = folder / "runs" / "demo" / "export" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    out, errors = finish(start(folder))
    assert out == printed
    assert weights.stat().st_mtime_ns == before
    assert "drawing" not in errors


@pytest.mark.slow
def test_control_c_anywhere_and_the_same_command_again(demo: tuple[Path, str], tmp_path: Path) -> None:
    """Interrupted once while the data are drawn and in every stage; the results are those of the undisturbed run."""
    log = tmp_path / "runs" / "demo" / "log.txt"
    for stage in ("", *STAGES):
        before = len(log.read_text()) if log.exists() else 0  # the process before may have come as far as this stage
        process, deadline = start(tmp_path), time.monotonic() + 600
        while stage and not (log.exists() and f"vigor_jax.pipeline.run stage {stage}\n" in log.read_text()[before:]):
            assert process.poll() is None, process.communicate()[1][-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0 if stage else 8)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
        assert process.returncode != 0 or stage == STAGES[-1]
        assert "Traceback" not in errors
    out, _ = finish(start(tmp_path))
    folder, printed = demo
    assert out == printed
    one, other = (each / "runs" / "demo" / "export" / "model.safetensors" for each in (folder, tmp_path))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.slow
def test_variants_are_compared(tmp_path: Path) -> None:
    """One of each kind: the model before, a control, another reward model, both streams, two rounds."""
    keep_compiled(tmp_path / "compiled")
    sizes, directory = dataclasses.replace(SMALL, seed=3), tmp_path / "seed-3"
    variants = choose(["base", "random_drop", "holistic", "all_balanced", "all_two_rounds", "at_erring"])
    found = list(compare(directory, sizes, variants))
    assert [variant for variant, _ in found] == variants
    figures = {variant.name: own for variant, own in found}
    columns = {column.name for column in COLUMNS}
    assert figures["base"].keys() == columns - {"taught"}
    assert all(own.keys() == columns for name, own in figures.items() if name != "base")
    summary = json.loads((directory / "all_balanced" / "summary.json").read_text())
    assert summary["targets"] > 0
    said = {tuple(value for name, value in own.items() if "seconds" not in name) for own in figures.values()}
    assert len(said) == len(variants)
    assert all(own["seconds"] > 1 for own in figures.values())
    assert figures["base"]["shared_seconds"] == 0
    assert figures["holistic"]["shared_seconds"] > figures["all_balanced"]["shared_seconds"] > 1

    results = Results(tmp_path / "results.json", settings(sizes))
    for variant, own in found:
        results.add(variant, 3, own)
        results.add(variant, 4, own)
    auc = find_auc(directory)
    assert auc is not None
    results.add_auc(3, auc)
    table = to_markdown(results)
    rows = {line.split(" | ")[0][2:]: line for line in table.splitlines() if line.startswith("| ")}
    assert set(rows) - {"---"} == {"variant", *(variant.label for variant in variants)}
    assert f"{100 * figures['all_balanced']['chair_i']:.1f} ±0.0" in rows["All, balanced"]
    plot(results, tmp_path / "results.png")
    with PIL.Image.open(tmp_path / "results.png") as picture:
        assert picture.width > 800
    assert list(compare(directory, sizes, variants)) == found  # all of it was there


def test_a_detector_that_errs_errs_alike_in_all_captions(tmp_path: Path) -> None:
    """As often as is said, of a phrase in every candidate of an image, and nothing else changes; repeatable."""

    def judged(label: str, absent: bool) -> Signal:
        return Signal(
            label, (Span(0, 4), Span(9, 13)), float(absent), float(not absent), 0.1 if absent else 0.9, absent
        )

    labels, images = [f"noun {number}" for number in range(50)], [f"{number:03}.png" for number in range(100)]
    there = {label: number % 2 == 0 for number, label in enumerate(labels)}
    verdicts = [
        Verdict(image, candidate, "detector", tuple(judged(label, not there[label]) for label in labels[candidate:]))
        for image in images
        for candidate in range(2)
    ]
    for part in range(2):
        write_part(tmp_path / "right", part, 2, verdicts[part::2], Verdict, {"detector": "digest"})
    for out, seed in (("wrong", 7), ("again", 7), ("other", 8)):
        misjudge(tmp_path / "right", tmp_path / out, erring(seed))
    right, wrong, again, other = (
        {(verdict.image, verdict.candidate): verdict for verdict in read_parts(tmp_path / name, Verdict)}
        for name in ("right", "wrong", "again", "other")
    )
    assert part_metadata(tmp_path / "wrong") == {"detector": "digest"}
    assert wrong == again != other
    assert wrong.keys() == right.keys()
    turned: Counter[bool] = Counter()
    for image in images:
        first, second = (wrong[image, candidate].signals for candidate in range(2))
        assert first[1:] == second
        for was, now in zip(right[image, 0].signals, first, strict=True):
            assert (was.label, was.spans) == (now.label, now.spans)
            assert (now.negative, now.positive) == (float(now.absent), float(not now.absent))
            turned[was.absent] += was.absent != now.absent
    one_kind = len(images) * len(labels) / 2
    assert turned[False] / one_kind == pytest.approx(MISSES, abs=0.02)  # 3.7 standard deviations
    assert turned[True] / one_kind == pytest.approx(FALSE_ALARMS, abs=0.02)


def test_a_sheet_strikes_what_is_wrong(tmp_path: Path) -> None:
    """A caption with an error has red in it, one without has none; text of any length and alphabet fits."""
    from tests.demo.test_language import SCENE, TRUE

    draw(SCENE).convert("L").save(tmp_path / "gray.png")  # no red

    def red(caption: str) -> int:
        sheet = draw_sheet([Shown(tmp_path / "gray.png", caption, "", SCENE)], "heading")
        return sum(count for count, color in sheet.getcolors(1 << 24) or [] if color == (204, 36, 36))

    assert red(TRUE) == 0
    assert red(TRUE.replace("star in red", "star in green")) > 0
    assert red("☂" * 300) > 0
