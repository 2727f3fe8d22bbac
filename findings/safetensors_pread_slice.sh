#!/usr/bin/env bash
# safetensors with backend="pread": get_slice(name)[0:1] reads the whole tensor from the file, not the row that it returns.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check safetensors==0.8.0 numpy==2.2.6
"$work/venv/bin/python" - "$work/weights.safetensors" <<'PYTHON'
import re
import sys
from pathlib import Path

import numpy as np
import safetensors
from safetensors import safe_open
from safetensors.numpy import save_file

# 4096 rows of 4 KiB.
tensor = np.arange(4096 * 1024, dtype=np.float32).reshape(4096, 1024)
save_file({"weight": tensor}, sys.argv[1])


def bytes_read() -> int:
    """What this process has asked read calls for so far (Linux)."""
    return int(re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())[1])


with safe_open(sys.argv[1], framework="numpy", backend="pread") as file:
    part = file.get_slice("weight")
    bytes_read()
    before = bytes_read()
    row = part[0:1]
    count = bytes_read() - before
assert np.array_equal(row, tensor[:1])
print(f"safetensors {safetensors.__version__}")
print(f"a slice of {row.nbytes} bytes of a tensor of {tensor.nbytes} bytes; read: {count} bytes")
as_found = count >= tensor.nbytes
print("as found" if as_found else "this has changed")
sys.exit(not as_found)
PYTHON
