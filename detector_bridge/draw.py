"""An image with what was found in it."""

import colorsys
from pathlib import Path

from PIL import ImageDraw, ImageFont

from detector_bridge.errors import InputError
from detector_bridge.images import decode
from detector_bridge.messages import Answer
from detector_bridge.refusal import RefusedError


def draw(image: Path, answer: Answer, out: Path) -> None:
    """Writes a copy of an image with a labeled box for each detection, a color for each phrase.

    Args:
      image: the file that was asked about.
      answer: what the server said of it.
      out: file to write; its suffix is the format.

    Raises:
      InputError: `out` cannot be written, or the image cannot be read here.
    """
    try:
        picture = decode(image)
    except RefusedError as error:
        raise InputError(f"{image}: {error.message}") from None
    pen = ImageDraw.Draw(picture)
    scale = max(picture.size) / 800
    height, line = max(10, round(14 * scale)), max(1, round(2 * scale))
    font = ImageFont.load_default(size=height)
    for i, found in enumerate(answer.detections):
        red, green, blue = colorsys.hsv_to_rgb(i * 0.618 % 1, 0.8, 0.9)  # the golden ratio keeps neighbors apart
        color = (round(255 * red), round(255 * green), round(255 * blue))
        for box, score in zip(found.boxes_xyxy, found.scores, strict=True):
            x_min, y_min, x_max, y_max = (
                float(value * side) for value, side in zip(box, picture.size * 2, strict=True)
            )
            pen.rectangle((x_min, y_min, x_max, y_max), outline=color, width=line)
            label = f"{found.phrase} {score:.2f}"
            corner = (x_min, max(0.0, y_min - height - 2 * line))
            pen.rectangle(pen.textbbox(corner, label, font=font), fill=color)
            pen.text(corner, label, fill="white", font=font)
    try:
        picture.save(out)
    except (OSError, ValueError) as error:
        raise InputError(f"{out} cannot be written ({error}); give a path such as boxes.png") from None
