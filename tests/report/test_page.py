"""The page in a real browser, opened from disk."""

import dataclasses
import itertools
import os
import shutil
import statistics
from pathlib import Path

import pytest
from PIL import Image

from tests.report.conftest import SIZES, is_dark
from tests.report.synthetic import draw_demo, make_run, write_config, write_records
from vigor_jax.data.records import store
from vigor_jax.demo.language import plural
from vigor_jax.records import Candidate, Edit, Selection, Signal, Span, Verdict
from vigor_jax.report import build_report
from vigor_jax.stages.select import select
from vigor_jax.stages.select_config import SelectConfig

HOSTILE = '<img src=x onerror=alert(1)><b>bold</b> A "quoted" & a heart.'


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    texts = {("00000.png", number): HOSTILE for number in range(5)}
    texts[("00001.png", 2)] = "A 🐕🐕 zebra-striped heart. Two stars can be seen."
    make_run(folder / "one", 40, texts=texts)
    make_run(folder / "two", 30, seed=1, streams=("detector",))
    return folder


@pytest.fixture(scope="module")
def report(runs):
    return build_report([runs / "one", runs / "two"], runs / "index.html")


def name(page):
    return page.locator("#detail .name").inner_text()


def shown(page):
    return page.locator("#count").inner_text()


def count(selections, wanted):
    return sum(map(wanted, selections))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_looks(report, open_page, size, scheme, tmp_path):
    page = open_page(report, size, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size]["width"]
    assert is_dark(page) == (scheme == "dark")
    page.keyboard.press("t")
    assert is_dark(page) != (scheme == "dark")
    page.keyboard.press("t")
    folder = Path(os.environ.get("REPORT_SCREENSHOTS", tmp_path))  # to look at
    page.screenshot(path=folder / f"{scheme}-{size}.png", full_page=True)
    assert page.locator("#benchmarks svg, #rewards svg, #reward-model svg, #lengths svg").count() >= 10


OVERLAPS = """() => {
  const overlap = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 0.5
    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 0.5;
  const found = [];
  for (const chart of document.querySelectorAll(".chart svg")) {
    const texts = [...chart.querySelectorAll("text")];
    texts.forEach((one, i) => texts.slice(i + 1).forEach((other) => {
      if (overlap(one.getBoundingClientRect(), other.getBoundingClientRect()))
        found.push([chart.getAttribute("aria-label"), one.textContent.trim(), other.textContent.trim()]);
    }));
  }
  return found;
}"""


@pytest.mark.slow
@pytest.mark.parametrize("size", [pytest.param(size, marks=[pytest.mark.main] * (size == "narrow")) for size in SIZES])
def test_no_label_of_a_chart_lies_on_another(runs, report, open_page, tmp_path, size):
    """Where the axes meet, and where two runs have the same figures."""
    assert open_page(report, size).evaluate(OVERLAPS) == []
    for name in ("a run", "another run", "a third one"):
        shutil.copytree(runs / "one", tmp_path / name)
    page = open_page(
        build_report([*(tmp_path / n for n in ("a run", "another run", "a third one"))], tmp_path / "p.html"), size
    )
    assert page.locator("#benchmarks svg text", has_text="a third one").count() == 1
    assert page.evaluate(OVERLAPS) == []


@pytest.mark.slow
@pytest.mark.main
@pytest.mark.parametrize("evaluated", [["one"], ["one", "other"], ["one", "other", "third"]])
def test_no_column_of_the_benchmarks_is_cut_on_a_phone(runs, open_page, tmp_path, evaluated):
    for name in evaluated:
        shutil.copytree(runs / "one", tmp_path / name)
    page = open_page(build_report([tmp_path / name for name in evaluated], tmp_path / "page.html"), "narrow")
    heads = page.locator("#benchmarks th:visible", has_text="change")
    assert heads.count() == len(evaluated)
    cells = page.locator("#benchmarks th:visible, #benchmarks td:visible")
    edges = cells.evaluate_all("cells => cells.map((cell) => cell.getBoundingClientRect().right)")
    assert max(edges) <= SIZES["narrow"]["width"]
    widths = page.locator("#benchmarks .scroll:visible").evaluate_all(
        "all => all.map((a) => a.scrollWidth - a.clientWidth)"
    )
    assert max(widths) <= 0


