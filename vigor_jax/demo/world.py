"""Scenes of one to three coloured shapes on a 3 x 3 grid: how they come about, look and are described.

A scene is data (`Scene`), from which picture, boxes and caption follow, so what is true of it is known. Its caption
has one sentence for each object, and `parse` reads back what a caption says.
"""

import dataclasses
import functools
import re
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

IMAGE_SIZE = 72
MAX_OBJECTS = 3

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")
COLOURS = {
    "red": (214, 56, 56),
    "orange": (240, 142, 38),
    "yellow": (245, 212, 60),
    "green": (72, 164, 84),
    "blue": (56, 112, 206),
    "purple": (146, 82, 190),
}
# In reading order, row by row.
PLACES = (
    "at the top left", "at the top", "at the top right",
    "on the left", "in the middle", "on the right",
    "at the bottom left", "at the bottom", "at the bottom right",
)  # fmt: skip
SENTENCES = (
    "{place} there is {thing}.",
    "there is {thing} {place}.",
    "{thing} is {place}.",
    "we see {thing} {place}.",
)

_BACKGROUNDS = ((236, 228, 214), (222, 230, 238), (224, 236, 224), (238, 226, 230), (232, 232, 232))
_SUPERSAMPLING = 4
# Pixels that an object and its shadow stay within, wherever its centre is.
_TILE = 25


class Statement(NamedTuple):
    """What one sentence says: that there is an object of this shape and colour in this place."""

    shape: str
    colour: str
    place: str


