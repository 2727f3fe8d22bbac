"""preprocessor_config.json ↔ `Preprocessing`: what transformers' CLIP and LLaVA image processors do with a picture.

What a file leaves out has the default of these processors. What cannot be done exactly is refused by key and value.
"""

import math
from pathlib import Path
from typing import Any

from vigor_jax.data.images import CLIP_MEAN, CLIP_STD, Preprocessing
from vigor_jax.errors import InputError

Json = dict[str, Any]

# The classes by the names that transformers has given them; "Fast" and "Pil" differ in what they resize with.
_CLIP, _LLAVA = ("CLIPImageProcessor", "CLIPFeatureExtractor"), ("LlavaImageProcessor",)
_BACKENDS = ("", "Fast", "Pil")
_DEFAULT_SIZE = 224
_FILTERS = range(6)  # numbers of PIL's resampling filters


def preprocessing_from_hf(config: Json, image_size: int, where: Path) -> Preprocessing:
    """Reads preprocessor_config.json, or the `image_processor` part of a processor_config.json.

    Args:
      config: its content.
      image_size: side of the pictures that the vision tower takes, in pixels.
      where: the file, for messages.

    Raises:
      InputError: a setting that is not supported or makes no sense, or pictures of another size than the tower's.
    """
    inside = config.get("image_processor")
    config = inside if isinstance(inside, dict) else config

    def refuse(key: str, expected: str) -> InputError:
        shown = repr(config.get(key))
        shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
        return InputError(f"{where}: {key} {shown} is not supported; expected {expected}")

    def flag(key: str, default: bool) -> bool:
        value = config.get(key)
        if value is not None and not isinstance(value, bool):
            raise refuse(key, "true or false")
        return default if value is None else value

    def numbers(key: str, default: tuple[float, ...], *, positive: bool) -> tuple[float, float, float]:
        value = config.get(key)
        value = default if value is None else [value] * 3 if _is_number(value) else value
        if not isinstance(value, list | tuple) or len(value) != 3 or not all(map(_is_number, value)):
            raise refuse(key, "three numbers")
        if positive and min(value) <= 0:
            raise refuse(key, "three numbers above 0")
        return float(value[0]), float(value[1]), float(value[2])

    kind = config.get("image_processor_type") or config.get("feature_extractor_type") or _CLIP[0]
    known = {name + backend: name for name in (*_CLIP, *_LLAVA) for backend in _BACKENDS}
    if not isinstance(kind, str) or kind not in known:
        key = "image_processor_type" if config.get("image_processor_type") else "feature_extractor_type"
        raise refuse(key, f"{_CLIP[0]} or {_LLAVA[0]}")
    resample = config.get("resample")
    if resample is not None and (type(resample) is not int or resample not in _FILTERS):
        raise refuse("resample", f"the number of a filter of PIL, {_FILTERS[0]} to {_FILTERS[-1]}")
    factor = config.get("rescale_factor")
    if factor is not None and not (_is_number(factor) and factor > 0):
        raise refuse("rescale_factor", "a number above 0")

    pad = flag("do_pad", False) and known[kind] in _LLAVA
    do_resize, crops = flag("do_resize", True), flag("do_center_crop", True)
    edge, stretch = None, None
    size = config.get("size")
    if do_resize:
        edge, stretch = _edges(_DEFAULT_SIZE if size is None else size)
        if edge is None and stretch is None:
            raise refuse("size", "a shortest_edge, or a height and a width, in pixels")
    crop = config.get("crop_size")
    cut = _square(_DEFAULT_SIZE if crop is None else crop) if crops else None
    if crops and cut is None:
        raise refuse("crop_size", "a height and a width that are the same")

    # What comes out must have the tower's size whatever picture goes in.
    found: Any
    if crops:
        found = cut
    elif stretch is not None:
        found = stretch[0] if stretch[0] == stretch[1] else stretch
    elif edge is not None and pad:
        found = edge
    else:
        raise refuse(
            "do_center_crop", f"true: pictures must all leave with the tower's {image_size} x {image_size} pixels"
        )
    if found != image_size or edge not in (None, image_size):
        raise InputError(
            f"{where}: size {size!r}, crop_size {crop!r} and the {image_size} pixels of the vision tower must be the "
            "same size; take config.json and this file from one checkpoint"
        )
    return Preprocessing(
        size=image_size,
        pad=pad,
        image_mean=numbers("image_mean", CLIP_MEAN, positive=False),
        image_std=numbers("image_std", CLIP_STD, positive=True),
        do_resize=do_resize,
        stretch=stretch,
        resample=3 if resample is None else resample,
        rescale_factor=(1 / 255 if factor is None else float(factor)) if flag("do_rescale", True) else 1.0,
        do_normalize=flag("do_normalize", True),
    )


def preprocessing_to_hf(preprocessing: Preprocessing) -> Json:
    """A preprocessor_config.json; `LlavaImageProcessor` is the one of transformers that can pad."""
    if preprocessing.stretch:
        height, width = preprocessing.stretch
        size = {"height": height, "width": width}
    else:
        size = {"shortest_edge": preprocessing.size}
    return {
        "image_processor_type": "LlavaImageProcessor" if preprocessing.pad else "CLIPImageProcessor",
        **({"do_pad": True} if preprocessing.pad else {}),
        "do_convert_rgb": True,
        "do_resize": preprocessing.do_resize,
        "size": size,
        "resample": preprocessing.resample,
        "do_center_crop": True,
        "crop_size": {"height": preprocessing.size, "width": preprocessing.size},
        "do_rescale": True,
        "rescale_factor": preprocessing.rescale_factor,
        "do_normalize": preprocessing.do_normalize,
        "image_mean": list(preprocessing.image_mean),
        "image_std": list(preprocessing.image_std),
    }


def _edges(size: Any) -> tuple[int | None, tuple[int, int] | None]:
    """Length of the shortest edge, or (height, width) to stretch to; neither if `size` says nothing of the kind."""
    if _is_length(size):
        return size, None
    if isinstance(size, list | tuple) and len(size) == 2:
        size = {"height": size[0], "width": size[1]}
    if not isinstance(size, dict) or not all(map(_is_length, size.values())):
        return None, None
    if size.keys() == {"shortest_edge"}:
        return size["shortest_edge"], None
    if size.keys() == {"height", "width"}:
        return None, (size["height"], size["width"])
    return None, None


def _square(size: Any) -> int | None:
    """The side of a square crop."""
    if _is_length(size):
        return size
    height, width = _edges(size)[1] or (None, 0)
    return height if height == width else None


def _is_length(value: Any) -> bool:
    return type(value) is int and 0 < value < 1 << 14


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
