#!/usr/bin/env bash
# label-studio-sdk 2.1.2: JSON_MIN does not say which region a choice with perRegion is about, unless it is two choices or more.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q label-studio-sdk==2.1.2
"$folder/venv/bin/python" - "$folder" <<'PROGRAM'
import importlib.metadata
import json
import sys
from pathlib import Path

from label_studio_sdk.converter import Converter

folder = Path(sys.argv[1])
print("label-studio-sdk", importlib.metadata.version("label-studio-sdk"))
print("behavior: one choice of a region becomes a bare word, two keep the region's start and end")

CONFIG = """<View>
  <Labels name="sentence" toName="text"><Label value="Sentence"/></Labels>
  <Text name="text" value="$text"/>
  <Choices name="errors" toName="text" perRegion="true" choice="multiple">
    <Choice value="Object"/><Choice value="Color"/>
  </Choices>
</View>"""


def choices(region, start, end, *values):
    value = {"start": start, "end": end, "text": "", "choices": list(values)}
    return {"id": region, "from_name": "errors", "to_name": "text", "type": "choices", "value": value}


result = [choices("a", 0, 7, "Object"), choices("b", 15, 22, "Color"), choices("c", 23, 30, "Object", "Color")]
task = {
    "id": 1,
    "data": {"text": "A dog. A cat. A fox. A red. A cow."},
    "annotations": [{"id": 1, "completed_by": 1, "result": result}],
}
(folder / "tasks.json").write_text(json.dumps([task]))
Converter(CONFIG, str(folder)).convert_to_json_min(str(folder / "tasks.json"), str(folder / "out"), is_dir=False)
(row,) = json.loads((folder / "out" / "result.json").read_text())
print("errors:", row["errors"])
first, second, third = row["errors"]
raise SystemExit((first, second) != ("Object", "Color") or (third["start"], third["end"]) != (23, 30))
PROGRAM
