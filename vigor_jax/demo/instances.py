"""The true boxes of the demo's scenes, in the layout of COCO's instances:

python -m vigor_jax.demo.instances --data runs/demo/data --out instances.json
python -m vigor_jax.evaluate grounding --captions captions.jsonl --objects instances.json --out out/grounding
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vigor_jax import cli
from vigor_jax.demo.dataset import SPLITS, read_scenes
from vigor_jax.demo.drawing import box_xyxy
from vigor_jax.demo.scenes import IMAGE_SIZE, SHAPES, Scene
from vigor_jax.disk import naming
from vigor_jax.errors import InputError
from vigor_jax.hf.processor_files import write_json


def instances(scenes: Mapping[str, Scene]) -> dict[str, Any]:
    """COCO's instances of scenes, whose shapes are the categories; boxes are those of the outlines.

    Args:
      scenes: by the name of the picture.
    """
    annotations = []
    for image, scene in enumerate(scenes.values()):
        for item in scene.objects:
            left, top, right, bottom = box_xyxy(item)
            box = [left, top, right - left, bottom - top]
            annotations.append({"image_id": image, "category_id": SHAPES.index(item.shape), "bbox": box})
    return {
        "images": [
            {"id": number, "file_name": name, "width": IMAGE_SIZE, "height": IMAGE_SIZE}
            for number, name in enumerate(scenes)
        ],
        "categories": [{"id": number, "name": shape} for number, shape in enumerate(SHAPES)],
        "annotations": [{"id": number, **each} for number, each in enumerate(annotations)],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; see the module's docstring."""
    parser = cli.Parser("demo.instances", __doc__)
    parser.add_argument("--data", type=Path, default=Path("runs/demo/data"), help="that the demo has drawn")
    parser.add_argument("--split", choices=SPLITS, default="held_out")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file")
    given = parser.parse_args(arguments)
    if not (given.data / "scenes.json").is_file():
        raise InputError(f"demo.instances: {given.data} has no scenes.json; run the demo first, or name its data")
    with naming(given.out):
        given.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(given.out, instances(read_scenes(given.data, given.split)))


if __name__ == "__main__":
    cli.run(main)