@pytest.mark.slow
@pytest.mark.parametrize("size", [pytest.param(size, marks=[pytest.mark.main] * (size == "narrow")) for size in SIZES])
def test_the_table_says_whose_evaluation_it_is(runs, open_page, tmp_path, size):
    shutil.copytree(runs / "one", tmp_path / "measured")
    shutil.copytree(runs / "two", tmp_path / "not measured")
    for name in ("evaluation", "metrics"):
        shutil.rmtree(tmp_path / "not measured" / name)
    page = open_page(build_report([tmp_path / "not measured", tmp_path / "measured"], tmp_path / "page.html"), size)
    for section in ("#benchmarks", "#reward-model"):
        assert page.locator(f"{section} th.run:visible").all_inner_texts() == ["measured"]
    assert page.locator("#benchmarks figcaption").inner_text() == "measured: hallucination against recall"
    page.locator("#run").select_option("1")
    assert shown(page) == "40 images"


@pytest.mark.slow
@pytest.mark.main
def test_whose_gallery_it_is(runs, open_page, tmp_path):
    """Also where only one of the runs has candidates."""
    shutil.copytree(runs / "one", tmp_path / "one")
    shutil.copytree(runs / "two" / "evaluation", tmp_path / "two" / "evaluation")
    page = open_page(build_report([tmp_path / "two", tmp_path / "one"], tmp_path / "page.html"))
    assert page.locator("#run").is_visible()
    assert page.locator("#run option").all_inner_texts() == ["one"]
    page = open_page(build_report([tmp_path / "one"], tmp_path / "page.html"))
    assert page.locator("#run").is_hidden()


def test_candidates_without_content_and_repetitions(open_page, tmp_path):
    run, demo = tmp_path / "run", draw_demo(tmp_path / "images", 1)
    texts = {("00000.png", number): "" for number in (0, 2)}
    texts["00000.png", 1] = "There is a heart. There is a star. There is a heart."
    write_records(run, demo, candidates=3, texts=texts, parts=1)
    page = open_page(build_report([run], tmp_path / "page.html", tmp_path / "images"))
    why = page.locator(".why").inner_text()
    assert why.startswith("Why candidate 1. It is the only one with content")
    cards = page.locator(".card").all_inner_texts()
    assert [text.split("\n")[0].split()[:2] for text in cards] == [["Candidate", number] for number in ("1", "0", "2")]
    assert "repeated sentences" in cards[0]
    assert all("without content" in text for text in cards[1:])
    selection = " ".join(page.locator("#selection").inner_text().split())
    assert "Without content candidates → chosen 66.7% → 0.0%" in selection
    assert "Repeating a sentence candidates → chosen 33.3% → 100.0%" in selection
    assert "The only one with content 100%" in selection


def test_a_caption_that_is_markup_is_text(report, open_page):
    page = open_page(report)
    assert name(page) == "00000.png"
    captions = page.locator(".caption").all_inner_texts()
    assert captions == [HOSTILE] * 5
    assert page.locator(".caption img, .caption b").count() == 0
    page.locator(".caption .sentence").first.hover()
    assert page.locator("#tooltip img").count() == 0


def test_search(report, open_page):
    page = open_page(report)
    assert shown(page) == "40 images"
    page.keyboard.press("/")
    page.keyboard.type("ZEBRA-striped")
    assert shown(page) == "1 of 40"
    assert name(page) == "00001.png"
    assert any("A 🐕🐕 zebra-striped heart." in text for text in page.locator(".caption").all_inner_texts())
    page.locator("#search").fill("nothing says this")
    assert shown(page) == "0 of 40"
    assert page.locator("#detail").inner_text() == "No image matches."
    page.locator("#search").fill("00007")
    assert (shown(page), name(page)) == ("1 of 40", "00007.png")


