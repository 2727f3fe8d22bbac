"""Which place each row of a changed file has in a run."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.batches.test_loader import make
from tests.tiny_tokenizer import build_tokenizer_dir
from vigor_jax.data.batches.loader import batch_indices
from vigor_jax.data.batches.places import (
    EMPTY,
    empty_update,
    fill_places,
    learned_places,
    read_places,
    row_keys,
    write_places,
)
from vigor_jax.data.text.tokenizer import Tokenizer
from vigor_jax.errors import InputError


def keys(*rows: tuple[int, str | None]):
    return row_keys((content.to_bytes(8, "little"), name) for content, name in rows)


CONTENTS = st.lists(st.integers(1, 6), min_size=1, max_size=12)


@given(CONTENTS, st.data())
def test_equal_rows_are_found_wherever_they_stand(contents, data):
    """Some removed, the rest in any order; rows without names, some of them equal."""
    kept = data.draw(st.lists(st.sampled_from(range(len(contents))), unique=True))
    places, rows = keys(*((c, None) for c in contents)), keys(*((contents[place], None) for place in kept))
    filled = fill_places(places, rows)
    assert sorted(row for row in filled if row >= 0) == list(range(len(rows)))
    for place, row in enumerate(filled):
        assert row < 0 or rows[row, 0] == places[place, 0]


@given(st.integers(1, 12), st.data())
def test_fixed_rows_are_told_by_their_names(count, data):
    places = keys(*((index + 1, f"row {index}") for index in range(count)))
    kept = data.draw(st.permutations(data.draw(st.lists(st.sampled_from(range(count)), unique=True))))
    fixed = set(data.draw(st.lists(st.sampled_from(range(count)), unique=True)))
    rows = keys(*((index + 1 + 100 * (index in fixed), f"row {index}") for index in kept))
    filled = fill_places(places, rows)
    assert [kept[row] if row >= 0 else None for row in filled] == [i if i in kept else None for i in range(count)]


@given(st.integers(1, 12), st.data())
def test_fixed_rows_without_names_are_told_by_their_numbers(count, data):
    fixed = set(data.draw(st.lists(st.sampled_from(range(count)), unique=True)))
    places = keys(*((index + 1, None) for index in range(count)))
    rows = keys(*((index + 1 + 100 * (index in fixed), None) for index in range(count)))
    assert fill_places(places, rows).tolist() == list(range(count))


@pytest.mark.parametrize(
    ("places", "rows", "stranger"),
    [
        ([(1, None), (2, None)], [(1, None), (2, None), (3, None)], 2),
        ([(1, None), (2, None)], [(1, None), (2, None), (2, None)], 2),
        ([(1, "a"), (2, "b")], [(3, "c")], 0),  # fixed, but which one?
        ([(1, "a"), (2, "a"), (3, "b")], [(7, "a"), (3, "b")], 0),  # a name of two
        ([(EMPTY, "a"), (2, "b")], [(9, None), (2, "b"), (4, None)], 0),
    ],
)
def test_rows_without_a_place(places, rows, stranger):
    assert fill_places(keys(*places), keys(*rows)) == stranger


def test_a_row_comes_back_to_the_place_that_it_left_empty():
    assert fill_places(keys((EMPTY, "a"), (2, "b")), keys((2, "b"), (9, "a"))).tolist() == [1, 0]


def test_a_row_that_stands_elsewhere_and_one_that_was_fixed():
    assert fill_places(keys((1, None), (2, None), (3, None)), keys((3, None), (8, None), (1, None))).tolist() == [
        2,
        1,
        0,
    ]


def test_order_is_that_of_the_batches(tmp_path):
    tokenizer = Tokenizer.load(build_tokenizer_dir(tmp_path / "tokenizer"))
    loader = make(tmp_path, tokenizer, seed=3)
    taken = [int(name[1:]) for batch in loader.batches() for name in batch.ids]
    assert batch_indices(10, 3, range(28)) == taken
    for count in (0, 4, 9, 10, 25):
        assert learned_places(10, 3, count) == set(taken[:count])
    for step in range(7):
        gone = set(taken[4 * step : 4 * step + 4])
        filled = np.array([-1 if place in gone else place for place in range(10)])
        found = [number + 1 for number in range(7) if set(taken[4 * number : 4 * number + 4]) <= gone]
        for start in (0, step, step + 1):
            expected = next((number for number in found if number > start), None)
            assert empty_update(filled, batch_size=4, epochs=3, seed=3, start=start) == expected


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "rows" / "sft.npy"
    assert read_places(path) is None
    places = keys((2**64 - 1, "a"), (EMPTY, None), (3, "\ud800"))
    write_places(path, places)
    np.testing.assert_array_equal(read_places(path), places)
    for content in (b"", b"x" * 40, path.read_bytes()[:-9]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"sft\.npy: damaged"):
            read_places(path)


@pytest.mark.parametrize("keys", [np.zeros((3, 3), np.uint64), np.zeros((3, 2)), np.zeros(4, np.uint64), np.uint64(1)])
def test_an_array_that_is_no_list_of_keys_is_refused(tmp_path, keys):
    np.save(tmp_path / "sft.npy", keys)
    with pytest.raises(InputError, match=r"sft\.npy: damaged"):
        read_places(tmp_path / "sft.npy")
