"""Runs in the environment of groundingdino-py: one JSON task in, arrays out. See test_backends.py."""

import json
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import transformers
from groundingdino.models.GroundingDINO.backbone import backbone, swin_transformer
from groundingdino.util.inference import load_model, predict
from groundingdino.util.slconfig import SLConfig
from PIL import Image

from detector_bridge.backends.groundingdino import GroundingDinoBackend
from detector_bridge.backends.transformers import TransformersBackend


def predict_all(original: Path, pixels: np.ndarray, phrases: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Scores [Q] and boxes [Q, 4] xyxy of all queries by the package alone, with its own caption and tokenizer."""
    config = SLConfig.fromfile(str(original / "GroundingDINO.py"))
    sizes = config._cfg_dict.get("swin", {})
    named = "swin_T_224_1k"
    with tempfile.TemporaryDirectory() as scratch:
        bert = Path(scratch) / "bert"
        for path in (original / "bert-base-uncased").iterdir():
            bert.mkdir(exist_ok=True)
            (bert / path.name).write_bytes(path.read_bytes())
        transformers.BertModel(transformers.BertConfig.from_pretrained(bert)).save_pretrained(bert)
        settings = Path(scratch) / "config.py"
        text = (original / "GroundingDINO.py").read_text()
        settings.write_text(f"{text}\ntext_encoder_type = {str(bert)!r}\nbackbone = {named!r}\n")

        known = backbone.build_swin_transformer

        def build(name: str, pretrain_img_size: int, **options: object) -> torch.nn.Module:
            if not sizes:
                return known(name, pretrain_img_size, **options)
            return swin_transformer.SwinTransformer(pretrain_img_size, **sizes, **options)

        with mock.patch.object(backbone, "build_swin_transformer", build):
            model = load_model(str(settings), str(original / "groundingdino.pth"), device="cpu")
    boxes, scores, _ = predict(model, torch.from_numpy(pixels), ". ".join(phrases), 0.0, 0.0, device="cpu")
    center, size = boxes.split(2, dim=-1)
    return scores.numpy(), torch.cat([center - size / 2, center + size / 2], dim=-1).clip(0, 1).numpy()


def main() -> None:
    task = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    with np.load(task["arrays"]) as arrays:
        pixels, image_of = arrays["pixels"], arrays["image_of"].tolist()
    out = {}
    theirs = TransformersBackend.load(Path(task["transformers"]))
    scores = theirs.detect(pixels, task["prompts"], image_of)
    out |= {"transformers_tokens": scores.tokens, "transformers_boxes": scores.boxes_xyxy}
    del theirs
    ours = GroundingDinoBackend.load(Path(task["original"]), short_side=224, long_side=400)
    rows: list[int] = []
    ours._network.backbone[0].register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0].tensors)))
    scores = ours.detect(pixels, task["prompts"], image_of)
    out |= {"groundingdino_tokens": scores.tokens, "groundingdino_boxes": scores.boxes_xyxy, "rows_seen": rows}
    out["prepared"] = ours.prepare(Image.open(task["image"]))
    del ours
    out["predict_scores"], out["predict_boxes"] = predict_all(Path(task["original"]), out["prepared"], task["phrases"])
    np.savez(task["out"], **out)


if __name__ == "__main__":
    main()