def test_spans_count_characters_not_halves(report, open_page):
    page = open_page(report)
    page.locator("#search").fill("zebra-striped")
    sentences = page.locator(".sentence", has_text="zebra")
    assert sentences.inner_text() == "A 🐕🐕 zebra-striped heart."
    assert sentences.locator(".phrase").inner_text() == "heart"


def test_filters_count_what_the_records_say(runs, report, open_page):
    page = open_page(report)
    verdicts = store.read_parts(runs / "one" / "verdicts" / "detector", Verdict)
    absent = {(each.image, each.candidate) for each in verdicts if any(signal.absent for signal in each.signals)}
    selections = list(store.read_parts(runs / "one" / "selections", Selection))
    page.locator("#hallucinated").check()
    assert shown(page) == f"{len({image for image, _ in absent})} of 40".replace("40 of 40", "40 images")
    page.locator("#scope").select_option("chosen")
    assert shown(page) == f"{count(selections, lambda each: (each.image, each.candidate) in absent)} of 40"
    assert page.locator(".tile .dot").count() == page.locator(".tile").count()
    page.locator("#hallucinated").uncheck()
    for stream in ("detector", "reward_model"):
        page.locator("#decided").select_option(f"penalty {stream}")
        wanted = count(selections, lambda each, s=stream: each.decisive_stream == s and not each.reason)
        assert shown(page) == f"{wanted} of 40"
    page.locator("#decided").select_option("")
    page.keyboard.press("Escape")
    page.keyboard.press("d")
    assert page.locator("#disagree").is_checked()
    assert shown(page) != "40 images"


def test_hover_and_focus_show_what_was_said(runs, report, open_page):
    page = open_page(report)
    page.keyboard.press("j")
    image = name(page)
    verdicts = store.read_parts(runs / "one" / "verdicts" / "reward_model", Verdict)
    selection = next(s for s in store.read_parts(runs / "one" / "selections", Selection) if s.image == image)
    verdict = next(v for v in verdicts if (v.image, v.candidate) == (image, selection.candidate))
    sentences = page.locator(".is-chosen .sentence")
    tooltip = page.locator("#tooltip")
    assert sentences.count() == len(verdict.signals)
    assert tooltip.is_hidden()
    for number, signal in enumerate(verdict.signals):
        sentences.nth(number).hover()
        text = tooltip.inner_text()
        assert f"p(good) {round(100 * signal.score) / 100:.2f}" in text
        assert ("good" if signal.label == "1" else ", ".join(signal.label.split()[1:])) in text
        assert sentences.nth(number).evaluate("node => node.classList.contains('good')") == (signal.score > 0.5)
        box = tooltip.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 1440
    page.mouse.move(5, 5)
    assert tooltip.is_hidden()
    sentences.first.focus()
    assert tooltip.is_visible()


def test_a_phrase_lights_its_boxes(runs, report, open_page):
    page = open_page(report)
    page.locator("#search").fill("00003")
    phrase = page.locator(".is-chosen .phrase.good").first
    assert page.locator(".boxes rect").count() > 0
    assert page.locator(".boxes rect.current").count() == 0
    phrase.hover()
    assert page.locator(".boxes rect.current").count() > 0
    tag = page.locator(".boxes .tag.current").inner_text()
    label, score = tag.split(" ")
    assert phrase.inner_text() in (label, plural(label))
    assert f"{label} {score}" in page.locator("#tooltip").inner_text()
    frame, box = page.locator(".frame").bounding_box(), page.locator(".boxes rect.current").first.bounding_box()
    verdict = next(
        v
        for v in store.read_parts(runs / "one" / "verdicts" / "detector", Verdict)
        if v.image == "00003.png" and any(s.label == label and s.boxes_xyxy for s in v.signals)
    )
    left, top, _, _ = next(s for s in verdict.signals if s.label == label).boxes_xyxy[0]
    assert box["x"] == pytest.approx(frame["x"] + left * frame["width"], abs=4)
    assert box["y"] == pytest.approx(frame["y"] + top * frame["height"], abs=4)


