"""Boxes in texts: what is one, that what was written is found again, and from the image to the padded square."""

import ast
import re

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from vigor_jax.data.images.preprocessing import Preprocessing, preprocess
from vigor_jax.data.text.box_text import (
    blank_boxes,
    find_boxes,
    in_image,
    in_square,
    strip_boxes,
    without_boxes,
    write_boxes,
)
from vigor_jax.records import Span

CORNERS = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted)
BOXES = st.tuples(CORNERS, CORNERS).map(lambda sides: (sides[0][0], sides[1][0], sides[0][1], sides[1][1]))
# Words, and everything that boxes are made of.
TEXTS = st.lists(
    st.one_of(
        st.text(max_size=4), st.sampled_from(["[", "]", "0.5", "1", ", ", ",", " ", "\n", ".", "a dog", "[0, 0, "])
    )
).map("".join)
SIZES = st.tuples(st.integers(1, 500), st.integers(1, 500))


@st.composite
def boxed_texts(draw):
    """A text without boxes, places in it in order, and their boxes."""
    text = draw(TEXTS.filter(lambda text: not find_boxes(text)))
    ends = sorted(draw(st.lists(st.integers(0, len(text)), max_size=5)))
    return text, [(Span(draw(st.integers(0, end)), end), draw(BOXES)) for end in ends]


@given(boxed_texts())
def test_what_is_written_is_found_again(given):
    text, places = given
    plain = strip_boxes(write_boxes(text, places))
    assert plain.text == text
    assert [place.end for place, _ in plain.places] == [place.end for place, _ in places]
    for (_, found), (_, box) in zip(plain.places, places, strict=True):
        assert found == tuple(round(corner, 2) for corner in box)
    assert write_boxes(plain.text, plain.places) == write_boxes(text, places)


@given(boxed_texts())
def test_every_character_is_known_in_the_whole_text(given):
    text, places = given
    whole = write_boxes(text, places)
    plain = strip_boxes(whole)
    for index, character in enumerate(text):
        assert whole[plain.origin(index)] == character
    inside = {place for box in plain.boxes for place in range(*box.span)}
    assert [plain.origin(index) for index in range(len(text))] == [
        place for place in range(len(whole)) if place not in inside
    ]


@given(TEXTS)
def test_blank_boxes_keep_every_place(text):
    blank = blank_boxes(text)
    assert len(blank) == len(text)
    inside = {place for box in find_boxes(text) for place in range(*box.span)}
    assert all(blank[place] == (" " if place in inside else text[place]) for place in range(len(text)))


@given(TEXTS)
def test_a_box_is_what_python_reads_as_four_numbers_in_order(text):
    """Another reading of the definition: every bracket without a bracket or a line break inside."""
    wanted = []
    for match in re.finditer(r"\[([^\[\]\n]*)\]", text):
        parts = match[1].split(",")
        if len(parts) != 4 or not all(re.fullmatch(r"[ \t]*[0-9.]+[ \t]*", part, re.ASCII) for part in parts):
            continue
        try:
            left, top, right, bottom = map(float, parts)
        except ValueError:
            continue
        if 0 <= left <= right <= 1 and 0 <= top <= bottom <= 1:
            wanted.append((match.end(), (left, top, right, bottom)))
    assert [(box.span.end, box.box) for box in find_boxes(text)] == wanted


@pytest.mark.parametrize(
    ("text", "left", "box"),
    [
        ("a dog [0.25, 0.3, 0.58, 1.0] runs", "a dog runs", (0.25, 0.3, 0.58, 1.0)),
        ("a dog [0.25, 0.30, 0.58, 1.00] runs", "a dog runs", (0.25, 0.3, 0.58, 1.0)),
        ("a dog [0.2, 0.3, 0.5, 0.9].", "a dog.", (0.2, 0.3, 0.5, 0.9)),
        ("a dog [0, 0, 1, 1].", "a dog.", (0, 0, 1, 1)),
        ("a dog [0.123456, .5, 0.7, 1.].", "a dog.", (0.123456, 0.5, 0.7, 1)),
        ("a dog[0.1,0.2,0.3,0.4].", "a dog.", (0.1, 0.2, 0.3, 0.4)),
        ("a dog  [ 0.1 ,\t0.2, 0.3, 0.4 ].", "a dog .", (0.1, 0.2, 0.3, 0.4)),
        ("[0.1, 0.2, 0.3, 0.4] a dog", " a dog", (0.1, 0.2, 0.3, 0.4)),
        ("a dog [[0.1, 0.2, 0.3, 0.4]]", "a dog []", (0.1, 0.2, 0.3, 0.4)),
        ("a line [0.5, 0.2, 0.5, 0.4]", "a line", (0.5, 0.2, 0.5, 0.4)),
    ],
)
def test_what_is_a_box(text, left, box):
    plain = strip_boxes(text)
    assert (plain.text, [found.box for found in plain.boxes]) == (left, [box])


