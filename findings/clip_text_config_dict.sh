#!/usr/bin/env bash
# transformers 5: a CLIP config.json with "text_config_dict" loses, without a warning, every value of "text_config" that the former does not repeat: 248 positions become 77.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check transformers==5.24.0
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - "$folder" 2>"$folder/stderr" <<'PROGRAM'
import json
import sys
from pathlib import Path

import transformers
from transformers import CLIPConfig

# A text tower with longer texts than OpenAI's. The second file repeats two of its sizes in the older key, which
# transformers still reads; nothing in the two objects contradicts the other.
text = {"hidden_size": 768, "num_hidden_layers": 12, "max_position_embeddings": 248, "eos_token_id": 2}
repeated = {"hidden_size": 768, "num_hidden_layers": 12}
found = {}
for name, content in {"alone": {"text_config": text}, "both": {"text_config": text, "text_config_dict": repeated}}.items():
    folder = Path(sys.argv[1]) / name
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "clip", **content}))
    read = CLIPConfig.from_pretrained(folder).text_config
    found[name] = (read.hidden_size, read.max_position_embeddings, read.eos_token_id)

print("transformers", transformers.__version__)
for name, values in found.items():
    print(f"{name:5}: hidden_size, max_position_embeddings, eos_token_id = {values}")
as_found = found == {"alone": (768, 248, 2), "both": (768, 77, 49407)}
print("as found" if as_found else "this has changed")
sys.exit(not as_found)
PROGRAM
# Nothing but the notice that there is no PyTorch, which reading a config does not need.
if grep -iE "text_config|overrid|position|eos_token" "$folder/stderr"; then
  echo "it is told now"
  exit 1
fi
