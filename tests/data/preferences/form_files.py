"""Small files of every form, as their projects lay them out, and images for them."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

GOOD, BAD = "A red car waits.", "A red car and a dog wait."
IMAGES = ("a.png", "sub/b.png")


def png(color):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(file, "png")
    return file.getvalue()


RED, BLUE = png("red"), png("blue")


def make_images(folder):
    for name, content in zip(IMAGES, (RED, BLUE), strict=True):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def message(role, *parts):
    """A message of a conversation; None among the parts is the image."""
    content = [{"type": "image", "text": None} if part is None else {"type": "text", "text": part} for part in parts]
    return {"role": role, "content": content}


def said(*texts):
    return [{"from": ("human", "gpt")[index % 2], "value": text} for index, text in enumerate(texts)]


def rated(response, *ratings, model="m"):
    aspects = ("Helpfulness", "Ethical Considerations", "Visual Faithfulness")
    annotations = {
        aspect: {"Rating": rating, "Rationale": "Why."} for aspect, rating in zip(aspects, ratings, strict=True)
    }
    return {"model": model, "response": response, "annotations": annotations}


# One row of each form about a.png: GOOD is better than BAD.
ROWS = {
    "trl": {"prompt": "What waits?", "chosen": GOOD, "rejected": BAD, "images": ["a.png"]},
    "rlhf_v": {
        "ds_name": "RLHF-V", "image": {"bytes": None, "path": "a.png"}, "idx": 3,
        "text": json.dumps({"question": "What waits?", "chosen": GOOD, "rejected": BAD}),
        "origin_dataset": "coco", "origin_split": "{}", "image_path": "./elsewhere/a.png",
    },
    "rlaif_v": {
        "ds_name": "RLAIF-V", "image": {"bytes": None, "path": "a.png"}, "question": "What waits?", "chosen": GOOD,
        "rejected": BAD, "origin_dataset": "coco", "origin_split": "{}", "idx": "3", "image_path": "elsewhere/a.png",
    },
    "vlfeedback": {
        "id": "3", "prompt": "What waits?", "models": ["m", "m"], "img_path": "a.png",
        "completions": [rated(GOOD, "5", "5", "5"), rated(BAD, "2", "5", "1")],
    },
    "povid": {
        "id": 3, "image": "a.png", "conversations": said("<image>\nWhat waits?", GOOD),
        "rejected_conversations": said("<image>\nWhat waits?", BAD),
    },
    "llava_rlhf": {
        "id": "3", "image": "a.png", "conversations": said("<image>\nWhat waits?"),
        "output_1": {"from": "llava", "value": BAD}, "output_2": {"from": "llava", "value": GOOD}, "preference": 2,
        "hallucination": True,
    },
    "sentinel": {
        "image_id": "a", "image_path": "a.png", "question": "What waits?", "context": "It rains.", "y_win": GOOD,
        "y_lose": BAD, "type": "y+", "is_last_sent": False, "nonhallu_objects": ["car"],
    },
    "own": {
        "image": "a.png", "prompt": "What waits?", "responses": [GOOD, BAD], "ratings": [1.0, 0.0], "context": "",
        "whole": True, "history": [], "name": "3",
    },
}  # fmt: skip


def write(path, rows):
    """Rows as a JSON list, JSON lines or Parquet, by the suffix."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text(json.dumps(rows, indent=1))
    return path


def embedded(path, rows, images, *, group=2, **options):
    """Parquet as `datasets` writes it, with an image's bytes and name in each row."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.Table.from_pylist(rows).append_column("image", pa.array(images, kind))
    pq.write_table(table, path, row_group_size=group, **options)
    return path
