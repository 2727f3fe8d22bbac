"""Pictures that fit."""

import io

import numpy as np
import pytest
from PIL import Image

from vigor_jax.report.thumbnails import LEVELS, MAX_BYTES_EACH, make_thumbnails


@pytest.fixture
def noise(tmp_path):
    """Pictures that hardly compress."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{number}.png" for number in range(6)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (300, 400, 3), np.uint8)).save(path)
    return paths


@pytest.mark.parametrize("budget", [10**9, 60_000, 20_000])
def test_all_together_stay_below_the_budget(noise, budget):
    found = make_thumbnails(noise, budget)
    assert sum(len(each.data) for each in found) <= min(budget, MAX_BYTES_EACH * len(noise))
    for each in found:
        image = Image.open(io.BytesIO(each.data))
        assert (image.format, image.size) == ("WEBP", (each.width, each.height))
        assert each.width / each.height == pytest.approx(4 / 3, rel=0.02)


def test_more_room_gives_larger_pictures(noise):
    small, large = (make_thumbnails(noise, budget)[0] for budget in (20_000, 100_000))
    assert small.width < large.width


def test_the_smallest_is_taken_where_nothing_fits(noise):
    assert max(make_thumbnails(noise, 0)[0][:2]) == LEVELS[-1][0]


def test_small_pictures_are_not_enlarged(tmp_path):
    Image.new("RGB", (30, 20), "red").save(tmp_path / "a.png")
    (found,) = make_thumbnails([tmp_path / "a.png"], 10**6)
    assert (found.width, found.height) == (30, 20)


def test_the_missing_and_the_damaged_are_counted(tmp_path, caplog):
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    found = make_thumbnails([tmp_path / "a.png", tmp_path / "b.png", tmp_path / "c.png", None], 10**6)
    assert [each is None for each in found] == [False, True, True, True]
    assert f"3 of 4 images are missing or cannot be read, such as {tmp_path / 'b.png'}" in caplog.text


def test_none_at_all():
    assert make_thumbnails([], 100) == []
