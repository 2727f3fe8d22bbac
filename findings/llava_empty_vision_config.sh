#!/usr/bin/env bash
# transformers 5: LlavaConfig with "vision_config": {} is a 224-pixel, 12-layer tower, with null or without the key a 336-pixel, 24-layer one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q transformers==5.24.0
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PROGRAM'
import transformers
from transformers import LlavaConfig

print("transformers", transformers.__version__)
print("behavior: an empty object takes CLIPVisionConfig's own defaults; null and an absent key take LLaVA's tower")


def sizes(config):
    vision = LlavaConfig.from_dict(config).vision_config
    return vision.image_size, vision.patch_size, vision.hidden_size, vision.num_hidden_layers


found = {str(config): sizes(dict(config)) for config in ({}, {"vision_config": None}, {"vision_config": {}})}
for config, numbers in found.items():
    print(config, "-> image_size, patch_size, hidden_size, num_hidden_layers =", numbers)
expected = {
    "{}": (336, 14, 1024, 24),
    "{'vision_config': None}": (336, 14, 1024, 24),
    "{'vision_config': {}}": (224, 32, 768, 12),
}
raise SystemExit(found != expected)
PROGRAM
