"""Draws scenes: smooth edges, light from the top left, soft shadows."""

import functools

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from vigor_jax.demo.scenes import IMAGE_SIZE, Object, Scene

COLORS = {
    "red": (214, 56, 56),
    "orange": (240, 142, 38),
    "yellow": (245, 212, 60),
    "green": (72, 164, 84),
    "blue": (56, 112, 206),
    "purple": (146, 82, 190),
}
BACKGROUNDS = ((236, 228, 214), (222, 230, 238), (224, 236, 224), (238, 226, 230), (232, 232, 232))

_SUPERSAMPLING = 4
# Pixels that an object and its shadow stay within, wherever its center is.
_TILE = 25


def draw(scene: Scene) -> Image.Image:
    """The picture, RGB, `IMAGE_SIZE` pixels wide and high."""
    scale = _SUPERSAMPLING
    image = _backdrop(BACKGROUNDS[scene.background % len(BACKGROUNDS)]).copy()
    for item in scene.objects:
        left, top = (int((center - _TILE / 2) * scale) for center in (item.x, item.y))
        mask = Image.new("L", (_TILE * scale, _TILE * scale))
        corners = (outline(item) * scale - (left, top)).ravel().tolist()
        ImageDraw.Draw(mask).polygon(corners, fill=255)
        shadow = mask.filter(ImageFilter.GaussianBlur(0.8 * scale)).point(lambda value: value * 0.3)
        image.paste((40, 36, 48), (left + scale // 2, top + scale), shadow)
        image.paste(_shaded(COLORS[item.color]), (left, top), mask)
    return image.reduce(scale)


def outline(item: Object) -> np.ndarray:
    """The polygon that is drawn, float [N, 2], x and y in pixels."""
    angle = np.radians(item.tilt)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return _OUTLINES[item.shape] @ turn * item.radius + (item.x, item.y)


def box_xyxy(item: Object) -> tuple[float, float, float, float]:
    """Left, top, right and bottom edge of the outline, in pixels."""
    points = outline(item)
    (left, top), (right, bottom) = points.min(0), points.max(0)
    return float(left), float(top), float(right), float(bottom)


@functools.cache
def _backdrop(color: tuple[int, int, int]) -> Image.Image:
    """An empty picture, enlarged, a little darker towards the bottom."""
    size = IMAGE_SIZE * _SUPERSAMPLING
    light = np.linspace(1.03, 0.95, size)[:, None, None]
    return Image.fromarray(_to_uint8(np.broadcast_to(light * color, (size, size, 3))))


@functools.cache
def _shaded(color: tuple[int, int, int]) -> Image.Image:
    """A tile of one color, enlarged, lighter at the top left and darker at the bottom right."""
    ramp = np.linspace(0.5, -0.5, _TILE * _SUPERSAMPLING)
    light = 1 + 0.2 * (ramp[:, None, None] + ramp[None, :, None])
    return Image.fromarray(_to_uint8(light * color))


def _to_uint8(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _polar(radii: np.ndarray) -> np.ndarray:
    """Points around the center at these distances, evenly, the first at the top, to the right."""
    angles = np.linspace(0, 2 * np.pi, len(radii), endpoint=False)
    return radii[:, None] * np.stack([np.sin(angles), -np.cos(angles)], 1)


def _star() -> np.ndarray:
    return _polar(np.resize((1.0, 0.42), 10))


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y], 1)


def _moon() -> np.ndarray:
    """A crescent: an arc of one circle and back along that of another."""
    outer = np.linspace(0.21, 1.79, 50) * np.pi
    tip = np.array([np.cos(outer[0]), np.sin(outer[0])])
    center = 0.52
    radius = float(np.hypot(tip[0] - center, tip[1]))
    start = np.arctan2(tip[1], tip[0] - center)
    inner = np.linspace(2 * np.pi - start, start, 40)
    back = np.stack([center + radius * np.cos(inner), radius * np.sin(inner)], 1)
    return np.concatenate([np.stack([np.cos(outer), np.sin(outer)], 1), back])


def _ring() -> np.ndarray:
    """Round the outside, across a seam, and round the hole the other way."""
    outer, inner = _polar(np.full(60, 1.0)), _polar(np.full(60, 0.52))
    return np.concatenate([outer, outer[:1], inner[:1], inner[::-1]])


def _flower() -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    return _polar(0.4 + 0.6 * np.sqrt(np.abs(np.cos(2.5 * angles))))


def _cloud() -> np.ndarray:
    """The outer edge of four discs and the flat ground that they stand on."""
    angles = np.linspace(-np.pi, np.pi, 120, endpoint=False)
    ray = np.stack([np.cos(angles), np.sin(angles)], 1)
    reach = np.zeros(len(angles))
    for x, y, radius in (
        (-0.62, 0.12, 0.38),
        (-0.18, -0.22, 0.48),
        (0.32, -0.08, 0.42),
        (0.68, 0.18, 0.32),
        (0, 0.2, 0.3),
    ):
        along = ray @ (x, y)
        inside = along**2 - (x * x + y * y - radius**2)
        reach = np.maximum(reach, np.where(inside >= 0, along + np.sqrt(np.maximum(inside, 0)), 0))
    points = ray * reach[:, None]
    points[:, 1] = np.minimum(points[:, 1], 0.5)
    return points


def _fitted(points: np.ndarray, radius: float) -> np.ndarray:
    """Moved so that its box is centered, scaled so that the longer half side is `radius`."""
    low, high = points.min(0), points.max(0)
    return (points - (low + high) / 2) * (2 * radius / (high - low).max())


_ARROW = ((-1, -0.34), (0.1, -0.34), (0.1, -0.95), (1, 0), (0.1, 0.95), (0.1, 0.34), (-1, 0.34))
_CROSS = ((-1, -3), (1, -3), (1, -1), (3, -1), (3, 1), (1, 1), (1, 3), (-1, 3), (-1, 1), (-3, 1), (-3, -1), (-1, -1))
_HOUSE = (
    (0, -1),
    (1, -0.1),
    (0.72, -0.1),
    (0.72, 1),
    (0.22, 1),
    (0.22, 0.35),
    (-0.22, 0.35),
    (-0.22, 1),
    (-0.72, 1),
    (-0.72, -0.1),
    (-1, -0.1),
)
# Each as large as makes all look alike in size.
_OUTLINES = {
    "star": _fitted(_star(), 1.12),
    "moon": _fitted(_moon(), 1.04),
    "cloud": _fitted(_cloud(), 1.12),
    "ring": _fitted(_ring(), 1.0),
    "flower": _fitted(_flower(), 1.1),
    "house": _fitted(np.array(_HOUSE), 1.0),
    "heart": _fitted(_heart(), 1.02),
    "arrow": _fitted(np.array(_ARROW), 1.08),
    "circle": _fitted(_polar(np.full(60, 1.0)), 0.95),
    "square": _fitted(np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]), 0.86),
    "triangle": _fitted(_polar(np.ones(3)), 1.06),
    "cross": _fitted(np.array(_CROSS), 1.0),
}