def test_the_chosen_one_comes_first_with_its_reasons(runs, report, open_page):
    page = open_page(report)
    selections = {each.image: each for each in store.read_parts(runs / "one" / "selections", Selection)}
    dropped = next(each for each in selections.values() if each.dropped and each.refined)
    page.locator("#search").fill(dropped.image)
    card = page.locator(".card").first
    assert "chosen" in card.locator("header").inner_text()
    assert card.locator("del").all_inner_texts() == [dropped.text[slice(*each.span)] for each in dropped.dropped]
    assert page.locator(".card:not(.is-chosen) del").count() == 0
    why = page.locator(".why").inner_text()
    assert f"Why candidate {dropped.candidate}." in why
    assert f"{dropped.penalties[dropped.candidate]:.2f}" in why
    assert dropped.decisive_stream.replace("_", " ") in why
    card.locator("del").first.hover()
    assert "Left out: mentions" in page.locator("#tooltip").inner_text()
    penalties = [float(text.split()[1]) for text in page.locator(".card .penalty").all_inner_texts()]
    assert penalties == sorted(penalties)


def test_claims_and_their_repairs(tmp_path, open_page):
    """A wrong word is crossed out in the chosen text, and the right one stands behind it."""
    draw_demo(tmp_path / "images", 1)
    text = "Two <b>dogs</b> sleep. A cat is on the left."
    place, wrong = text.index("left"), Span(0, 3)
    claims = (
        Signal("dog: two", (wrong,), 1.0, 0.0, 0.0, True, kind="number", edits=(Edit(wrong, "Three <i>"),)),
        Signal("cat: on the left", (Span(place - 7, place + 4),), 0, 1, 1, False, ((0, 0, 0.5, 1),), False, "place"),
    )
    rows = [Candidate("00000.png", "?", number, text, (), -1.0 - number, "stop") for number in range(2)]
    store.write_part(tmp_path / "run" / "candidates", 0, 1, rows, Candidate)
    verdicts = [Verdict("00000.png", number, "claims", claims) for number in range(2)]
    store.write_part(tmp_path / "run" / "verdicts" / "claims", 0, 1, verdicts, Verdict)
    select(SelectConfig(refine="repair"), tmp_path / "run", streams=("claims",))
    write_config(tmp_path / "run", tmp_path / "images")
    page = open_page(build_report([tmp_path / "run"], tmp_path / "index.html"))
    chosen, other = page.locator(".card").first, page.locator(".card").nth(1)
    assert chosen.locator("del.replaced").all_inner_texts() == ["Two"]
    assert chosen.locator("ins").all_inner_texts() == ["Three <i>"]
    assert other.locator("del, ins").count() == 0
    assert other.locator(".caption").inner_text() == text
    chosen.locator("del.replaced").hover()
    told = page.locator("#tooltip").inner_text()
    assert 'Replaced: claims "dog: two", which is wrong' in told
    assert "dog: two" in told
    assert page.locator("#detail .tag").count() == 0
    chosen.locator(".phrase.good").hover()
    assert "right" in page.locator("#tooltip").inner_text()
    assert page.locator("#detail .tag").all_inner_texts() == ["cat: on the left"]


def test_keyboard(report, open_page):
    page = open_page(report)
    for keys, wanted in (("jjj", 3), ("k", 2), (["ArrowRight"], 3), (["ArrowLeft"] * 9, 0), ("j" * 60, 39)):
        for key in keys:
            page.keyboard.press(key)
        assert name(page) == f"{wanted:05d}.png"
        assert page.locator(".tile[aria-selected=true]").get_attribute("title") == name(page)
        assert page.locator(".tile[aria-selected=true]").is_visible()
    page.keyboard.press("2")
    assert page.locator(".card.selected").get_attribute("data-candidate") == "2"  # as the card and the files call it
    assert "Candidate 2" in page.locator(".card.selected header").inner_text()
    page.keyboard.press("0")
    assert page.locator(".card.selected").get_attribute("data-candidate") == "0"
    page.keyboard.press("/")
    page.keyboard.type("jk?")
    assert page.locator("#search").input_value() == "jk?"
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.keyboard.press("Escape")
    assert page.locator("#help").is_hidden()


