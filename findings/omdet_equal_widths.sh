#!/usr/bin/env bash
# transformers: OmDet-Turbo can be made with class_embed_dim equal to decoder_hidden_dim, and then every forward pass ends with an AttributeError.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.24.0
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PROGRAM'
import torch
import transformers
from transformers import CLIPTextConfig, OmDetTurboConfig, OmDetTurboForObjectDetection, SwinConfig

print("transformers", transformers.__version__, "torch", torch.__version__)


def make(class_width, decoder_width):
    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=100, hidden_size=class_width, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=16, bos_token_id=98, eos_token_id=99,
    )
    swin = SwinConfig(
        image_size=96, embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 2, 4, 8], window_size=3, out_indices=[2, 3, 4]
    )
    config = OmDetTurboConfig(
        backbone_config=swin, use_timm_backbone=False, apply_layernorm_after_vision_backbone=False, text_config=text,
        image_size=96, text_projection_in_dim=class_width, text_projection_out_dim=class_width,
        class_embed_dim=class_width, task_encoder_hidden_dim=64, num_queries=30,
        vision_features_channels=[32, 32, 32], encoder_in_channels=[32, 64, 128], encoder_hidden_dim=32,
        encoder_attention_heads=4, encoder_dim_feedforward=64, decoder_hidden_dim=decoder_width, decoder_num_heads=4,
        decoder_num_layers=2, decoder_dim_feedforward=64,
    )
    model = OmDetTurboForObjectDetection(config).eval()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=draw))
    return model


def words(count, seed):
    ids = torch.full((count, 6), 99)
    ids[:, 0] = 98
    ids[:, 1:4] = torch.randint(5, 90, (count, 3), generator=torch.Generator().manual_seed(seed))
    return ids


def detect(model, images, counts):
    """Boxes and scores of the first image, which is asked for `counts[0]` classes; the others for theirs."""
    classes = torch.cat([words(count, number) for number, count in enumerate(counts)])
    tasks = torch.cat([words(1, 77)] * len(counts))
    with torch.no_grad():
        found = model(
            pixel_values=images, classes_input_ids=classes, classes_attention_mask=torch.ones_like(classes),
            classes_structure=torch.tensor(counts), tasks_input_ids=tasks, tasks_attention_mask=torch.ones_like(tasks),
        )
    return found.decoder_coord_logits[0], found.decoder_class_logits[0][:, : counts[0]]


images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(2))
shapes = {}
for class_width in (48, 32):
    try:
        shapes[class_width] = tuple(detect(make(class_width, 32), images[:1], [2])[0].shape)
    except AttributeError as error:
        shapes[class_width] = f"AttributeError: {error}"
    print(f"decoder_hidden_dim 32, class_embed_dim {class_width}: {shapes[class_width]}")
print("behavior: the layer that projects the task exists only where the two widths differ, and is always called")
raise SystemExit(not (shapes[48] == (30, 4) and "task_project" in shapes[32]))
PROGRAM
