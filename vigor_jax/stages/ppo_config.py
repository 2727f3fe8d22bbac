"""Settings of the PPO stage."""

import dataclasses
from pathlib import Path
from typing import Literal, TypeAlias

from vigor_jax import fingerprint
from vigor_jax.errors import InputError
from vigor_jax.inference.sampling_config import SamplingConfig
from vigor_jax.rewards.token_rewards import TokenRewardConfig
from vigor_jax.training.config import MOST_KL_ERROR, Kl, TrainingConfig

Baseline: TypeAlias = Literal["value", "rloo", "grpo"]


@dataclasses.dataclass(frozen=True)
class PpoConfig(TrainingConfig):
    """PPO with a reward for each token: what `TrainingConfig` says, and the following.

    Where the FiSAO paper names no value, the defaults are those of TRL's PPOTrainer.

    Attributes:
      images: where the images are: a folder, tar shards or Parquet (docs/images.md).
      data: conversations in LLaVA's format, of which each first question is asked; by default all the images are asked
        `prompts`.
      prompts: without `data`, each image is asked one of them, drawn by its name and the seed.
      limit: only this many images or conversations, the first ones; 0 takes all.
      epochs: passes over the images.
      batch_size: images an iteration: responses to them are drawn by one policy.
      minibatch: images an update, over all devices; divides `batch_size`.
      accumulate: parts that a minibatch is computed in.
      ppo_epochs: passes over the responses of an iteration.
      learning_rate: of all that is trained, the value head included.
      sampling: how responses are drawn; at temperature 1 and with nothing left out, or the ratios would be of another
        distribution.
      clip_range: the surrogate's clip; the paper's 0.2.
      baseline: "value" is a value head with generalized advantage estimation; "rloo" and "grpo" compare the responses
        to an image with each other, and train no value head.
      gamma: discount; the paper's 1.
      lam: of generalized advantage estimation.
      value_clip: how far a value may move from the old one before the clip decides its loss; 0 does not clip.
      value_factor: of the value head's loss.
      whiten: advantages get mean 0 and variance 1 over all tokens of an iteration.
      kl: estimate of the divergence from the policy that training began with.
      kl_in: whether it is taken off the reward of each token, or added to the loss.
      kl_factor: of the divergence; where it adapts, the first one. The paper's 0.2.
      kl_target: sum over a response that the factor is adapted to; 0 leaves the factor as it is.
      kl_horizon: responses over which it is adapted; more than a fifth of those of an iteration.
      missing_eos: taken off the reward of the last token of a response that did not end by itself.
      token_rewards: how the streams' signals become rewards of tokens.
      save_every: iterations between checkpoints.
      log_every: iterations between TensorBoard points; `metrics/ppo.jsonl` has every iteration.
    """

    data: Path | None = fingerprint.place(None)
    prompts: tuple[str, ...] = ("Describe this image in detail.",)
    limit: int = 0
    minibatch: int = 4
    ppo_epochs: int = 4
    batch_size: int = 64
    learning_rate: float = 5e-7
    sampling: SamplingConfig = dataclasses.field(
        default_factory=lambda: SamplingConfig(temperature=1.0, num_candidates=4, max_new_tokens=256)
    )
    clip_range: float = 0.2
    baseline: Baseline = "value"
    gamma: float = 1.0
    lam: float = 0.95
    value_clip: float = 0.2
    value_factor: float = 0.1
    whiten: bool = True
    kl: Kl = "k1"
    kl_in: Literal["reward", "loss"] = "reward"
    kl_factor: float = 0.2
    kl_target: float = 6.0
    kl_horizon: int = 10_000
    missing_eos: float = 1.0
    token_rewards: TokenRewardConfig = dataclasses.field(default_factory=TokenRewardConfig)
    save_every: int = fingerprint.neutral(1)
    log_every: int = fingerprint.neutral(1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.minibatch < 1 or self.batch_size % self.minibatch:
            raise InputError(f"ppo.minibatch: expected a divisor of batch_size {self.batch_size}, got {self.minibatch}")
        if self.minibatch % self.accumulate:
            raise InputError(
                f"ppo.minibatch {self.minibatch} does not divide into accumulate {self.accumulate} equal parts; change "
                "either"
            )
        for names, holds, expected in (
            (("ppo_epochs", "kl_horizon"), lambda value: value >= 1, "at least 1"),
            (
                ("limit", "kl_factor", "kl_target", "missing_eos", "value_clip", "value_factor"),
                lambda value: value >= 0,
                "0 or more",
            ),
            (("gamma", "lam"), lambda value: 0 <= value <= 1, "0 to 1"),
            (("clip_range",), lambda value: 0 < value < 1, "more than 0 and less than 1"),
        ):
            for name in names:
                if not holds(getattr(self, name)):
                    raise InputError(f"ppo.{name}: expected {expected}, got {getattr(self, name)!r}")
        drawn = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
        for name, only in drawn.items():
            if (value := getattr(self.sampling, name)) != only:
                raise InputError(
                    f"ppo.sampling.{name}: expected {only}, got {value}: ratios and divergence are of the model's own "
                    "distribution, so responses must be drawn from it"
                )
        if self.baseline != "value" and self.sampling.num_candidates < 2:
            raise InputError(
                f"ppo.baseline {self.baseline} compares responses to an image with each other; expected "
                f"ppo.sampling.num_candidates of 2 or more, got {self.sampling.num_candidates}"
            )
        if self.baseline != "value" and self.gamma != 1:
            raise InputError(f"ppo.baseline {self.baseline} has no discount; expected gamma 1, got {self.gamma}")
        if self.kl_in == "loss" and self.kl == "k1":
            raise InputError(
                "ppo.kl_in loss: expected ppo.kl k3, got k1, whose gradient is 0 on the average and so holds nothing"
            )
        responses = self.batch_size * self.sampling.num_candidates
        if self.kl_target and self.kl_horizon <= (least := MOST_KL_ERROR * responses):
            raise InputError(
                f"ppo.kl_horizon: expected more than {least:g}, {MOST_KL_ERROR:g} of the {responses} responses of an "
                f"iteration, got {self.kl_horizon}: one step could make the factor 0 or negative, which pays for "
                "leaving the reference; a ppo.kl_target of 0 leaves the factor as it is"
            )
        if not self.prompts:
            raise InputError("ppo.prompts: expected at least one, got none")
