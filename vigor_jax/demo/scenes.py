"""Scenes of colored shapes on a 3 x 3 grid, drawn by chance; some things go together.

A scene is data, from which its picture, its boxes and all that can be truly said of it follow.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

IMAGE_SIZE = 72
MAX_OBJECTS = 6

# Shapes that are often seen together, and among them pairs that nearly always are.
THEMES = (
    ("star", "moon", "cloud", "ring"),
    ("flower", "house", "heart", "arrow"),
    ("circle", "square", "triangle", "cross"),
)
SHAPES = tuple(shape for theme in THEMES for shape in theme)
PARTNER = {shape: theme[index ^ 1] for theme in THEMES for index, shape in enumerate(theme)}
PARTNER_CHANCE = 0.75
SAME_THEME_WEIGHT, OTHER_WEIGHT = 4.0, 1.0

COLORS = ("red", "orange", "yellow", "green", "blue", "purple")
USUAL_COLOR = {
    "star": "yellow", "moon": "yellow", "cloud": "blue", "ring": "orange",
    "flower": "purple", "house": "red", "heart": "red", "arrow": "green",
    "circle": "blue", "square": "green", "triangle": "orange", "cross": "purple",
}  # fmt: skip
USUAL_COLOR_CHANCE = 0.3

# In reading order, row by row.
PLACES = (
    "at the top left", "at the top", "at the top right",
    "on the left", "in the middle", "on the right",
    "at the bottom left", "at the bottom", "at the bottom right",
)  # fmt: skip

_NUM_KINDS = ((2, 3, 4), (0.3, 0.4, 0.3))
_COUNTS = ((1, 2, 3), (0.6, 0.25, 0.15))


class Statement(NamedTuple):
    """What one sentence says: how many objects of a shape and a color there are, and where if it is one."""

    shape: str
    color: str
    number: int
    place: str | None


@dataclasses.dataclass(frozen=True)
class Object:
    """One shape in a picture of `IMAGE_SIZE` pixels.

    Attributes:
      shape: one of `SHAPES`.
      color: one of `COLORS`.
      place: one of `PLACES`, whose cell of the grid it lies in.
      x: of its center, in pixels from the left edge.
      y: of its center, in pixels from the top edge.
      radius: about half its width, in pixels.
      tilt: turn to the right, in degrees.
    """

    shape: str
    color: str
    place: str
    x: float
    y: float
    radius: float
    tilt: float


@dataclasses.dataclass(frozen=True)
class Scene:
    """Objects in reading order, each in its own place; those of one shape have one color.

    Attributes:
      objects: at least two.
      background: number of what is behind them, see `drawing.BACKGROUNDS`.
    """

    objects: tuple[Object, ...]
    background: int

    @property
    def statements(self) -> tuple[Statement, ...]:
        """The whole truth, a statement for each shape, in the order in which the shapes come first."""
        statements = []
        for shape in dict.fromkeys(item.shape for item in self.objects):
            own = [item for item in self.objects if item.shape == shape]
            statements.append(Statement(shape, own[0].color, len(own), own[0].place if len(own) == 1 else None))
        return tuple(statements)

    def places(self, shape: str) -> frozenset[str]:
        """Where objects of a shape are."""
        return frozenset(item.place for item in self.objects if item.shape == shape)


def make_scene(rng: np.random.Generator) -> Scene:
    """Draws two to four shapes, of each one to three objects of one color, and their places."""
    shapes = _draw_shapes(rng)
    counts = [int(rng.choice(_COUNTS[0], p=_COUNTS[1])) for _ in shapes]
    while sum(counts) > MAX_OBJECTS:
        counts[int(np.argmax(counts))] -= 1
    colors = [draw_color(shape, rng) for shape in shapes]
    kinds = [kind for kind, count in enumerate(counts) for _ in range(count)]
    cells = rng.choice(len(PLACES), len(kinds), replace=False)
    cell_width = IMAGE_SIZE / 3
    objects = []
    for cell, kind in sorted(zip(cells.tolist(), kinds, strict=True)):
        row, column = divmod(cell, 3)
        dx, dy = rng.uniform(-1.2, 1.2, 2)
        objects.append(
            Object(
                shape=shapes[kind],
                color=colors[kind],
                place=PLACES[cell],
                x=float((column + 0.5) * cell_width + dx),
                y=float((row + 0.5) * cell_width + dy),
                radius=float(rng.uniform(7.8, 9.2)),
                tilt=float(rng.uniform(-8, 8)),
            )
        )
    return Scene(tuple(objects), background=int(rng.integers(2**16)))


def draw_color(shape: str, rng: np.random.Generator) -> str:
    """A shape's usual color more often than any other."""
    return USUAL_COLOR[shape] if rng.random() < USUAL_COLOR_CHANCE else str(rng.choice(COLORS))


def _draw_shapes(rng: np.random.Generator) -> list[str]:
    wanted = int(rng.choice(_NUM_KINDS[0], p=_NUM_KINDS[1]))
    shapes = [str(rng.choice(SHAPES))]
    theme = next(theme for theme in THEMES if shapes[0] in theme)
    if rng.random() < PARTNER_CHANCE:
        shapes.append(PARTNER[shapes[0]])
    while len(shapes) < wanted:
        left = [shape for shape in SHAPES if shape not in shapes]
        weights = np.array([SAME_THEME_WEIGHT if shape in theme else OTHER_WEIGHT for shape in left])
        shapes.append(str(rng.choice(left, p=weights / weights.sum())))
    return shapes
