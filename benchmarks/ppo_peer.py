"""The other side of `benchmarks/ppo.py`: the loop that a user of transformers and PEFT writes."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import peft
import torch
from torch.nn.functional import log_softmax

from benchmarks.ppo_work import UPDATES_IN_ALL, Clock, Settings, rewards_of
from vigor_jax.stages.ppo_config import PpoConfig

TARGET = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"


def take_adapter(model: peft.PeftModel, adapter: dict[str, np.ndarray]) -> None:
    """A of ours, by name of the projection, [layer, in, rank], for PEFT's adapter; B is 0 on both sides."""
    for path, module in model.named_modules():
        name = path.rsplit(".", 1)[-1]
        if name in adapter and hasattr(module, "lora_A"):
            layer = int(path.split(".layers.")[1].split(".")[0])
            with torch.no_grad():
                module.lora_A["default"].weight.copy_(torch.tensor(adapter[name][layer].T))


@dataclasses.dataclass(frozen=True)
class Said:
    """Responses to all images.

    Attributes:
      token_ids: of prompts and responses, [images x candidates, T]; 0 behind them.
      is_token: of the places of responses alone, [images x candidates, R].
    """

    token_ids: torch.Tensor
    is_token: torch.Tensor


class Peer:
    """A LLaVA of transformers with PEFT's adapter and a value head.

    All responses are drawn by one call of `generate`, which keeps keys and values; the responses to as many images as
    ours computes at a time stand in one batch, padded on the right to the longest, under causal SDPA without a mask.
    Only the places of responses go through the output matrix.

    Args:
      model: of transformers; gets the adapter.
      settings: of the iteration.
      prompt_ids: of the prompt that all images share.
      pixel_values: of the images.
      attention: of transformers.

    Attributes:
      cache: of `generate`, None for the default.
      merges: whether the adapter's product is added to the weights while responses are drawn.
      losses: of the updates of the last iteration.
    """

    def __init__(
        self, model: Any, settings: Settings, prompt_ids: list[int], pixel_values: torch.Tensor, attention: str
    ) -> None:
        model.set_attn_implementation(attention)
        config = peft.LoraConfig(r=settings.rank, lora_alpha=2 * settings.rank, target_modules=TARGET)
        self.model, self.settings = peft.get_peft_model(model, config).eval(), settings
        self.ppo: PpoConfig = settings.config(separate=True)
        if settings.remat == "full":
            self.model.train().gradient_checkpointing_enable()
        self.llava = self.model.base_model.model
        self.value_head = torch.nn.Linear(model.config.text_config.hidden_size, 1)
        torch.nn.init.zeros_(self.value_head.weight)
        torch.nn.init.zeros_(self.value_head.bias)
        self.prompt_ids, self.pixel_values = torch.tensor(prompt_ids), pixel_values
        self.lengths = torch.tensor(settings.lengths.ravel())
        self.trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.trained += list(self.value_head.parameters())
        self.optimizer = torch.optim.AdamW(self.trained, lr=settings.learning_rate, weight_decay=0.0, fused=True)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, UPDATES_IN_ALL)
        self.cache: str | None = None
        self.merges = False
        self.losses: list[float] = []

    @contextlib.contextmanager
    def _merged(self) -> Iterator[None]:
        """The weights as responses are drawn with them."""
        if self.merges:
            self.model.merge_adapter()
        yield
        if self.merges:
            self.model.unmerge_adapter()

    def rollout(self) -> Said:
        """Draws all responses; each ends at its length, and `generate` when all have ended."""
        each, start = self.settings.candidates, len(self.prompt_ids)
        prompts, most = self.prompt_ids.expand(len(self.pixel_values), -1), int(self.lengths.max())
        with torch.inference_mode(), self._merged():
            drawn = self.model.generate(
                input_ids=prompts,
                attention_mask=torch.ones_like(prompts),
                pixel_values=self.pixel_values,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                num_return_sequences=each,
                max_new_tokens=most,
                min_new_tokens=most,
                cache_implementation=self.cache,
                pad_token_id=0,
            )
        responses = [row[start : start + end].tolist() for row, end in zip(drawn, self.lengths, strict=True)]
        return self.said(responses)

    def said(self, responses: list[Any]) -> Said:
        start, most = len(self.prompt_ids), int(self.lengths.max())
        token_ids = torch.zeros(len(responses), start + most, dtype=torch.long)
        token_ids[:, :start] = self.prompt_ids
        for row, response in enumerate(responses):
            token_ids[row, start : start + len(response)] = torch.tensor(response)
        return Said(token_ids, torch.arange(most) < self.lengths[:, None])

    def _forward(self, said: Said, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities of the tokens of responses, and values before them."""
        start, each = len(self.prompt_ids), self.settings.candidates
        most = int(said.is_token[rows].sum(1).max())  # padded to the longest of these rows
        token_ids = said.token_ids[rows, : start + most]
        pixel_values = self.pixel_values.repeat_interleave(each, 0)[rows]
        hidden = self.llava.model(input_ids=token_ids[:, :-1], pixel_values=pixel_values).last_hidden_state
        hidden = hidden[:, start - 1 :]
        logps = log_softmax(self.llava.lm_head(hidden), -1)
        logps = logps.gather(-1, token_ids[:, start:, None])[..., 0]
        return logps, self.value_head(hidden)[..., 0]

    def _parts(self, first: int, count: int) -> Iterator[slice]:
        """Rows of a minibatch, as many as are computed at a time."""
        size = self.settings.at_once * self.settings.candidates
        for start in range(first, first + count, size):
            yield slice(start, start + size)

    @torch.no_grad()
    def score(self, said: Said) -> dict[str, torch.Tensor]:
        """What an update needs to know of each token."""
        shape = said.is_token.shape
        found = {name: torch.zeros(shape) for name in ("logps", "ref_logps", "values")}
        for rows in self._parts(0, shape[0]):
            logps, values = self._forward(said, rows)
            with self.model.disable_adapter():
                ref_logps, _ = self._forward(said, rows)
            width = logps.shape[1]
            for name, part in (("logps", logps), ("ref_logps", ref_logps), ("values", values)):
                found[name][rows, :width] = part * said.is_token[rows, :width]
        return found | self._advantages(said, found)

    def _advantages(self, said: Said, found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Generalized advantage estimation, and whitening over all tokens."""
        config, mask, values = self.ppo, said.is_token, found["values"]
        rewards = torch.zeros(mask.shape)
        for row, length in enumerate(self.lengths.tolist()):
            rewards[row, :length] = torch.tensor(rewards_of(length))
            rewards[row, length - 1] -= config.missing_eos
        rewards = (rewards - config.kl_factor * (found["logps"] - found["ref_logps"])) * mask
        advantages, later = torch.zeros(mask.shape), torch.zeros(len(mask))
        after = torch.nn.functional.pad(values, (0, 1))
        for place in reversed(range(mask.shape[1])):
            delta = rewards[:, place] + config.gamma * after[:, place + 1] - values[:, place]
            later = (delta + config.gamma * config.lam * later) * mask[:, place]
            advantages[:, place] = later
        returns = (advantages + values) * mask
        own = advantages[mask]
        whitened = (advantages - own.mean()) / (own.var() + 1e-8).sqrt() * mask
        return {"advantages": whitened, "returns": returns}

    def _loss(self, said: Said, found: dict[str, torch.Tensor], rows: slice) -> torch.Tensor:
        """The sum over tokens."""
        config = self.ppo
        logps, values = self._forward(said, rows)
        width = logps.shape[1]
        old = {name: each[rows, :width] for name, each in found.items()}
        ratio = (logps - old["logps"]).exp()
        clipped = ratio.clamp(1 - config.clip_range, 1 + config.clip_range)
        loss = -torch.minimum(ratio * old["advantages"], clipped * old["advantages"])
        held = old["values"] + (values - old["values"]).clamp(-config.value_clip, config.value_clip)
        error = torch.maximum((values - old["returns"]) ** 2, (held - old["returns"]) ** 2)
        return (loss + config.value_factor * 0.5 * error)[said.is_token[rows, :width]].sum()

    def update(self, said: Said, found: dict[str, torch.Tensor], epochs: int) -> None:
        """One epoch after the other."""
        size = self.settings.minibatch * self.settings.candidates
        for _ in range(epochs):
            for first in range(0, len(said.token_ids), size):
                tokens, total = said.is_token[first : first + size].sum(), 0.0
                for rows in self._parts(first, size):
                    loss = self._loss(said, found, rows) / tokens
                    loss.backward()
                    total += loss.item()
                torch.nn.utils.clip_grad_norm_(self.trained, self.ppo.max_grad_norm)
                self.optimizer.step()
                self.scheduler.step()
                self.optimizer.zero_grad(set_to_none=True)
                self.losses.append(total)

    def __call__(
        self, clock: Clock, said: list[Any] | None = None, epochs: int | None = None
    ) -> tuple[Said, dict[str, torch.Tensor]]:
        """An iteration; with `said`, its responses are these; `epochs` replaces those of the settings."""
        self.losses = []
        with clock("rollout"):
            responses = self.rollout() if said is None else self.said(said)
        with clock("score"):
            found = self.score(responses)
        with clock("update"):
            self.update(responses, found, epochs or self.settings.epochs)
        return responses, found
