"""One picture of several scenes with their captions before and after, wrong words marked."""

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from vigor_jax.demo.metrics import mark
from vigor_jax.demo.scenes import Scene

COLUMNS = 2
PICTURE = 256
CELL = (940, 330)
HEADER = 76
MARGIN = 24
LINE = 26

PAPER, INK, FAINT, WRONG, RIGHT = (252, 251, 248), (34, 34, 40), (128, 128, 134), (204, 36, 36), (30, 130, 64)


class Shown(NamedTuple):
    """A scene on the sheet.

    Attributes:
      image: the picture's file.
      before: caption of the base model.
      after: caption of the tuned model.
      scene: the truth.
    """

    image: Path
    before: str
    after: str
    scene: Scene


def draw_sheet(items: Sequence[Shown], heading: str) -> Image.Image:
    """Draws the scenes in two columns, the pictures four times their size."""
    rows = -(-len(items) // COLUMNS)
    width, height = COLUMNS * CELL[0] + MARGIN, HEADER + rows * CELL[1] + MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, 26), heading, INK, _font(26))
    for index, item in enumerate(items):
        row, column = divmod(index, COLUMNS)
        _draw_item(sheet, draw, item, column * CELL[0] + MARGIN, HEADER + row * CELL[1])
    return sheet


def _draw_item(sheet: Image.Image, draw: ImageDraw.ImageDraw, item: Shown, left: int, top: int) -> None:
    with Image.open(item.image) as image:
        sheet.paste(image.convert("RGB").resize((PICTURE, PICTURE), Image.Resampling.LANCZOS), (left, top))
    left, right = left + PICTURE + MARGIN, left + CELL[0] - MARGIN
    for label, caption in (("before", item.before), ("after", item.after)):
        draw.text((left, top), label, FAINT, _font(18))
        words = ((_readable(word), WRONG if wrong else RIGHT) for word, wrong in mark(caption, item.scene))
        top = _draw_words(draw, words, left, right, top + 24) + 8


def _draw_words(
    draw: ImageDraw.ImageDraw, words: Iterable[tuple[str, tuple[int, int, int]]], left: int, right: int, top: int
) -> int:
    """Sets words in lines; a wrong word is crossed out, so that color alone need not tell. Returns the end."""
    font, x = _font(20), float(left)
    pieces = ((part, ink) for word, ink in words for part in _parts(word, font, right - left))
    for word, ink in pieces:
        length = font.getlength(word)
        if x + length > right:
            x, top = float(left), top + LINE
        draw.text((x, top), word, ink, font)
        if ink == WRONG:
            draw.line((x, top + 13, x + length, top + 13), ink, 2)
        x += length + font.getlength(" ")
    return top + LINE


def _parts(word: str, font: ImageFont.FreeTypeFont, width: int) -> Iterable[str]:
    """A word in pieces that fit into a line."""
    while word:
        cut = next(n for n in itertools.count(len(word), -1) if n == 1 or font.getlength(word[:n]) <= width)
        yield word[:cut]
        word = word[cut:]


def _readable(text: str) -> str:
    """Text that the font can show: an untrained model writes anything."""
    return "".join(letter if letter.isascii() and letter.isprintable() else "?" for letter in text)


def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font
