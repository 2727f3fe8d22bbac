"""preprocessor_config.json ↔ `Preprocessing`: what transformers' image processors of CLIP, LLaVA and BLIP do.

What a file leaves out has the default of these processors. What cannot be done exactly is refused by key and value.
"""

from typing import Any

from vigor_jax.data.images.preprocessing import CLIP_MEAN, CLIP_STD, Preprocessing
from vigor_jax.errors import InputError, some
from vigor_jax.json_fields import Fields, Json, show

BLIP = "BlipImageProcessor"  # stretches pictures to a square, and cuts nothing off
# The classes by the names that transformers has given them; "Fast" and "Pil" differ in what they resize with.
_KINDS = {
    name + backend: name
    for name in ("CLIPImageProcessor", "CLIPFeatureExtractor", "LlavaImageProcessor", BLIP)
    for backend in ("", "Fast", "Pil")
}
_DEFAULT_SIZE, _BLIP_DEFAULT_SIZE = 224, 384
_FILTERS = (0, 1, 2, 3, 4, 5)  # numbers of PIL's resampling filters
_MAX_SIZE = 1 << 13


def preprocessing_from_hf(fields: Fields, image_size: int, default: str = "CLIPImageProcessor") -> Preprocessing:
    """Reads preprocessor_config.json, or the `image_processor` part of a processor_config.json.

    Args:
      fields: its content.
      image_size: side of the pictures that the vision tower takes, in pixels.
      default: the class of a file that names none.

    Raises:
      InputError: a setting that is not supported or makes no sense, or pictures of another size than the tower's.
    """
    key = "image_processor_type" if fields.values.get("image_processor_type") is not None else "feature_extractor_type"
    kind = fields.text(key, None, null=True) or default
    if kind not in _KINDS:
        raise InputError(
            f"{fields.place(key)} {show(kind)} is not supported, only CLIPImageProcessor, LlavaImageProcessor or {BLIP}"
        )
    is_blip = _KINDS[kind] == BLIP
    pad = fields.boolean("do_pad", False, null=True) and _KINDS[kind] == "LlavaImageProcessor"
    resizes, crops = _step(fields, "do_resize"), not is_blip and _step(fields, "do_center_crop")
    edge, stretch = _size(fields, is_blip) if resizes else (None, None)
    crop = _crop_size(fields) if crops else None
    # What comes out must have the tower's size whatever picture goes in; a padded picture is square.
    if not (crops or stretch or (edge and pad)):
        raise InputError(
            f"{fields.place('do_center_crop')} false is not supported here: pictures must leave with the tower's "
            f"{image_size} x {image_size} pixels, and only a size with height and width sees to that too"
        )
    if crop not in (None, image_size) or edge not in (None, image_size):
        raise InputError(
            f"{fields.path}: shortest edge {edge}, crop {crop} and the tower's {image_size} pixels must be the same "
            "size; take config.json and this file from one checkpoint"
        )
    if not crops and stretch and stretch != (image_size, image_size):
        raise InputError(
            f"{fields.place('size')} stretches pictures to {stretch[0]} x {stretch[1]} pixels and the tower takes "
            f"{image_size} x {image_size}; these must be the same size"
        )
    factor = fields.number("rescale_factor", 1 / 255, least=1e-9, most=1e9, null=True)
    mean = fields.numbers("image_mean", CLIP_MEAN, count=3, least=0, most=1)
    deviation = fields.numbers("image_std", CLIP_STD, count=3, least=1e-6, most=1)
    return Preprocessing(
        size=image_size,
        pad=pad,
        image_mean=(mean[0], mean[1], mean[2]),
        image_std=(deviation[0], deviation[1], deviation[2]),
        do_resize=resizes,
        stretch=stretch,
        resample=fields.choice("resample", _FILTERS, 3, null=True),
        rescale_factor=factor if _step(fields, "do_rescale") else 1.0,
        do_normalize=_step(fields, "do_normalize"),
    )


def preprocessing_to_hf(preprocessing: Preprocessing) -> Json:
    """A preprocessor_config.json of CLIP's processor, or of LLaVA's, which alone can pad."""
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


def _step(fields: Fields, name: str) -> bool:
    return fields.choice(name, (True, False), True, null=True)


def _size(fields: Fields, is_blip: bool) -> tuple[int | None, tuple[int, int] | None]:
    """Length of the shortest edge, or (height, width) to stretch to; one number alone is BLIP's for both."""
    size = _object(fields, "size")
    if size is None:
        default = _BLIP_DEFAULT_SIZE if is_blip else _DEFAULT_SIZE
        edge = fields.integer("size", default, least=1, most=_MAX_SIZE, null=True)
        return (None, (edge, edge)) if is_blip else (edge, None)
    if size.values.keys() == {"shortest_edge"} and not is_blip:
        return size.integer("shortest_edge", _DEFAULT_SIZE, least=1, most=_MAX_SIZE), None
    if size.values.keys() == {"height", "width"}:
        return None, _height_and_width(size)
    raise InputError(
        f"{fields.place('size')}: expected {'' if is_blip else 'a shortest_edge, or '}a height and a width, got the "
        f"keys {some(map(show, size.values))}; other ways of resizing are not supported"
    )


def _crop_size(fields: Fields) -> int:
    """The side of the square that is cut out of the middle."""
    size = _object(fields, "crop_size")
    if size is None:
        return fields.integer("crop_size", _DEFAULT_SIZE, least=1, most=_MAX_SIZE, null=True)
    if size.values.keys() == {"height", "width"}:
        height, width = _height_and_width(size)
        if height == width:
            return height
    raise InputError(f"{fields.place('crop_size')}: expected a height and a width that are equal; correct it")


def _object(fields: Fields, key: str) -> Fields | None:
    """The value of a key as an object; a list of two is (height, width); None for a number or nothing."""
    value: Any = fields.values.get(key)
    if isinstance(value, list | tuple) and len(value) == 2:
        value = dict(zip(("height", "width"), value, strict=True))
    return Fields({key: value}, fields.path).object(key) if isinstance(value, dict) else None


def _height_and_width(size: Fields) -> tuple[int, int]:
    height, width = (size.integer(key, 0, least=1, most=_MAX_SIZE) for key in ("height", "width"))
    return height, width
