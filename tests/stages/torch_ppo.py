"""PPO per token in PyTorch, transformers and PEFT, for tests of ours.

Written from the papers that `vigor_jax.training.ppo` names, as plainly as possible: one response a row and a pass, its
whole prompt in front of it, loops over its tokens, autograd, torch's AdamW, transformers' schedule. It shares nothing
with ours but the settings and the responses.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import peft
import torch
import transformers
from PIL import Image


class Response(NamedTuple):
    """A response to an image, and what the reward streams pay for it.

    Attributes:
      image: the file.
      prompt_ids: with the image's tokens.
      token_ids: of the response.
      rewards: of each of its tokens.
      has_ended: by itself.
    """

    image: Path
    prompt_ids: Sequence[int]
    token_ids: Sequence[int]
    rewards: Sequence[float]
    has_ended: bool


class Learned(NamedTuple):
    """A response, and all that is held fixed while it is learned from: arrays of one number a token."""

    response: Response
    old_logps: torch.Tensor
    ref_logps: torch.Tensor
    old_values: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor


class TorchPpo:
    """A policy with an adapter and a value head, and what trains them.

    Args:
      base: a checkpoint in the layout of transformers.
      settings: a `PpoConfig`.
      num_updates: of the whole run, for the schedule.
    """

    def __init__(self, base: Path, settings: Any, num_updates: int) -> None:
        self.settings = settings
        self._images: dict[Path, torch.Tensor] = {}
        self._processor = transformers.AutoProcessor.from_pretrained(base).image_processor
        model = transformers.LlavaForConditionalGeneration.from_pretrained(
            base, dtype=torch.float32, attn_implementation="eager"
        )
        lora = peft.LoraConfig(
            r=settings.lora.rank,
            lora_alpha=settings.lora.alpha,
            target_modules=r".*language_model\..*\.(q|k|v|o|gate|up|down)_proj",
        )
        self.model = peft.get_peft_model(model, lora).eval()
        self.value_head = torch.nn.Linear(model.config.text_config.hidden_size, 1)
        torch.nn.init.zeros_(self.value_head.weight)
        torch.nn.init.zeros_(self.value_head.bias)
        self.kl_factor = settings.kl_factor

        matrices = [weight for weight in self.model.parameters() if weight.requires_grad]
        if settings.baseline == "value":
            matrices.append(self.value_head.weight)
        groups = [{"params": matrices, "weight_decay": settings.weight_decay}]
        if settings.baseline == "value":
            groups.append({"params": [self.value_head.bias], "weight_decay": 0.0})
        self._trained = [weight for group in groups for weight in group["params"]]
        betas = settings.beta1, settings.beta2
        self._optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=betas, eps=settings.eps)
        warmup = math.ceil(settings.warmup_ratio * num_updates)
        self._schedule = transformers.get_cosine_schedule_with_warmup(self._optimizer, warmup, num_updates)

    def adapter(self) -> dict[tuple[int, str, str], torch.nn.Parameter]:
        """The adapter's matrices by layer, projection and letter, such as (0, "q_proj", "A")."""
        found = {}
        for name, weight in self.model.named_parameters():
            if ".lora_" in name:
                pieces = name.split(".")
                layer, letter = pieces[pieces.index("layers") + 1], pieces[-3].removeprefix("lora_")
                found[int(layer), pieces[-4], letter] = weight
        return found

    def load(self, adapter: Mapping[tuple[int, str, str], np.ndarray]) -> None:
        """Begins with this adapter, which names every matrix."""
        matrices = self.adapter()
        assert matrices.keys() == adapter.keys()
        with torch.no_grad():
            for key, value in adapter.items():
                assert matrices[key].shape == value.shape
                matrices[key].copy_(torch.tensor(value))

    def read(self, response: Response) -> tuple[torch.Tensor, torch.Tensor]:
        """log p of each token of a response, and what the value head says before it."""
        prompt, answer = list(response.prompt_ids), list(response.token_ids)
        llava, ids = self.model.get_base_model(), torch.tensor([prompt + answer])
        hidden = llava.model(input_ids=ids, pixel_values=self._pixels(response.image)).last_hidden_state
        before = hidden[0, len(prompt) - 1 : -1]
        logps = torch.log_softmax(llava.lm_head(before), -1)
        return logps[torch.arange(len(answer)), torch.tensor(answer)], self.value_head(before)[:, 0]

    @torch.no_grad()
    def draw(self, image: Path, prompt_ids: Sequence[int], length: int, generator: torch.Generator) -> list[int]:
        """That many tokens, from the model's own distribution."""
        found: list[int] = []
        for _ in range(length):
            ids = torch.tensor([[*prompt_ids, *found]])
            logits = self.model(input_ids=ids, pixel_values=self._pixels(image)).logits[0, -1]
            found.append(int(torch.multinomial(torch.softmax(logits, -1), 1, generator=generator)))
        return found

    def _pixels(self, image: Path) -> torch.Tensor:
        if image not in self._images:
            found = self._processor(images=Image.open(image).convert("RGB"), return_tensors="pt")
            self._images[image] = found["pixel_values"]
        return self._images[image]

    def iterate(self, groups: Sequence[Sequence[Response]], iteration: int) -> Iterator[dict[str, float]]:
        """All updates of an iteration; yields what is measured, after each.

        Args:
          groups: for each image, in order, the responses to it.
          iteration: from 1.
        """
        settings = self.settings
        learned, divergence = self._prepare(groups)
        for epoch in range(settings.ppo_epochs):
            order = np.random.default_rng([settings.seed, iteration, epoch]).permutation(len(groups))
            for first in range(0, len(order), settings.minibatch):
                chosen = order[first : first + settings.minibatch]
                yield self._update([each for index in chosen for each in learned[index]])
        if settings.kl_target:
            error = max(-0.2, min(0.2, divergence / settings.kl_target - 1))
            self.kl_factor *= 1 + error * sum(map(len, groups)) / settings.kl_horizon

    @torch.no_grad()
    def _prepare(self, groups: Sequence[Sequence[Response]]) -> tuple[list[list[Learned]], float]:
        """Advantages and returns; and the mean divergence of a response from the reference."""
        settings, divergences = self.settings, []
        learned: list[list[Learned]] = []
        for group in groups:
            own, sums = [], []
            for response in group:
                logps, values = self.read(response)
                with self.model.disable_adapter():
                    ref_logps, _ = self.read(response)
                divergences.append(float((logps - ref_logps).sum()))
                rewards = [*response.rewards]
                if settings.kl_in == "reward":
                    difference = logps - ref_logps
                    estimate = difference if settings.kl == "k1" else torch.exp(-difference) - 1 + difference
                    rewards = [r - self.kl_factor * float(k) for r, k in zip(rewards, estimate, strict=True)]
                if not response.has_ended:
                    rewards[-1] -= settings.missing_eos
                sums.append(sum(rewards))
                if settings.baseline == "value":
                    advantages = torch.tensor(_gae(rewards, values.tolist(), settings.gamma, settings.lam))
                    returns = advantages + values
                else:
                    values = advantages = returns = torch.zeros_like(logps)
                own.append(Learned(response, logps, ref_logps, values, advantages, returns))
            if settings.baseline != "value":
                own = [
                    each._replace(advantages=torch.full_like(each.advantages, advantage))
                    for each, advantage in zip(own, _against_the_others(sums, settings.baseline), strict=True)
                ]
            learned.append(own)
        if settings.whiten:
            every = torch.cat([each.advantages for own in learned for each in own]).double()
            mean, std = every.mean(), torch.sqrt(every.var() + 1e-8)
            learned = [
                [each._replace(advantages=((each.advantages - mean) / std).float()) for each in own] for own in learned
            ]
        return learned, float(np.mean(divergences))

    def _update(self, batch: Sequence[Learned]) -> dict[str, float]:
        """One step on the mean loss over all tokens of the responses."""
        settings = self.settings
        parts: dict[str, list[torch.Tensor]] = {}

        def note(name: str, value: torch.Tensor) -> None:
            parts.setdefault(name, []).append(value)

        for each in batch:
            logps, values = self.read(each.response)
            ratio = torch.exp(logps - each.old_logps)
            clipped = torch.clamp(ratio, 1 - settings.clip_range, 1 + settings.clip_range)
            note("policy_loss", -torch.minimum(ratio * each.advantages, clipped * each.advantages))
            note("clip_share", (clipped * each.advantages < ratio * each.advantages).float())
            note("approx_kl", 0.5 * (logps - each.old_logps) ** 2)
            if settings.baseline == "value":
                error = (values - each.returns) ** 2
                if settings.value_clip:
                    low, high = each.old_values - settings.value_clip, each.old_values + settings.value_clip
                    held = torch.minimum(torch.maximum(values, low), high)
                    error = torch.maximum(error, (held - each.returns) ** 2)
                    note("value_clip_share", (torch.abs(values - each.old_values) > settings.value_clip).float())
                note("value_loss", 0.5 * error)
            if settings.kl_in == "loss":
                difference = logps - each.ref_logps
                note("kl_loss", self.kl_factor * (torch.exp(-difference) - 1 + difference))
        means = {name: torch.cat(values).mean() for name, values in parts.items()}
        loss = means["policy_loss"] + means.get("kl_loss", 0.0)
        if settings.baseline == "value":
            loss = loss + settings.value_factor * means["value_loss"]

        self._optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self._trained, settings.max_grad_norm)
        rate = self._schedule.get_last_lr()[0]
        self._optimizer.step()
        self._schedule.step()
        measured = {name: float(value.detach()) for name, value in means.items()}
        return measured | {"loss": float(loss.detach()), "grad_norm": float(norm), "learning_rate": rate}


def _gae(rewards: Sequence[float], values: Sequence[float], gamma: float, lam: float) -> list[float]:
    """Schulman et al. 2016, equation 16, as the sum that it is: of (gamma lam)^k d_(t+k) over all that follow."""
    after = [*values[1:], 0.0]
    deltas = [r + gamma * v_next - v for r, v_next, v in zip(rewards, after, values, strict=True)]
    return [sum((gamma * lam) ** k * delta for k, delta in enumerate(deltas[t:])) for t in range(len(deltas))]


def _against_the_others(sums: Sequence[float], baseline: str) -> list[float]:
    if baseline == "rloo":
        return [own - (sum(sums) - own) / (len(sums) - 1) for own in sums]
    return [(own - np.mean(sums)) / (np.std(sums, ddof=1) + 1e-4) for own in sums]