@pytest.mark.parametrize(
    "text",
    [
        "a dog [0.1, 0.2, 0.3]",
        "a dog [0.1, 0.2, 0.3, 0.4, 0.5]",
        "a dog [120, 30, 400, 200]",
        "a dog [0.1, 0.2, 0.3, 1.01]",
        "a dog [-0.1, 0.2, 0.3, 0.4]",
        "a dog [0.5, 0.2, 0.3, 0.4]",
        "a dog [0.1, 0.5, 0.3, 0.4]",
        "a dog [0.1, 0.2, 0.3, 0.",
        "a dog [0.1, 0.2, 0.3, 0.4 runs",
        "a dog 0.1, 0.2, 0.3, 0.4]",
        "a dog (0.1, 0.2, 0.3, 0.4)",
        "a dog [0.1 0.2 0.3 0.4]",
        "a dog [0.1, 0.2,\n0.3, 0.4]",
        "a dog [0.1, 0.2, nan, 0.4]",
        "a dog [0.1, 0.2, 1e-1, 0.4]",
        "a dog [0.1, 0.2, 0.3.1, 0.4]",
        "a dog [., 0.2, 0.3, 0.4]",
        "a dog [٠.1, 0.2, 0.3, 0.4]",
        "a dog [x1, y1, x2, y2]",
        "a dog []",
    ],
)
def test_what_is_none(text):
    assert not find_boxes(text)
    assert without_boxes(text) == blank_boxes(text) == text


def test_boxes_are_written_as_llava_has_them():
    """In its data a box is a Python list of numbers that were rounded."""
    box = (0, 1 / 3, 0.8, 1)
    written = write_boxes("a dog runs", [(Span(2, 5), box)])
    assert written == "a dog [0.0, 0.33, 0.8, 1.0] runs"
    assert ast.literal_eval(written[6:-5]) == [round(corner, 2) for corner in box]


@pytest.mark.parametrize("box", [(0.5, 0, 0.4, 1), (-0.1, 0, 1, 1), (0, 0, 1, 1.5), (0, 0, float("nan"), 1), (0, 0, 1)])
def test_what_is_no_box_is_not_written(box):
    with pytest.raises(ValueError, match="expected left, top, right, bottom"):
        write_boxes("a dog", [(Span(2, 5), box)])


def test_a_place_outside_the_text_is_refused():
    with pytest.raises(ValueError, match="expected a place in 5 characters, got one that ends at 6"):
        write_boxes("a dog", [(Span(2, 6), (0, 0, 1, 1))])


@given(BOXES, SIZES)
def test_the_square_and_back(box, size):
    square = in_square(box, size)
    assert np.allclose(in_image(square, size), box, rtol=0, atol=1e-9 * max(size) / min(size))
    assert all(-1e-12 <= corner <= 1 + 1e-12 for corner in square)


@given(st.data())
def test_the_square_is_the_one_that_pixels_are_padded_to(data):
    """A white rectangle in a black picture is where its box says, once the picture is padded as LLaVA-1.5 does."""
    width, height = data.draw(st.tuples(st.integers(1, 24), st.integers(1, 24)))
    left, right = sorted(data.draw(st.tuples(st.integers(0, width), st.integers(0, width))))
    top, bottom = sorted(data.draw(st.tuples(st.integers(0, height), st.integers(0, height))))
    assume(left < right and top < bottom)
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[top:bottom, left:right] = 255
    side = max(width, height)
    seen = preprocess(Image.fromarray(pixels), Preprocessing(size=side, pad=True)).min(-1) == 255
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    wanted = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / side
    found = in_square((left / width, top / height, right / width, bottom / height), (width, height))
    assert np.allclose(found, wanted, rtol=0, atol=1e-12)
