"""The reward model of preferences: one number for each response as a whole (LLaVA-RLHF, section 2).

With the reward r of a response, p = sigmoid(r) is the chance that it is preferred to one of reward 0. Its signal is
positive by -log(1 - p) and negative by -log(p). The difference of the two is r itself: PPO with equal weights of both
is paid r at the end of the response.

All candidates of an image are judged in one pass over one row of tokens, see `data.batches.judged_rows`.
"""

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from vigor_jax import fingerprint
from vigor_jax.data.batches.judged_rows import JudgedEncoder
from vigor_jax.data.batches.preference_rows import EncodedPreference
from vigor_jax.data.batches.tree_batches import TreeRows, collate, padded_sizes
from vigor_jax.data.images.preprocessing import Preprocessing, load_image, preprocess
from vigor_jax.data.text.box_text import without_boxes
from vigor_jax.data.text.conversation import DEFAULT_TEMPLATE, find_template
from vigor_jax.data.text.image_captions import Captions
from vigor_jax.data.text.quality_question import find_question
from vigor_jax.errors import InputError
from vigor_jax.hf.load import Checkpoint
from vigor_jax.hf.reward_head import RewardHead
from vigor_jax.hf.reward_head import digest as head_digest
from vigor_jax.inference.policy import Policy
from vigor_jax.inference.response_rewards import HEAD, rewards_at
from vigor_jax.models.value_head import ValueHead
from vigor_jax.models.vlm import Vlm
from vigor_jax.parallel.sharding import local_rows, round_up_batch, shard_rows
from vigor_jax.records import ScoreItem, Signal, Span, Verdict
from vigor_jax.rewards.preference_reward_config import NAME, PreferenceRewardStreamConfig
from vigor_jax.rewards.stream import Credit

IMAGE_READERS = 4
BATCHES_AHEAD = 1


@dataclasses.dataclass
class _Task:
    """An item under way: the rewards found so far, and how many are missing."""

    item: ScoreItem
    rewards: list[float]
    left: int


class _Row(NamedTuple):
    """A row to be judged, and which of its item's texts are in it."""

    task: _Task
    indices: list[int]
    encoded: EncodedPreference


class PreferenceReward:
    """A `RewardStream`: one signal for each response, about all of it.

    Args:
      model: its weights on `mesh`, its layers as `layers.stacks_inference` says; it gets the head.
      head: of the rewards.
      encoder: writes rows.
      preprocessing: the vision tower's settings.
      config: how to judge.
      mesh: the batch is split over `data` x `fsdp`, and made larger where it does not divide.
      weights_digest: names the weights, for `digest`.

    Attributes:
      compilations: how often the pass was compiled so far; a long run should stand still here.
    """

    name = NAME
    uses_devices = True
    credit: Credit = "response"

    def __init__(
        self,
        model: Vlm,
        head: RewardHead,
        encoder: JudgedEncoder,
        preprocessing: Preprocessing,
        config: PreferenceRewardStreamConfig,
        mesh: Mesh,
        *,
        weights_digest: str,
    ) -> None:
        self._size = round_up_batch(config.batch_size, mesh)
        self._config, self._mesh, self._encoder, self._preprocessing = config, mesh, encoder, preprocessing
        self.digest = digest_of(config, encoder.captions, weights_digest, head)
        self.compilations = 0
        setattr(model, HEAD, _on_mesh(head, mesh))
        self._graphdef, self._weights = nnx.split(model)
        self._own_rows = frozenset(local_rows(self._size, mesh))
        self._rewards = jax.jit(self._rewards_of_rows, out_shardings=NamedSharding(mesh, P()))

    @classmethod
    def of(
        cls, policy: Policy, head: RewardHead, config: PreferenceRewardStreamConfig, captions: Captions | None
    ) -> "PreferenceReward":
        """With the weights of an opened checkpoint, which are loaded now; the template is that of `config`."""
        checkpoint = policy.checkpoint
        encoder = make_encoder(config, checkpoint, captions)
        told = {"weights_digest": checkpoint.digest()}
        return cls(policy.model, head, encoder, checkpoint.preprocessing, config, policy.mesh, **told)

    def judge(self, items: Iterable[ScoreItem]) -> Iterator[list[Verdict]]:
        """Verdicts on the texts of each item, in their order.

        With several processes, each gives the same items and gets all the verdicts, but reads only the images of
        its own rows.

        Raises:
          InputError: an image cannot be read or has no captions, or a text is too long; names the image.
          FloatingPointError: a reward is not finite.
        """
        tasks: collections.deque[_Task] = collections.deque()
        waiting: collections.deque[tuple[list[_Row], dict[int, Future[np.ndarray]]]] = collections.deque()
        rows = self._rows(items, tasks)
        readers = ThreadPoolExecutor(IMAGE_READERS, "read-image")
        try:
            while batch := list(itertools.islice(rows, self._size)):
                own = ((index, row) for index, row in enumerate(batch) if index in self._own_rows)
                waiting.append((batch, {index: readers.submit(self._read, row.task.item) for index, row in own}))
                if len(waiting) > BATCHES_AHEAD:
                    self._complete(*waiting.popleft())
                    yield from _done(tasks)
            while waiting:
                self._complete(*waiting.popleft())
                yield from _done(tasks)
            yield from _done(tasks)  # items without texts
        finally:
            readers.shutdown(cancel_futures=True)

    def _rows(self, items: Iterable[ScoreItem], tasks: collections.deque[_Task]) -> Iterator[_Row]:
        """The rows to come; notes each item among `tasks` before the first of its rows."""
        for item in items:
            task = _Task(item, [0.0] * len(item.texts), len(item.texts))
            tasks.append(task)
            if not item.texts:
                continue
            try:
                found = list(self._encoder.rows(item.image, item.prompt, list(map(without_boxes, item.texts))))
            except InputError as error:
                raise InputError(f"{NAME}: {item.image}: {error}") from error
            yield from (_Row(task, indices, encoded) for indices, encoded in found)

    def _read(self, item: ScoreItem) -> np.ndarray:
        try:
            return preprocess(load_image(item.path), self._preprocessing)
        except InputError as error:
            raise InputError(f"{item.image}: {error}") from error

    def _complete(self, batch: list[_Row], images: dict[int, "Future[np.ndarray]"]) -> None:
        """Runs a batch and hands its rewards to the tasks."""
        with jax.set_mesh(self._mesh):
            found = np.asarray(jax.device_get(self._rewards(self._weights, self._to_device(batch, images))))
        for row, own in zip(batch, found, strict=False):
            for index, reward in zip(row.indices, own.tolist(), strict=False):
                if not np.isfinite(reward):
                    raise FloatingPointError(f"{row.task.item.image}: a reward is not finite; are the weights sound?")
                row.task.rewards[index] = reward
                row.task.left -= 1

    def _to_device(self, batch: list[_Row], images: dict[int, "Future[np.ndarray]"]) -> TreeRows:
        """Rows of padding fill the batch up."""
        edge, tokenizer = self._preprocessing.size, self._encoder.tokenizer
        pixels = np.zeros((self._size, 1, edge, edge, 3), np.uint8)
        for index, future in images.items():
            pixels[index, 0] = future.result()
        spare = self._size - len(batch)
        ids = tokenizer.instruction_ids([*(row.task.item.prompt for row in batch), *[""] * spare])
        rows = [row.encoded.row for row in batch]
        sizes = padded_sizes(rows, self._config.bucket)
        instructions = None if ids is None else ids[:, None]
        placed: TreeRows = shard_rows(
            collate([*rows, *[None] * spare], *sizes, tokenizer.pad_id, pixels, instructions), self._mesh
        )
        return placed

    def _rewards_of_rows(self, weights: nnx.State, rows: TreeRows) -> Float[Array, "B P"]:
        self.compilations += 1
        return rewards_at(nnx.merge(self._graphdef, weights), rows)


