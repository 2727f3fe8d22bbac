#!/usr/bin/env bash
# transformers: OmDet-Turbo can be made with class_embed_dim equal to decoder_hidden_dim, and then its decoder ends every call with an AttributeError.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.24.0
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PROGRAM'
import torch
import transformers
from transformers.models.omdet_turbo.modeling_omdet_turbo import OmDetTurboDecoder

print("transformers", transformers.__version__, "torch", torch.__version__)
print("behavior: the layer that projects the task exists only where the two widths differ, and is always called")
found = {}
for width in (512, 256):
    config = transformers.OmDetTurboConfig(class_embed_dim=width, num_queries=30)
    decoder = OmDetTurboDecoder(config).eval()
    picture = [torch.randn(1, 256, side, side) for side in (12, 6, 3)]
    try:
        with torch.no_grad():
            said = decoder(picture, torch.randn(2, 1, width), torch.randn(5, 1, width), torch.ones(1, 5))
        found[width] = tuple(said.decoder_coords.shape)
    except AttributeError as error:
        found[width] = f"AttributeError: {error}"
    print(f"decoder_hidden_dim {config.decoder_hidden_dim}, class_embed_dim {width}: {found[width]}")
raise SystemExit(not (found[512] == (1, 1, 30, 4) and "task_project" in found[256]))
PROGRAM
