#!/usr/bin/env bash
# The second environment: groundingdino-py and transformers 4, which cannot live next to transformers 5.
#     scripts/detector_env.sh [DIRECTORY]        (default: .venv-detector; about 6 GB, a few minutes)
# The tests look for .venv-detector, or for the interpreter that VIGOR_DETECTOR_PYTHON names.
set -euo pipefail
directory=${1:-"$(dirname "$0")/../.venv-detector"}
python=${PYTHON:-python3}
[ -x "$directory/bin/python" ] || "$python" -m venv "$directory"
"$directory/bin/python" -m pip install --quiet --disable-pip-version-check \
  torch torchvision groundingdino-py==0.4.0 "transformers>=4.57,<5" pillow \
  grpcio grpcio-health-checking grpcio-reflection prometheus-client python-json-logger
"$directory/bin/python" - <<'PYTHON'
import groundingdino, torch, transformers  # noqa
print(f"ready: torch {torch.__version__}, transformers {transformers.__version__}")
PYTHON