@dataclasses.dataclass(frozen=True)
class Object:
    """One shape in a picture of `IMAGE_SIZE` pixels.

    Attributes:
      shape: one of `SHAPES`.
      colour: a key of `COLOURS`.
      place: one of `PLACES`, whose cell of the grid it lies in.
      x: of its centre, in pixels from the left edge.
      y: of its centre, in pixels from the top edge.
      radius: about half its width, in pixels.
      tilt: turn to the right, in degrees.
    """

    shape: str
    colour: str
    place: str
    x: float
    y: float
    radius: float
    tilt: float

    @property
    def statement(self) -> Statement:
        """What is true of it."""
        return Statement(self.shape, self.colour, self.place)

    @property
    def outline(self) -> np.ndarray:
        """The polygon that is drawn, float [N, 2], in pixels."""
        angle = np.radians(self.tilt)
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        return _OUTLINES[self.shape] @ turn * self.radius + (self.x, self.y)

    @property
    def box_xyxy(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom edge of the outline, in pixels."""
        left, top = self.outline.min(0)
        right, bottom = self.outline.max(0)
        return float(left), float(top), float(right), float(bottom)


@dataclasses.dataclass(frozen=True)
class Scene:
    """Objects in reading order, each in a place of its own, and the colour (RGB) behind them."""

    objects: tuple[Object, ...]
    background: tuple[int, int, int]


def make_scene(rng: np.random.Generator) -> Scene:
    """Draws a scene: number, places, shapes and colours are independent and uniform."""
    count = rng.integers(1, MAX_OBJECTS + 1)
    cell = IMAGE_SIZE / 3
    objects = []
    for index in sorted(rng.choice(len(PLACES), count, replace=False)):
        row, column = divmod(index, 3)
        dx, dy = rng.uniform(-1.2, 1.2, 2)
        objects.append(
            Object(
                shape=str(rng.choice(SHAPES)),
                colour=str(rng.choice(list(COLOURS))),
                place=PLACES[index],
                x=float((column + 0.5) * cell + dx),
                y=float((row + 0.5) * cell + dy),
                radius=float(rng.uniform(7.6, 9.2)),
                tilt=float(rng.uniform(-8, 8)),
            )
        )
    return Scene(tuple(objects), _BACKGROUNDS[rng.integers(len(_BACKGROUNDS))])


def draw(scene: Scene) -> Image.Image:
    """The picture, RGB, 72 x 72: smooth edges, light from the top left, soft shadows."""
    scale = _SUPERSAMPLING
    image = _backdrop(scene.background).copy()
    for item in scene.objects:
        left, top = (int((centre - _TILE / 2) * scale) for centre in (item.x, item.y))
        mask = Image.new("L", (_TILE * scale, _TILE * scale))
        corners = (item.outline * scale - (left, top)).ravel().tolist()
        ImageDraw.Draw(mask).polygon(corners, fill=255)
        shadow = mask.filter(ImageFilter.GaussianBlur(0.8 * scale)).point(lambda value: value * 0.3)
        image.paste((40, 36, 48), (left + scale // 2, top + scale), shadow)
        image.paste(_shaded(COLOURS[item.colour]), (left, top), mask)
    return image.reduce(scale)


def describe(scene: Scene, rng: np.random.Generator) -> str:
    """A caption: one sentence for each object, in reading order, each in one of the `SENTENCES`' forms."""
    forms = rng.integers(len(SENTENCES), size=len(scene.objects))
    return " ".join(sentence(item.statement, SENTENCES[form]) for item, form in zip(scene.objects, forms, strict=True))


def sentence(statement: Statement, form: str) -> str:
    """One statement in words, in one of the forms of `SENTENCES`."""
    article = "an" if statement.colour[0] in "aeiou" else "a"
    words = form.format(place=statement.place, thing=f"{article} {statement.colour} {statement.shape}")
    return words[0].upper() + words[1:]


def parse(caption: str) -> list[Statement | None]:
    """What each sentence of a caption says; None for one that is none of the world's."""
    sentences = (part.strip() for part in re.findall(r"[^.]+\.?", caption))
    return [_parse_sentence(part) for part in sentences if part]


def _parse_sentence(text: str) -> Statement | None:
    for pattern in _PATTERNS:
        if match := pattern.fullmatch(text):
            return Statement(match["shape"], match["colour"], match["place"].lower())
    return None


def _pattern(form: str) -> re.Pattern[str]:
    thing = rf"an? (?P<colour>{'|'.join(COLOURS)}) (?P<shape>{'|'.join(SHAPES)})"
    # The longest first: "at the top" begins "at the top left" too.
    places = "|".join(sorted(PLACES, key=len, reverse=True))
    return re.compile(form.replace(".", r"\.").format(place=f"(?P<place>{places})", thing=thing), re.IGNORECASE)


_PATTERNS = tuple(map(_pattern, SENTENCES))


@functools.cache
def _backdrop(colour: tuple[int, int, int]) -> Image.Image:
    """An empty picture, enlarged, a little darker towards the bottom."""
    size = IMAGE_SIZE * _SUPERSAMPLING
    light = np.linspace(1.03, 0.95, size)[:, None, None]
    return Image.fromarray(_to_uint8(np.broadcast_to(light * colour, (size, size, 3))))


@functools.cache
def _shaded(colour: tuple[int, int, int]) -> Image.Image:
    """A tile of one colour, enlarged, lighter at the top left and darker at the bottom right."""
    ramp = np.linspace(0.5, -0.5, _TILE * _SUPERSAMPLING)
    light = 1 + 0.2 * (ramp[:, None, None] + ramp[None, :, None])
    return Image.fromarray(_to_uint8(light * colour))


def _to_uint8(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _circle_of_points(count: int, radii: tuple[float, ...] = (1.0,)) -> np.ndarray:
    """Points around the centre, the first at the top, their distances from it in turn."""
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.resize(radii, count)[:, None] * np.stack([np.sin(angles), -np.cos(angles)], 1)


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y], 1)


def _fitted(outline: np.ndarray, radius: float) -> np.ndarray:
    """Moved so that its box is centred, scaled so that the longer half side is `radius`."""
    low, high = outline.min(0), outline.max(0)
    return (outline - (low + high) / 2) * (2 * radius / (high - low).max())


_CROSS = ((-1, -3), (1, -3), (1, -1), (3, -1), (3, 1), (1, 1), (1, 3), (-1, 3), (-1, 1), (-3, 1), (-3, -1), (-1, -1))
# Each as large as makes all look alike in size.
_OUTLINES = {
    "circle": _fitted(_circle_of_points(60), 0.95),
    "square": _fitted(np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]), 0.86),
    "triangle": _fitted(_circle_of_points(3), 1.08),
    "star": _fitted(_circle_of_points(10, (1.0, 0.42)), 1.14),
    "heart": _fitted(_heart(), 1.02),
    "cross": _fitted(np.array(_CROSS), 1.0),
}