def test_the_run_can_be_switched_and_the_image_stays(report, open_page):
    page = open_page(report)
    for _ in range(5):
        page.keyboard.press("j")
    page.locator("#run").select_option("1")
    assert (shown(page), name(page)) == ("30 images", "00005.png")
    assert page.locator(".card").first.locator(".terms dt").all_inner_texts()[:1] == ["detector"]
    page.locator("#decided").select_option("logprob")
    assert "the model holds it for likelier" in page.locator(".why").inner_text()
    page.locator("#decided").select_option("positive")
    assert "more of it was found right" in page.locator(".why").inner_text()
    page.locator("#decided").select_option("")
    page.locator("#search").fill("00005")
    page.locator("#search").fill("")
    page.locator("#run").select_option("0")
    assert (shown(page), name(page)) == ("40 images", "00005.png")


def test_one_stream_and_no_selection(tmp_path, open_page):
    run = tmp_path / "run"
    demo = draw_demo(run / "images", 3)
    write_records(run, demo, streams=("detector",), selected=False)
    page = open_page(build_report([run], tmp_path / "index.html", tmp_path))
    assert page.locator(".card").count() == 5
    assert page.locator(".why, .is-chosen").count() == 0
    assert page.locator(".frame .missing").is_visible()
    assert page.locator("#disagree").is_hidden()


def test_a_custom_stream(tmp_path, open_page):
    run, text = tmp_path / "run", "A dog barks. A cat sleeps."
    signals = (Signal("a bark", (Span(0, 12),), 2.0, 0.5, 0.25), Signal("a nap", (Span(15, 18),), 0.0, 1.0, 0.75))
    store.write_part(run / "candidates", 0, 1, [Candidate("a.png", "?", 0, text, (), -1.0, "length")], Candidate)
    store.write_part(run / "verdicts" / "my_ears", 0, 1, [Verdict("a.png", 0, "my_ears", signals)], Verdict)
    page = open_page(build_report([run], tmp_path / "index.html"))
    for sentence, said in (("dog", "my ears score 0.25 a bark"), ("cat", "my ears a nap 0.75 found")):
        page.locator(".caption .sentence", has_text=sentence).hover()
        assert " ".join(page.locator("#tooltip").inner_text().split()) == said
    assert page.locator(".caption .sentence.bad").inner_text() == "A dog barks."
    assert page.locator(".caption .phrase.good").inner_text() == "cat"
    assert "ended by length" in " ".join(page.locator(".terms").inner_text().split())


def test_what_is_unknown_is_shown_so(tmp_path, open_page):
    run, text = tmp_path / "run", "A dog barks. A cat sleeps. A cup stands."
    worth = {"dog": (0.0, 1.0), "cat": (0.0, 0.0), "cup": (1.0, 0.0)}
    spans = {word: Span(text.index(word), text.index(word) + 3) for word in worth}
    signals = tuple(Signal(word, (spans[word],), *worth[word], 0.5, word == "cup") for word in worth)
    store.write_part(run / "candidates", 0, 1, [Candidate("a.png", "?", 0, text, (), -1.0, "stop")], Candidate)
    store.write_part(run / "verdicts" / "detector", 0, 1, [Verdict("a.png", 0, "detector", signals)], Verdict)
    page = open_page(build_report([run], tmp_path / "index.html"))
    for word, kind, said in (("dog", "good", "found"), ("cat", "unknown", "unknown"), ("cup", "bad", "not there")):
        assert page.locator(f".caption .phrase.{kind}").all_inner_texts() == [word]
        page.locator(".caption .sentence", has_text=word).hover()
        assert " ".join(page.locator("#tooltip").inner_text().split()) == f"detector {word} 0.50 {said}"
        assert page.locator(f"#tooltip .{kind}").inner_text() == said
    assert page.locator(".caption .sentence.bad").all_inner_texts() == ["A cup stands."]
    assert page.locator(".caption .sentence.good").count() == 0


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """5,000 images with 5 candidates of some 70 words; 64 of them again and again, too far apart for gzip to notice."""
    folder = tmp_path_factory.mktemp("large")
    small, run = folder / "small", folder / "run"
    write_records(small, draw_demo(small / "images", 64), sentences=9, parts=1)
    (run / "images").mkdir(parents=True)
    names = [f"{number:05d}.png" for number in range(5000)]
    for number, name in enumerate(names):
        os.link(small / "images" / f"{number % 64:05d}.png", run / "images" / name)
    kinds = [("candidates", Candidate), ("selections", Selection)]
    kinds += [(f"verdicts/{stream}", Verdict) for stream in ("detector", "reward_model")]
    for kind, record_type in kinds:
        records = {}
        for record in store.read_parts(small / kind, record_type):
            records.setdefault(record.image, []).append(record)
        repeated = itertools.cycle(records.values())
        rows = (
            dataclasses.replace(row, image=name) for name, rows in zip(names, repeated, strict=False) for row in rows
        )
        store.write_part(run / kind, 0, 1, rows, record_type, store.part_metadata(small / kind))
    write_config(run, run / "images")
    return build_report([run], folder / "index.html")


