"""The responses of one iteration of PPO, as arrays a token and as rows for the devices."""

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float32

from vigor_jax.data.batches.response_rows import join_responses, response_row, split_responses
from vigor_jax.data.batches.tree_batches import TreeRows, collate
from vigor_jax.data.batches.tree_sequences import Row
from vigor_jax.inference.policy import Policy
from vigor_jax.inference.sampler import IMAGE_READERS, Completion, Request
from vigor_jax.records import Rollout, ScoreItem, Span
from vigor_jax.rewards.stream import RewardStream, credit_of
from vigor_jax.rewards.token_rewards import RewardShares, batch_token_rewards, token_offsets
from vigor_jax.stages.ppo_config import PpoConfig
from vigor_jax.stages.ppo_questions import Question
from vigor_jax.stages.ppo_rewards import judge_responses
from vigor_jax.stages.ppo_update import Scores
from vigor_jax.training import ppo

logger = logging.getLogger(__name__)


class TokenArrays(NamedTuple):
    """One number for each token of each response; 0 behind them.

    Attributes:
      rewards: of the streams.
      mask: which places hold a token.
      old_logps: under the policy that drew the tokens, as training computes them.
      sampled_logps: the same as sampling computed them.
      ref_logps: under the policy that training began with.
      entropies: of the distributions that they were drawn from.
      values: of the value head; 0 without one.
      advantages: as they are weighted.
      returns: what the value head is to say.
    """

    rewards: Float32[np.ndarray, "N C R"]
    mask: Bool[np.ndarray, "N C R"]
    old_logps: Float32[np.ndarray, "N C R"]
    sampled_logps: Float32[np.ndarray, "N C R"]
    ref_logps: Float32[np.ndarray, "N C R"]
    entropies: Float32[np.ndarray, "N C R"]
    values: Float32[np.ndarray, "N C R"]
    advantages: Float32[np.ndarray, "N C R"]
    returns: Float32[np.ndarray, "N C R"]


