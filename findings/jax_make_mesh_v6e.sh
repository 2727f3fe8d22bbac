#!/usr/bin/env bash
# JAX: `jax.make_mesh((8, 2), ...)` works on a v5e pod of 4x4 and raises NotImplementedError on a v6e pod of 4x4, the same torus: only on v5e does it allow an axis to be part of a physical one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "jax[tpu]==0.10.2"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PROGRAM' 2> "$folder/log" || { tail -n 5 "$folder/log"; exit 1; }
import jax
from jax.experimental import mesh_utils, topologies

print("jax", jax.__version__, "behavior: a mesh of 8 x 2 on 16 chips that form a torus of 4 x 4")
found = {}
for pod in ("v5e:4x4", "v6e:4x4"):
    devices = topologies.get_topology_desc(pod, platform="tpu").devices
    try:
        found[pod] = dict(jax.make_mesh((8, 2), ("fsdp", "tensor"), devices=devices).shape)
    except NotImplementedError as error:
        found[pod] = f"NotImplementedError: {str(error)[:76]}..."
    split = mesh_utils.create_device_mesh((8, 2), devices, allow_split_physical_axes=True)
    print(f"{pod} ({devices[0].device_kind}): make_mesh: {found[pod]}; create_device_mesh with splits: {split.shape}")
raise SystemExit(not (isinstance(found["v5e:4x4"], dict) and isinstance(found["v6e:4x4"], str)))
PROGRAM