@pytest.mark.slow
def test_five_thousand_images(large, open_page):
    assert large.stat().st_size < 15_000_000
    page = open_page(large)
    assert shown(page) == "5,000 images"
    assert page.locator(".tile").count() < 100
    for action, value in (("search", "purple"), ("search", "moon at the top"), ("hallucinated", ""), ("disagree", "")):
        times = page.evaluate(
            """([id, value]) => Array.from({ length: 5 }, (_, turn) => {
              const input = document.getElementById(id);
              const start = performance.now();
              if (input.type === "checkbox") input.checked = !input.checked;
              else input.value = turn % 2 ? "" : value;
              input.dispatchEvent(new Event("input"));
              document.body.getBoundingClientRect();  // the layout, too
              return performance.now() - start;
            })""",
            [action, value],
        )
        assert statistics.median(times) < 200, (action, value, times)
    page.locator("#search").fill("04990")
    assert name(page) == "04990.png"
    page.locator("#search").fill("")
    assert page.locator(".tile[aria-selected=true]").get_attribute("title") == "04990.png"
    assert page.locator(".tile[aria-selected=true] img").evaluate(
        "image => image.decode().then(() => image.naturalWidth)"
    )


def test_boxes_in_captions_are_shown_and_drawn(tmp_path, open_page):
    """Relative to the square around a wide image, and told from the detector's."""
    run = tmp_path / "run"
    demo = draw_demo(run / "images", 2)
    text = "A 🐕 star [0.25, 0.25, 0.5, 0.75] and a moon [0.0, 0.5, 1.0, 0.75]. We see [1, 2] things."
    write_records(run, demo, streams=("detector",), texts={("00000.png", number): text for number in range(5)})
    Image.new("RGB", (200, 100)).save(run / "images" / "00000.png")
    page = open_page(build_report([run], tmp_path / "index.html", run / "images"))
    page.locator("#search").fill("00000")
    card = page.locator(".card").first
    assert text in card.locator(".caption").inner_text()
    assert card.locator(".box").all_inner_texts() == [" [0.25, 0.25, 0.5, 0.75]", " [0.0, 0.5, 1.0, 0.75]"]
    assert card.locator(".sentence").count() == 2
    drawn = page.locator(".boxes rect.written")
    assert drawn.count() == 2
    frame = page.locator(".frame").bounding_box()
    for number, (left, top, right, bottom) in enumerate([(0.25, 0, 0.5, 1), (0, 0.5, 1, 1)]):
        box = drawn.nth(number).bounding_box()
        found = (box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"])
        wanted = [frame["x"] + part * frame["width"] for part in (left, right)]
        assert [found[0], found[2]] == pytest.approx(wanted, abs=4)
        wanted = [frame["y"] + part * frame["height"] for part in (top, bottom)]
        assert [found[1], found[3]] == pytest.approx(wanted, abs=4)
    page.locator("#search").fill("00001")
    assert page.locator(".card").first.is_visible()
    assert page.locator(".boxes rect.written, .box").count() == 0
