"""Column arithmetic against plain Python; reading is tested with the selection that uses it."""

import re

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from vigor_jax.data.records.blocks import Mentions, num_words, segment_sums, unpack
from vigor_jax.records import Dropped, Span

ENDS = st.lists(st.integers(0, 12), min_size=2, max_size=2, unique=True).map(sorted)
SIGNALS = st.lists(st.lists(ENDS.map(lambda pair: Span(*pair)), max_size=3), max_size=3)  # the spans of each
TYPE = pa.list_(pa.struct({"spans": pa.list_(pa.struct({"start": pa.int64(), "end": pa.int64()}))}))


def column(rows):
    return pa.array([[{"spans": [span._asdict() for span in spans]} for spans in row] for row in rows], TYPE)


def cut(rows, data):
    """The bounds of some of the rows: columns are slices of larger ones."""
    start = data.draw(st.integers(0, len(rows)))
    return start, data.draw(st.integers(start, len(rows)))


@given(st.lists(SIGNALS, max_size=4), st.lists(ENDS, max_size=3), st.data())
def test_mentions(rows, gone, data):
    start, end = cut(rows, data)
    mentions = Mentions(column(rows).slice(start, end - start))
    rows = rows[start:end]
    assert mentions.per_row.tolist() == [sum(bool(spans) for spans in row) for row in rows]
    dropped = [Dropped(Span(*pair), "") for pair in gone]
    letters = [set(range(*pair)) for pair in gone]

    def is_left(span):
        return not any(each.intersection(range(*span)) for each in letters)

    for number, row in enumerate(rows):
        assert mentions.left(number, dropped) == sum(any(map(is_left, spans)) for spans in row)


@given(st.lists(st.lists(st.integers(0, 9), max_size=3), max_size=5), st.data())
def test_segment_sums(rows, data):
    start, end = cut(rows, data)
    values, offsets = unpack(pa.array(rows, pa.list_(pa.float64())).slice(start, end - start))
    found = segment_sums(values.to_numpy(), offsets)
    assert found.dtype == np.float64
    assert found.tolist() == [sum(row) for row in rows[start:end]]


@given(st.lists(st.text(st.sampled_from("aé猫.\u00a0 \t\n"), max_size=8), max_size=5), st.data())
def test_words(texts, data):
    start, end = cut(texts, data)
    found = num_words(pa.array(texts, pa.string()).slice(start, end - start))
    assert found.tolist() == [len(re.findall(r"[^ \t\n]+", text)) for text in texts[start:end]]
