"""How examples are spread over rows, and that the rows hold exactly them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigor_jax.data.batches.packing import pack, pack_tokens
from vigor_jax.data.text.conversation import IGNORE_INDEX, EncodedExample

PAD = 7


@st.composite
def batches(draw, max_length=300):
    """Lengths, which have an image, and how many rows there are."""
    num_rows, each = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    lengths = draw(st.lists(st.integers(1, max_length), min_size=num_rows * each, max_size=num_rows * each))
    has_image = draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths)))
    return lengths, has_image, num_rows


@given(batches(), st.sampled_from([1, 8, 128]))
def test_every_example_stands_in_one_row_that_has_room(batch, bucket):
    lengths, has_image, num_rows = batch
    packing = pack(lengths, has_image, num_rows=num_rows, bucket=bucket)
    assert len(packing.rows) == num_rows
    assert sorted(example for row in packing.rows for example in row) == list(range(len(lengths)))
    assert packing.places in (len(lengths) // num_rows, 2 * len(lengths) // num_rows)
    longest = max(sum(lengths[example] for example in row) for row in packing.rows)
    assert packing.length % bucket == 0
    assert longest <= packing.length < longest + bucket
    for row in packing.rows:
        assert sum(has_image[example] for example in row) <= packing.places
    assert pack(list(lengths), tuple(has_image), num_rows=num_rows, bucket=bucket) == packing


@given(batches())
def test_no_row_is_longer_than_its_share_and_one_example(batch):
    lengths, _, num_rows = batch
    packing = pack(lengths, [False] * len(lengths), num_rows=num_rows, bucket=1)
    assert packing.length <= sum(lengths) / num_rows + max(lengths)
    assert all(packing.rows)  # none is left empty


@given(st.lists(st.integers(1, 300), min_size=2, max_size=10).filter(lambda x: len(x) % 2 == 0))
def test_two_a_row_is_the_best_there_is(lengths):
    """Longest with shortest: no pairing has a shorter longest row."""
    packing = pack(lengths, [True] * len(lengths), num_rows=len(lengths) // 2, bucket=1)
    ordered = sorted(lengths)
    best = max(map(sum, zip(ordered, ordered[::-1], strict=True)))
    if packing.places == 2:
        assert packing.length == best
    else:
        assert packing.length < best


def test_captions_leave_little_padding():
    """Two a row with LLaVA's image tokens: the figures of the module's docstring."""
    rng = np.random.default_rng(0)
    tokens = room = 0
    for _ in range(50):
        lengths = 576 + 52 + np.clip(rng.normal(119, 24, 32), 57, 198).astype(int)
        packing = pack(lengths.tolist(), [True] * 32, num_rows=16, bucket=128)
        assert packing.places == 2
        tokens, room = tokens + lengths.sum(), room + 16 * packing.length
    assert 0.95 < tokens / room < 0.98


def test_one_long_example_gets_a_row_with_few_others():
    lengths = [1000] + [250] * 7
    packing = pack(lengths, [True] * 8, num_rows=2, bucket=1)
    assert packing == (((0, 5, 7), (1, 2, 3, 4, 6)), 1500, 8)  # and not 1750, which four a row would need
    assert pack(lengths[:1] + [50] * 7, [True] * 8, num_rows=2, bucket=1).length == 1000
    # A little longer is no reason to have twice the image places.
    assert pack([300] + [250] * 7, [True] * 8, num_rows=2, bucket=1) == (((0, 3, 5, 7), (1, 2, 4, 6)), 1050, 4)


def encode(lengths):
    """Examples whose tokens are all different and supervised, even the first, which no real example's is."""
    starts = np.cumsum([100, *lengths])
    ids = [np.arange(start, start + length, dtype=np.int32) for start, length in zip(starts, lengths, strict=False)]
    return [EncodedExample(each, each.copy()) for each in ids]


@given(batches(max_length=20), st.data())
def test_rows_hold_their_examples_and_nothing_else(batch, data):
    lengths, has_image, num_rows = batch
    packing = pack(lengths, has_image, num_rows=num_rows, bucket=8)
    encoded = encode(lengths)
    mine = data.draw(st.lists(st.integers(0, num_rows - 1), unique=True).map(sorted))
    packed = pack_tokens(encoded, [packing.rows[row] for row in mine], packing.length, PAD)
    for part in packed:
        assert part.shape == (len(mine), packing.length)
        assert part.dtype == np.int32
    for local, row in enumerate(mine):
        token_ids, labels, segment_ids, positions = (part[local] for part in packed)
        at = 0
        for segment, example in enumerate(packing.rows[row], start=1):
            own = np.flatnonzero(segment_ids == segment)
            np.testing.assert_array_equal(own, np.arange(at, at + lengths[example]))
            np.testing.assert_array_equal(token_ids[own], encoded[example].token_ids)
            np.testing.assert_array_equal(positions[own], np.arange(lengths[example]))
            assert labels[own[0]] == IGNORE_INDEX  # or the example before it would learn to predict it
            np.testing.assert_array_equal(labels[own[1:]], encoded[example].labels[1:])
            at += lengths[example]
        assert (segment_ids[at:] == 0).all()
        assert (token_ids[at:] == PAD).all()
        assert (labels[at:] == IGNORE_INDEX).all()


def test_rows_that_do_not_divide():
    with pytest.raises(AssertionError, match="3 examples for 2 rows"):
        pack([1, 2, 3], [False] * 3, num_rows=2, bucket=1)
