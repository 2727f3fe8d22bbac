#!/usr/bin/env bash
# PEFT: on a bfloat16 layer, most of what an adapter adds is lost where it is below half a step of the outputs (16% of the change is left), though its matrices are float32; added before the rounding, all of it would arrive.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q peft==0.21.2 torch==2.13.0 transformers==5.24.0
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PROGRAM'
import peft
import torch

print("peft", peft.__version__, "torch", torch.__version__)
print("behavior: base output and adapter output are rounded apart, so most of an update below half a step is lost")
torch.manual_seed(0)
base = torch.nn.Sequential(torch.nn.Linear(512, 512, bias=False)).to(torch.bfloat16)
model = peft.get_peft_model(base, peft.LoraConfig(r=8, lora_alpha=8, target_modules=["0"]))
matrices = {name: weight for name, weight in model.named_parameters() if "lora_" in name}
with torch.no_grad():
    for name, weight in matrices.items():
        if "lora_B" in name:
            weight.normal_(0, 1e-4)
x = torch.randn(64, 512, dtype=torch.bfloat16)
with torch.no_grad():
    with_adapter = model(x)
    with model.disable_adapter():
        without = model(x)
    layer = base[0]
    update = layer.get_delta_weight("default").float()
    exact = x.float() @ (layer.base_layer.weight.float() + update).T - x.float() @ layer.base_layer.weight.float().T
    together = (x.float() @ (layer.base_layer.weight.float() + update).T).to(torch.bfloat16)
print("type of the adapter's matrices:", {weight.dtype for weight in matrices.values()})
print(f"exact change of the outputs, rms: {exact.square().mean().sqrt():.2e}")
kept = ((with_adapter.float() - without.float()) * exact).sum() / exact.square().sum()
whole = ((together.float() - without.float()) * exact).sum() / exact.square().sum()
print(f"outputs that PEFT's adapter changes: {(with_adapter != without).float().mean():.1%}; share of the change: {kept:.0%}")
print(f"rounded once, after the sum: share of the change {whole:.0%}")
raise SystemExit(not (kept < 0.3 and whole > 0.7))
PROGRAM
