"""DPO in PyTorch, transformers and PEFT in float64, for tests of ours.

Written from Rafailov et al. 2023, equation 7, as plainly as possible: one response a pass with its whole prompt in
front of it, a second copy of the model as the reference, autograd, torch's AdamW, transformers' tokens, pixels and
schedule. It shares nothing with ours but the settings and the pairs.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import peft
import torch
import transformers
from PIL import Image

PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER: <image>\n{} ASSISTANT:"
)


class Pair(NamedTuple):
    """Two answers to a question about an image, of which the first is better."""

    image: Path
    question: str
    chosen: str
    rejected: str


class TorchDpo:
    """A policy that is trained in full but for its tower, or with an adapter; the reference; and what trains it.

    Args:
      base: a checkpoint in the layout of transformers.
      settings: a `DpoConfig`.
      num_updates: of the whole run, for the schedule.
    """

    def __init__(self, base: Path, settings: Any, num_updates: int) -> None:
        self.settings = settings
        self._processor = transformers.AutoProcessor.from_pretrained(base)
        model = transformers.LlavaForConditionalGeneration.from_pretrained(
            base, dtype=torch.float64, attn_implementation="eager"
        ).eval()
        self._reference = copy.deepcopy(model).requires_grad_(False)
        model.model.vision_tower.requires_grad_(False)
        if settings.lora:
            lora = peft.LoraConfig(
                r=settings.lora.rank,
                lora_alpha=settings.lora.alpha,
                target_modules=r".*language_model\..*\.(q|k|v|o|gate|up|down)_proj",
            )
            peft.inject_adapter_in_model(lora, model)
        self._policy = model
        self.trained = {
            name.replace(".base_layer", "").replace(".default.weight", ""): weight
            for name, weight in model.named_parameters()
            if weight.requires_grad
        }
        matrices = [weight for weight in self.trained.values() if weight.ndim == 2]
        vectors = [weight for weight in self.trained.values() if weight.ndim == 1]
        groups = [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        betas = settings.beta1, settings.beta2
        self._optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=betas, eps=settings.eps)
        self._schedule = transformers.get_cosine_schedule_with_warmup(self._optimizer, 0, num_updates)

    def load(self, weights: Mapping[str, np.ndarray]) -> None:
        """Begins with these, which name every weight that is trained."""
        assert self.trained.keys() == weights.keys()
        with torch.no_grad():
            for name, weight in self.trained.items():
                assert weight.shape == weights[name].shape
                weight.copy_(torch.tensor(weights[name]))

    def weights(self) -> dict[str, np.ndarray]:
        """What is trained, as it is now."""
        return {name: weight.detach().numpy().copy() for name, weight in self.trained.items()}

    def update(self, pairs: Sequence[Pair]) -> tuple[float, float]:
        """One step on the mean loss over pairs; the loss, and the norm of the gradient."""
        settings, losses = self.settings, []
        for pair in pairs:
            chosen, rejected = (self._logps(self._policy, pair, each) for each in (pair.chosen, pair.rejected))
            with torch.no_grad():
                ref_chosen, ref_rejected = (
                    self._logps(self._reference, pair, each) for each in (pair.chosen, pair.rejected)
                )
            ratios = (chosen.sum() - ref_chosen.sum()) - (rejected.sum() - ref_rejected.sum())
            loss = -torch.log(torch.sigmoid(settings.beta * ratios))
            losses.append(loss + settings.sft_factor * -chosen.mean())
        loss = torch.stack(losses).mean()
        self._optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(list(self.trained.values()), settings.max_grad_norm)
        self._optimizer.step()
        self._schedule.step()
        return float(loss.detach()), float(norm)

    def _logps(self, model: Any, pair: Pair, answer: str) -> torch.Tensor:
        """log p of each token of an answer, and of the one that ends it."""
        asked = PROMPT.format(pair.question)
        image = Image.open(pair.image).convert("RGB")
        start = self._processor(images=image, text=asked, return_tensors="pt")["input_ids"].shape[1]
        inputs = self._processor(images=image, text=f"{asked} {answer}</s>", return_tensors="pt")
        ids = inputs["input_ids"]
        logps = torch.log_softmax(model(**inputs).logits[0, start - 1 : -1], -1)
        return logps.gather(-1, ids[0, start:, None])[:, 0]