class Rollouts:
    """Responses to questions, with the rewards of their tokens.

    With several processes, all hold the same, but each reads the images of its own rows only.

    Args:
      config: settings.
      policy: with the weights that are to draw.
      judges: reward streams by name.
      questions: of this iteration.
      iteration: from 1; responses to the same question differ from iteration to iteration.

    Attributes:
      questions: as given.
      completions: responses to each.
      lengths: tokens of each response.
      rewards: float32 [N, C, R], of the streams, 0 behind each response.
      shares: how many tokens are rewarded and punished.
      has_ended: bool [N, C].

    Raises:
      InputError: as sampling and the streams.
    """

    def __init__(
        self,
        config: PpoConfig,
        policy: Policy,
        judges: Mapping[str, RewardStream],
        questions: Sequence[Question],
        iteration: int,
    ) -> None:
        self.questions, self._policy, self._config = questions, policy, config
        self._requests = _requests(policy, questions)
        seed = hashlib.blake2b(f"{config.sampling.seed} {iteration}".encode(), digest_size=6).digest()
        sampling = config.sampling
        drawn = policy.sample(self._requests, sampling, seed=int.from_bytes(seed, "little"))
        self.completions: list[list[Completion]] = list(drawn)
        items = [
            ScoreItem(question.image, question.file, question.prompt, tuple(each.text for each in some))
            for question, some in zip(questions, self.completions, strict=True)
        ]
        self.verdicts = judge_responses(judges, items)
        self.lengths = [[len(each.token_ids) for each in some] for some in self.completions]
        # A multiple of it as all lengths, so that few shapes are ever compiled.
        self.width = -(-max(max(lengths) for lengths in self.lengths) // config.bucket) * config.bucket
        tokenizer = policy.checkpoint.tokenizer
        self.offsets = [
            [token_offsets(tokenizer, each.token_ids, each.text) for each in some] for some in self.completions
        ]
        found = batch_token_rewards(
            [verdicts for some in self.verdicts for verdicts in some],
            [offsets for some in self.offsets for offsets in some],
            config.token_rewards,
            credits={name: credit_of(judge) for name, judge in judges.items()},
        )
        self.shares = RewardShares()
        self.shares.add(found)
        shape = (len(questions), sampling.num_candidates, -1)
        padding = ((0, 0), (0, 0), (0, self.width - found.rewards.shape[1]))
        self.rewards = np.pad(found.rewards.reshape(shape), padding)
        self.has_ended = np.array([[each.finish_reason == "stop" for each in some] for some in self.completions])
        self._rows: list[Row] = [
            response_row(request.prompt_ids, [each.token_ids for each in some])
            for request, some in zip(self._requests, self.completions, strict=True)
        ]
        bucket = config.bucket
        self._length = -(-max(len(row.token_ids) for row in self._rows) // bucket) * bucket
        self._num_places = -(-max(len(row.places) for row in self._rows) // bucket) * bucket
        self._images: dict[int, np.ndarray] = {}

    @property
    def mask(self) -> Bool[np.ndarray, "N C R"]:
        """Which places hold a token."""
        return np.arange(self.width) < np.array(self.lengths)[..., None]

    def rows(self, indices: Sequence[int]) -> TreeRows:
        """Rows of some questions, on the host; all batches of an iteration have the same length.

        Raises:
          InputError: an image cannot be read.
        """
        missing = [index for index in indices if index not in self._images]
        with ThreadPoolExecutor(IMAGE_READERS, "read-image") as readers:
            files = [self.questions[index].file for index in missing]
            self._images |= zip(missing, readers.map(self._policy.pixels, files), strict=True)
        checkpoint = self._policy.checkpoint
        # Asked of all, so that processes agree on the length.
        asked = checkpoint.tokenizer.instruction_ids([question.prompt for question in self.questions])
        return collate(
            [self._rows[index] for index in indices],
            self._length,
            self._num_places,
            checkpoint.tokenizer.pad_id,
            np.stack([self._images[index] for index in indices])[:, None],
            None if asked is None else asked[list(indices), None],
        )

    def split(self, places: Float32[np.ndarray, "N P"]) -> Float32[np.ndarray, "N C R"]:
        """What was found at the places of all rows, response by response."""
        pairs = zip(places, self.lengths, strict=True)
        return np.stack([split_responses(row, lengths, self.width) for row, lengths in pairs])

    def join(self, split: Float32[np.ndarray, "N C R"], indices: Sequence[int]) -> Float32[np.ndarray, "B P"]:
        """The inverse, for some rows."""
        return np.stack([join_responses(split[i], self.lengths[i], self._num_places) for i in indices])

    def token_arrays(self, scores: Scores, ref_scores: Scores, kl_factor: float) -> TokenArrays:
        """All that an update needs to know, and the records keep.

        Args:
          scores: of the policy that drew them, at the places of all rows.
          ref_scores: the same of the reference.
          kl_factor: of the divergence, if it is in the reward.
        """
        config, mask = self._config, self.mask
        old_logps, ref_logps = self.split(scores.logps), self.split(ref_scores.logps)
        values = self.split(scores.values)
        sampled = np.zeros_like(values)
        for index, some in enumerate(self.completions):
            for candidate, each in enumerate(some):
                sampled[index, candidate, : len(each.logprobs)] = each.logprobs
        advantages, returns = jax.device_get(
            _advantages(
                config,
                *map(jnp.asarray, (self.rewards, mask, self.has_ended, old_logps, ref_logps, values)),
                kl_factor=kl_factor,
            )
        )
        return TokenArrays(
            rewards=self.rewards,
            mask=mask,
            old_logps=old_logps,
            sampled_logps=sampled,
            ref_logps=ref_logps,
            entropies=self.split(scores.entropies),
            values=values,
            advantages=np.asarray(advantages),
            returns=np.asarray(returns),
        )

    def records(self, arrays: TokenArrays) -> list[Rollout]:
        """What is kept of this iteration."""
        found = []
        for index, (question, some) in enumerate(zip(self.questions, self.completions, strict=True)):
            for candidate, each in enumerate(some):
                length = len(each.token_ids)

                def tokens(x: np.ndarray, at: tuple[int, int] = (index, candidate), n: int = length) -> tuple:
                    return tuple(x[at][:n].tolist())

                found.append(
                    Rollout(
                        image=question.image,
                        prompt=question.prompt,
                        candidate=candidate,
                        text=each.text,
                        token_ids=each.token_ids,
                        token_spans=tuple(Span(*span) for span in self.offsets[index][candidate].tolist()),
                        finish_reason=each.finish_reason,
                        logprobs=tokens(arrays.old_logps),
                        ref_logprobs=tokens(arrays.ref_logps),
                        values=tokens(arrays.values) if self._config.baseline == "value" else (),
                        rewards=tokens(arrays.rewards),
                        advantages=tokens(arrays.advantages),
                        verdicts=tuple(self.verdicts[index][candidate].values()),
                    )
                )
        return found


def _advantages(
    config: PpoConfig,
    rewards: jax.Array,
    mask: jax.Array,
    has_ended: jax.Array,
    old_logps: jax.Array,
    ref_logps: jax.Array,
    values: jax.Array,
    *,
    kl_factor: float,
) -> tuple[jax.Array, jax.Array]:
    """Advantages and returns of each token, over the whole iteration: no device has a part in it."""
    total = ppo.with_missing_eos(rewards, mask, has_ended, config.missing_eos)
    if config.kl_in == "reward":
        total = ppo.with_kl(total, ppo.kl(old_logps, ref_logps, config.kl), mask, kl_factor)
    if config.baseline == "value":
        advantages = ppo.gae(total, values, mask, config.gamma, config.lam)
        returns = ppo.returns(advantages, values, mask)
    else:
        whole = ppo.group_baseline(total.sum(-1), config.baseline)
        advantages = whole[..., None] * mask
        returns = jnp.zeros_like(advantages)
    return (ppo.whiten(advantages, mask) if config.whiten else advantages), returns


def _requests(policy: Policy, questions: Sequence[Question]) -> list[Request]:
    """What is sampled. A question that comes again in an iteration has another name, or its responses would be copies:
    a draw depends on the seed, the name and the prompt only."""
    requests, seen = [], Counter[tuple[str, str]]()
    for question in questions:
        again = seen[question.image, question.prompt]
        name = f"{question.image}#{again}" if again else question.image
        requests.append(policy.request(name, question.file, question.prompt))
        seen[question.image, question.prompt] += 1
    return requests
