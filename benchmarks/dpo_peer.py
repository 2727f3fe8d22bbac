"""The other side of `benchmarks/dpo.py`: the update that a user of transformers and PEFT writes, or that TRL does."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import peft
import torch
from torch.nn.functional import log_softmax, logsigmoid

from benchmarks.dpo_work import Encoded, Settings
from benchmarks.ppo_peer import TARGET, take_adapter


class Peer:
    """A LLaVA of transformers, with PEFT's adapter or trained in full but for its tower.

    All better responses and all worse ones are the rows of one batch, padded on the right to the longest, under causal
    SDPA without a mask. With `like_trl`, what TRL 1.16 does with images on a CPU: all places go through the output
    matrix, and the reference reads the rows in every update. Otherwise only the places of responses do, and the
    reference has read them before.

    Args:
      model: of transformers; gets the adapter.
      settings: of an update.
      encoded: rows as tokens.
      pixel_values: of the images.
      adapter: A of ours, as `take_adapter` takes it; empty without an adapter.
      like_trl: see above.

    Attributes:
      loss: of the last update.
    """

    def __init__(
        self,
        model: Any,
        settings: Settings,
        encoded: list[Encoded],
        pixel_values: torch.Tensor,
        adapter: dict[str, np.ndarray],
        *,
        like_trl: bool,
    ) -> None:
        self.like_trl, self.beta, self.loss = like_trl, settings.config().beta, 0.0
        self.max_grad_norm = settings.config().max_grad_norm
        self.reference = None
        model.model.vision_tower.requires_grad_(False)
        if adapter:
            config = peft.LoraConfig(r=settings.rank, lora_alpha=2 * settings.rank, target_modules=TARGET)
            self.model = peft.get_peft_model(model, config).eval()
            self.llava = self.model.base_model.model
            take_adapter(self.model, adapter)
        else:
            self.model = self.llava = model.eval()
        if settings.remat == "full":
            self.model.train().gradient_checkpointing_enable()
        self._take(encoded, pixel_values)
        self.trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=settings.learning_rate, weight_decay=0.0, fused=True)
        if like_trl and not adapter:
            raise ValueError("with all weights trained, TRL holds a second model; give an adapter")
        self.ref_logps = self._reference()

    def _take(self, encoded: list[Encoded], pixel_values: torch.Tensor) -> None:
        """Every pair is two rows, whatever responses it shares with others."""
        pairs = [(each.prompt, each.responses[b], each.responses[w]) for each in encoded for b, w in each.pairs]
        prompts = [prompt for prompt, _, _ in pairs] * 2
        responses = [better for _, better, _ in pairs] + [worse for _, _, worse in pairs]
        length = max(len(p) + len(r) for p, r in zip(prompts, responses, strict=True))
        self.token_ids = torch.zeros(len(prompts), length, dtype=torch.long)
        self.is_response = torch.zeros(len(prompts), length, dtype=torch.bool)
        for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            end = len(prompt) + len(response)
            self.token_ids[row, :end] = torch.tensor([*prompt, *response])
            self.is_response[row, len(prompt) : end] = True
        images = [number for number, each in enumerate(encoded) for _ in each.pairs] * 2
        self.pixel_values = pixel_values[images]

    def _logps(self) -> torch.Tensor:
        """log p of each row's response."""
        ids, is_target = self.token_ids[:, :-1], self.is_response[:, 1:]
        hidden = self.llava.model(input_ids=ids, pixel_values=self.pixel_values).last_hidden_state
        targets = self.token_ids[:, 1:]
        if self.like_trl:
            found = log_softmax(self.llava.lm_head(hidden), -1).gather(-1, targets[..., None])[..., 0]
            return (found * is_target).sum(1)
        found = log_softmax(self.llava.lm_head(hidden[is_target]), -1).gather(-1, targets[is_target][:, None])[:, 0]
        return torch.zeros(is_target.shape).masked_scatter(is_target, found).sum(1)

    @torch.no_grad()
    def _reference(self) -> torch.Tensor:
        with self._without_adapter():
            return self._logps()

    @contextlib.contextmanager
    def _without_adapter(self) -> Iterator[None]:
        with self.model.disable_adapter() if isinstance(self.model, peft.PeftModel) else contextlib.nullcontext():
            yield

    def __call__(self) -> None:
        """An update."""
        reference = self._reference() if self.like_trl else self.ref_logps
        better, worse = (self._logps() - reference).chunk(2)
        loss = -logsigmoid(self.beta * (better - worse)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.loss = loss.item()