class Asks(Protocol):
    """What is read of a config, of training or of judging."""

    @property
    def template(self) -> str | None: ...

    @property
    def max_length(self) -> int: ...

    @property
    def question(self) -> str: ...


def make_encoder(config: Asks, checkpoint: Checkpoint, captions: Captions | None, section: str = NAME) -> JudgedEncoder:
    """What writes rows in the words of a checkpoint; `section` is that of the config, for messages."""
    return JudgedEncoder(
        checkpoint.tokenizer,
        find_template(config.template),
        image_token_id=checkpoint.config.image_token_id,
        num_image_tokens=checkpoint.config.num_image_tokens,
        max_length=config.max_length,
        max_positions=checkpoint.config.text.max_position_embeddings,
        question=find_question(config.question, with_captions=captions is not None, section=section),
        captions=captions,
    )


def digest_of(
    config: PreferenceRewardStreamConfig, captions: Captions | None, weights_digest: str, head: RewardHead
) -> str:
    """Names all that verdicts depend on."""
    asked = {"question": config.question, "template": config.template or DEFAULT_TEMPLATE}
    told = None if captions is None else sorted((image, list(own)) for image, own in captions.items())
    return fingerprint.digest([weights_digest, head_digest(head), asked, told])


def signal(reward: float, text: str) -> Signal:
    """What a reward says of a text."""
    good, bad = (float(np.logaddexp(0, each)) for each in (reward, -reward))
    spans = (Span(0, len(text)),) if text else ()
    return Signal(f"reward {reward:.3f}", spans, negative=bad, positive=good, score=float(np.exp(-bad)))


def _done(tasks: collections.deque[_Task]) -> Iterator[list[Verdict]]:
    while tasks and not tasks[0].left:
        task = tasks.popleft()
        found = zip(task.rewards, task.item.texts, strict=True)
        yield [
            Verdict(task.item.image, candidate, NAME, (signal(reward, text),))
            for candidate, (reward, text) in enumerate(found)
        ]


def _on_mesh(head: RewardHead, mesh: Mesh) -> ValueHead:
    placed = ValueHead(len(head.kernel), dtype=jnp.float32)
    whole = NamedSharding(mesh, P())
    for variable, value in ((placed.kernel, head.kernel), (placed.bias, np.float32(head.bias))):
        variable.set_value(jax.make_array_from_callback(np.shape(value), whole, np.asarray(value).__getitem__))
    return placed
