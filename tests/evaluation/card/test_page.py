"""The page in a real browser, opened from disk."""

import os
from pathlib import Path

import pytest

from tests.evaluation.card.saved import chair, pope, write_result, write_run
from tests.report.conftest import SIZES, is_dark
from vigor_jax.evaluation.card.compare import make_card
from vigor_jax.evaluation.card.results import Skipped, read_systems
from vigor_jax.evaluation.card.write import write_card

HOSTILE = '<img src=x onerror=alert(1)> "quoted" & long' + " word" * 60


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    write_run(folder / "run" / "base", {"chair": chair(0.6), "pope": pope(0.6, 1)})
    write_run(folder / "run" / "tuned", {"chair": chair(0.9, 2), "pope": pope(0.9, 3)})
    systems, _ = read_systems([folder / "run"])
    skipped = [Skipped("mmhal, tuned", HOSTILE), Skipped("amber", "there is no folder data/amber")]
    two, *_ = write_card(make_card(systems, skipped), folder / "two")
    for name, protocol in (("one", "paper"), ("other", "llava-1.5")):
        write_result(folder / name / "pope", "pope", pope(0.7, protocol=protocol))
    mixed, *_ = write_card(make_card(*read_systems([folder / "one", folder / "other"])), folder / "mixed")
    alone, *_ = write_card(make_card(systems[1:]), folder / "alone")
    return {"two": two, "mixed": mixed, "alone": alone}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_looks(pages: dict[str, Path], open_page, size: str, scheme: str, tmp_path: Path) -> None:
    folder = Path(os.environ.get("REPORT_SCREENSHOTS", tmp_path))  # to look at
    for name, path in pages.items():
        page = open_page(path, size, scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size]["width"]
        over = page.locator(".scroll").evaluate_all("all => all.map((a) => a.scrollWidth - a.clientWidth)")
        assert max(over) <= 0
        assert is_dark(page) == (scheme == "dark")
        page.keyboard.press("t")
        assert is_dark(page) != (scheme == "dark")
        page.keyboard.press("t")
        page.screenshot(path=folder / f"card-{name}-{scheme}-{size}.png", full_page=True)


def test_what_the_page_says(pages: dict[str, Path], open_page) -> None:
    page = open_page(pages["two"])
    assert page.title() == "base · tuned · Hallucination card"
    row = page.locator("#section-1 tbody tr").first
    assert row.locator("th").inner_text() == "CHAIR_i↓"
    assert row.locator(".change").get_attribute("class") == "change better"
    assert "p < 0.002, better" in row.locator(".change").inner_text()
    assert row.locator(".plot circle").count() == 2
    first, last = (
        float(x) for x in row.locator(".plot circle").evaluate_all("a => a.map((c) => c.getAttribute('cx'))")
    )
    assert last < first
    assert page.locator("#skipped dd").first.inner_text() == HOSTILE
    assert page.locator("img").count() == 0
    page.locator("summary").first.click()
    assert (
        "tuned: model x/export, dtype float32, sampling.max_new_tokens 96" in page.locator("details").first.inner_text()
    )


def test_tables_of_different_protocols_are_apart(pages: dict[str, Path], open_page) -> None:
    page = open_page(pages["mixed"])
    assert page.locator("table").count() == 2
    assert page.locator("th", has_text="difference").count() == 0
    assert page.locator(".notes li", has_text="do not compare").count() == 2


def test_without_jinja_the_rest_is_written(
    pages: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    systems, _ = read_systems([pages["two"].parent.parent / "run"])
    assert [path.name for path in write_card(make_card(systems), tmp_path)] == ["card.json", "card.md"]
