"""The responses of PPO in a real browser: colors, numbers, the keyboard."""

import dataclasses
import os
import re
from pathlib import Path

import numpy as np
import pytest

from tests.report.conftest import SIZES, is_dark
from tests.report.synthetic import draw_demo, make_rollout, make_run, write_ppo
from tests.report.test_ppo_report import write_settings
from vigor_jax.data.records import store
from vigor_jax.records import Rollout, Signal, Span, Verdict
from vigor_jax.report import build_report

HOSTILE = "<img src=x onerror=alert(1)> 🐕 barks.\nA <b>cat</b>."


def one(image, candidate, rewards, advantages, values=True):
    """A response in which a stream names the dog, and another one judges a sentence."""
    dog = HOSTILE.index("🐕")
    verdicts = (
        Verdict(image, candidate, "clip", (Signal("dog", (Span(dog, dog + 1),), 0.0, 0.5, 0.25),)),
        Verdict(image, candidate, "my_model", (Signal("0", (Span(0, len(HOSTILE)),), 0.75, 0.0, 0.125),)),
        Verdict(image, candidate, "whole", (Signal("all of it", (), 0.0, 0.0, 0.5),)),
    )
    made = make_rollout(image, candidate, HOSTILE, verdicts, np.random.default_rng(0))
    count = len(made.token_ids)
    padded = [tuple(np.resize(each, count).tolist()) for each in (rewards, advantages)]
    return dataclasses.replace(
        made, rewards=padded[0], advantages=padded[1], values=made.values if values else (), finish_reason="stop"
    )


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Of two runs: one by hand, whose only image is in both iterations, and one with different images."""
    folder = tmp_path_factory.mktemp("runs")
    draw_demo(folder / "hand" / "images", 2)
    for number, rewards in ((0, [0.0, 2.0, -1.0, 0.0, 0.0]), (3, [2.0, -2.0, 0.0, 1.0, 0.0])):
        rows = [one("00000.png", n, rewards, [-0.5, 0.5, 1.5, 0.0, -1.5], values=n == 0) for n in (0, 1)]
        store.write_part(folder / "hand" / "ppo", number, 4, rows, Rollout)
    write_settings(folder / "hand")
    demo = draw_demo(folder / "other" / "images", 40)
    write_ppo(folder / "other", demo, iterations=3, batch=8)
    write_settings(folder / "other")
    return build_report([folder / "hand", folder / "other"], folder / "index.html")


def tokens(page):
    return page.locator("#responses .side").first.locator(".card").first.locator(".token")


def choice(page, name):
    return page.get_by_role("radio", name=name)


def kinds(page):
    return tokens(page).evaluate_all(
        "nodes => nodes.map((node) => [...node.classList].filter((name) => name === 'up' || name === 'down').join())"
    )


def tooltip(page):
    return " ".join(page.locator("#tooltip").inner_text().split())


def test_tokens_have_the_color_of_their_reward_or_advantage(report, open_page):
    page = open_page(report)
    assert page.locator("#responses .side h3").all_inner_texts() == ["Iteration 1", "Iteration 4"]
    assert tokens(page).all_inner_texts()[:2] == ["<img", " src=x"]
    count = tokens(page).count()
    rewards = np.resize(["", "up", "down", "", ""], count).tolist()
    assert kinds(page) == rewards
    assert page.locator("#scale-low").inner_text() == "≤ −2.00"
    assert page.locator("#scale-high").inner_text() == "≥ +2.00"
    strengths = tokens(page).evaluate_all("nodes => nodes.map((node) => node.style.getPropertyValue('--strength'))")
    assert strengths[:4] == ["0%", "100%", "55%", "0%"]
    choice(page, "Advantage").check()
    assert kinds(page) == np.resize(["down", "up", "up", "", "down"], count).tolist()
    assert page.locator("#scale-high").inner_text() == "≥ +1.50"
    choice(page, "Reward").check()
    assert kinds(page) == rewards


def test_the_text_is_whole_and_only_text(report, open_page):
    page = open_page(report)
    texts = page.locator("#responses .tokens").evaluate_all("nodes => nodes.map((node) => node.textContent)")
    assert texts == [f"{HOSTILE}end"] * 4  # with the mark of the last token, which has no letters
    assert page.locator("#responses .tokens :not(span)").count() == 0
    assert page.locator("#responses header").first.inner_text().split("\n")[0] == "Response 0"


def test_a_token_says_its_numbers_and_who_named_it(report, open_page):
    page = open_page(report)
    dog = tokens(page).filter(has_text="🐕")
    dog.hover()
    text = tooltip(page)
    assert re.match(
        r"“ 🐕” token 4 of \d+ reward 0\.000 advantage 0\.000 log p −\d\.\d+ log p of the reference −", text
    )
    assert "value " in text
    assert "clip dog 0.250 rewarded +0.500" in text
    assert "my model 0 0.125 punished −0.750" in text
    assert "whole" not in text
    assert "named" in dog.get_attribute("class")
    assert "named" not in tokens(page).nth(0).get_attribute("class")  # all of the sentence is no name
    tokens(page).last.hover()
    assert tooltip(page).startswith("end of the response token")
    assert "whole all of it 0.500 neither 0.000" in tooltip(page)
    page.mouse.move(3, 3)
    assert page.locator("#tooltip").is_hidden()
    page.locator("#responses .card").nth(1).locator(".token").first.hover()
    assert "value" not in tooltip(page)  # this one has no value head


def test_the_keyboard_alone_will_do(report, open_page):
    page = open_page(report)
    choice(page, "Reward").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("input[value=advantages]").is_checked()
    page.locator("#example-before, #example-after").last.focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "<img"
    assert "token 1 of" in tooltip(page)
    for key, wanted in (("ArrowRight", 2), ("ArrowRight", 3), ("ArrowLeft", 2), ("Home", 1), ("ArrowLeft", 1)):
        page.keyboard.press(key)
        assert f"token {wanted} of" in tooltip(page)
    page.keyboard.press("End")
    assert tooltip(page).startswith("end of the response")
    page.keyboard.press("Tab")  # to the next response, whose first token it is
    assert "token 1 of" in tooltip(page)
    assert page.evaluate("document.activeElement.closest('.card').querySelector('.number').textContent") == "Response 1"
    page.keyboard.press("Shift+Tab")  # back to where one was
    assert tooltip(page).startswith("end of the response")


def test_examples_and_runs(report, open_page):
    page = open_page(report)
    assert page.locator("#example-count").inner_text() == "example 1 of 1"
    assert page.locator("#different").is_hidden()
    assert page.locator("#example-after").is_disabled()
    choice(page, "Advantage").check()
    page.locator("#ppo-run").select_option("1")
    assert page.locator("#example-count").inner_text() == "example 1 of 6"
    assert page.locator("#different").is_visible()
    before = page.locator("#responses .name").all_inner_texts()
    page.locator("#example-after").click()
    assert page.locator("#example-count").inner_text() == "example 2 of 6"
    assert page.locator("#responses .name").all_inner_texts() != before
    assert page.locator("#responses .token.up").count() > 5  # still by advantage
    assert page.locator("#responses .frame img").evaluate_all("all => all.every((one) => one.width > 50)")
    page.locator("#example-before").click()
    assert page.locator("#responses .name").all_inner_texts() == before


CONTRAST = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const paint = (colors) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const color of colors) { canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (color) => {
    const [r, g, b] = color.map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const card = getComputedStyle(document.querySelector("#responses .card")).backgroundColor;
  return [...document.querySelectorAll("#responses .token")].map((node) => {
    const style = getComputedStyle(node);
    const [a, b] = [light(paint([card, style.backgroundColor])), light(paint([style.color]))];
    return { contrast: (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), color: paint([card, style.backgroundColor]) };
  });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colors_can_be_read_and_told_apart(report, open_page, scheme):
    """Text on the strongest color has WCAG's contrast; the colors are blue and orange."""
    page = open_page(report, scheme=scheme)
    assert is_dark(page) == (scheme == "dark")
    found = page.evaluate(CONTRAST)
    assert min(each["contrast"] for each in found) >= 4.5
    _, up, down = (each["color"] for each in found[:3])
    assert up[2] - up[0] > 40
    assert down[0] - down[2] > 40


@pytest.mark.parametrize("size", SIZES)
def test_no_part_is_wider_than_the_page(report, open_page, size, tmp_path):
    page = open_page(report, size)
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size]["width"]
    assert page.locator("#ppo svg").count() >= 10
    folder = Path(os.environ.get("REPORT_SCREENSHOTS", tmp_path))  # to look at
    page.screenshot(path=folder / f"ppo-{size}.png", full_page=True)


@pytest.mark.slow
@pytest.mark.main
def test_the_gallery_keeps_its_keys_and_ppo_its_own(tmp_path, open_page):
    run = tmp_path / "run"
    demo = make_run(run, 6)
    write_ppo(run, demo, iterations=2, batch=3)
    page = open_page(build_report([run], tmp_path / "index.html"))
    page.keyboard.press("j")
    assert page.locator("#detail .name").inner_text() == "00001.png"
    page.locator("#responses .token").first.focus()
    page.keyboard.press("ArrowRight")
    choice(page, "Reward").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("j")
    assert page.locator("#detail .name").inner_text() == "00001.png"
    assert page.locator("input[value=advantages]").is_checked()
    page.locator(".caption .sentence").first.hover()
    assert page.locator("#tooltip li, #tooltip p").count() > 0
