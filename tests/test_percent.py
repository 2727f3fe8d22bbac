"""Shares that are nearly all or nearly none do not read as all or none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigor_jax.percent import percent


@pytest.mark.parametrize(
    ("share", "digits", "expected"),
    [
        (0.0, 0, "0"),
        (1.0, 0, "100"),
        (0.0, 1, "0.0"),
        (1.0, 1, "100.0"),
        (0.5, 0, "50"),
        (0.114, 1, "11.4"),
        (0.994, 0, "99"),
        (0.999, 0, "99.9"),
        (0.9996, 1, "99.96"),
        (0.9999, 0, "99.99"),
        (0.001, 0, "0.1"),
        (0.0004, 1, "0.04"),
        (1e-9, 0, "<0.001"),
        (1 - 1e-9, 0, ">99.999"),
        (1.25, 0, "125"),
        (-0.25, 1, "-25.0"),
    ],
)
def test_examples(share, digits, expected):
    assert percent(share, digits) == expected


@given(st.integers(1, 10**7), st.integers(0, 3), st.data())
def test_only_all_is_100_and_only_none_is_0(total, digits, data):
    count = data.draw(st.integers(0, total))
    text = percent(count / total, digits)
    assert (float(text.lstrip("<>")) == 100) == (count == total)
    assert (float(text.lstrip("<>")) == 0) == (count == 0)
