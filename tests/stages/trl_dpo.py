"""Updates of TRL's DPOTrainer, for tests of ours; needs nothing of the project, in an environment that has TRL.

python trl_dpo.py JOB.json [JOB.json ...]

A job names the model's folder, the rows in the order in which they are learned from, DPOConfig's settings, what is
adapted (or null), an .npz of the weights to begin with, and one to write. For each, a line of JSON says losses, norms
of gradients, and versions.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers
import trl
from datasets import Dataset, Image, List


class Watched(trl.DPOTrainer):
    """Keeps what the logs round or average."""

    losses: list[float]

    def _compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = super()._compute_loss(*args, **kwargs)
        self.losses.append(loss.item())
        return loss


def plain(name: str) -> str:
    """A parameter's name without what PEFT puts around it."""
    return name.removeprefix("base_model.model.").replace(".base_layer", "").replace(".default.weight", "")


def run(job: dict[str, Any]) -> dict[str, Any]:
    model = transformers.LlavaForConditionalGeneration.from_pretrained(job["model"], dtype=torch.float32)
    model.model.vision_tower.requires_grad_(False)
    trainer = Watched(
        model=model,
        args=trl.DPOConfig(**job["settings"]),
        train_dataset=Dataset.from_list(job["rows"]).cast_column("images", List(Image())),
        processing_class=transformers.AutoProcessor.from_pretrained(job["model"]),
        peft_config=peft.LoraConfig(**job["lora"]) if job["lora"] else None,
    )
    trainer.losses = []
    trained = {plain(name): weight for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    first = np.load(job["first"])
    assert trained.keys() == set(first), trained.keys() ^ set(first)
    with torch.no_grad():
        for name, weight in trained.items():
            weight.copy_(torch.tensor(first[name]))
    trainer.train()
    np.savez(job["out"], **{name: weight.detach().numpy() for name, weight in trained.items()})
    norms = [line["grad_norm"] for line in trainer.state.log_history if "grad_norm" in line]
    versions = {each.__name__: each.__version__ for each in (trl, transformers, peft, torch)}
    return {"losses": trainer.losses, "grad_norms": norms, "versions": versions}


if __name__ == "__main__":
    for file in sys.argv[1:]:
        print(json.dumps(run(json.loads(Path(file).read_text()))), flush=True)
