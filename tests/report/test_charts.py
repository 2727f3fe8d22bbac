"""Charts that are part of a page: its colors, nothing that could leak out, names as text."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from vigor_jax.evaluation.card.card import Value
from vigor_jax.report import charts

SVG = "{http://www.w3.org/2000/svg}"


def drawn():
    values = {"rejected": np.arange(40) % 7, "chosen": np.arange(30) % 5}
    yield charts.histogram(values, charts.bin_edges(np.concatenate(list(values.values()))), "penalty of a candidate")
    cell = Value(0.4, 0.35, 0.5)
    runs = {"<b>a$b$": {"base": (cell, cell), "tuned": (Value(0.5, None, None), cell)}, "b": {"tuned": (cell, cell)}}
    yield charts.chair_against_recall(runs)
    bins = [{"count": 0, "p_good": None, "good": None}, {"count": 5, "p_good": 0.7, "good": 0.4}]
    yield charts.calibration(bins)
    yield charts.histogram(
        dict.fromkeys(("rewarded", "neither", "punished"), np.arange(9) / 9), np.linspace(0, 1, 9), "<b> $\\no{$"
    )
    curve = charts.Curve.of(np.arange(400), np.sin(np.arange(400)))
    yield charts.curves({"one": curve, "other": curve}, "<a & b>", (0, 399), (-1, 1), unit="number")


@pytest.mark.parametrize("svg", drawn(), ids=["histogram", "chair", "calibration", "scores", "curves"])
def test_charts_take_everything_from_the_page(svg):
    root = ET.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    assert root.get("role") == "img"
    assert root.get("aria-label")
    assert "var(--" in svg
    assert not re.search(r"#0\d0\d0\d", svg)  # every color has become a variable
    assert not list(root.iter(f"{SVG}style"))
    assert "metadata" not in svg
    assert "font:" not in svg
    assert not re.search(r'id="[a-z]+_\d+"', svg)
    references = re.findall(r'(?:xlink:href="|url\()#(\w+)', svg)
    assert references
    assert set(references) <= set(re.findall(r'id="(\w+)"', svg))


def test_small_shares_have_labels_of_their_own():
    """No two ticks of one axis have one label, and none reads 0% but 0."""
    values = np.concatenate([np.zeros(1), np.repeat(np.arange(1, 1000), 2)]) / 1000
    svg = charts.histogram({"chosen": values}, np.linspace(0, 1, 401), "penalty")
    labels = [
        text for node in ET.fromstring(svg).iter(f"{SVG}text") if (text := "".join(node.itertext())).endswith("%")
    ]
    assert len(labels) > 2
    assert len(set(labels)) == len(labels)


def test_names_are_text():
    svg = list(drawn())[1]
    texts = ["".join(node.itertext()) for node in ET.fromstring(svg).iter(f"{SVG}text")]
    assert "<b>a$b$" in texts  # neither markup nor mathematics


def test_equal_numbers_give_equal_charts():
    assert list(drawn()) == list(drawn())


def test_bins_of_whole_numbers_lie_between_them():
    np.testing.assert_array_equal(charts.bin_edges(np.array([0, 1, 3])), [-0.5, 0.5, 1.5, 2.5, 3.5])


@pytest.mark.parametrize("values", [[0.0], [2.5, 2.5], [0.2, 0.7], [-3.5, 1e6], list(range(500))])
def test_bins_cover_all_but_the_last_few(values):
    values = np.array(values, float)
    edges = charts.bin_edges(values)
    assert np.all(np.diff(edges) > 0)
    assert edges[0] <= values.min()
    assert np.mean(values <= edges[-1]) >= 0.5
    assert 1 <= len(edges) - 1 <= 31


@pytest.mark.parametrize("count", [1, 7, 150, 151, 4321])
def test_a_curve_has_few_points_which_stand_for_all(count):
    """Means of neighbors, of which none is left out, and their whole range."""
    values = np.random.default_rng(count).normal(size=count)
    curve = charts.Curve.of(np.arange(1, count + 1), values)
    assert len(curve.steps) == min(count, 150)
    sizes = np.array([len(part) for part in np.array_split(values, len(curve.steps))])
    assert np.sum(curve.values * sizes) == pytest.approx(values.sum())
    assert np.sum(curve.steps * sizes) == pytest.approx(count * (count + 1) / 2)
    assert (curve.lowest.min(), curve.highest.max()) == (values.min(), values.max())
    assert np.all((curve.lowest <= curve.values) & (curve.values <= curve.highest))
    assert np.all(np.diff(curve.steps) > 0)


@pytest.mark.parametrize("value", [0.0, -3.0, 1e-9, 5e8])
def test_a_curve_that_stays_where_it_is(value):
    svg = charts.curves(
        {"one": charts.Curve.of(np.array([1]), np.array([value]))}, "x", (1, 1), (value, value), unit=""
    )
    labels = ["".join(node.itertext()) for node in ET.fromstring(svg).iter(f"{SVG}text")]
    assert len(labels) == len(set(labels)) > 2
    assert "1" in labels  # the iteration, a whole number
    assert not {"0.6", "0.8", "1.2", "1.4"} & set(labels)


def test_bins_of_scores_lie_where_the_scores_are():
    edges = charts.bin_edges(np.linspace(0.18, 0.31, 50), whole_range=False)
    assert (edges[0], len(edges)) == (pytest.approx(0.18), 31)
    assert edges[-1] == pytest.approx(0.31, abs=0.001)
