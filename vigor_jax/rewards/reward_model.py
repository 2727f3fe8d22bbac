"""The reward model: a LLaVA that says of every sentence whether it is true of the image (ViGoR, section 3.2).

All sentences of all candidates of an image are judged in one pass over one row of tokens, see
`data.batches.tree_sequences`.
"""

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vigor_jax import fingerprint
from vigor_jax.data.batches.tree_batches import TreeRows, collate, padded_sizes
from vigor_jax.data.batches.tree_sequences import QUESTIONS, Description, Row, TreeEncoder, TreeSequence, asked
from vigor_jax.data.images.preprocessing import Preprocessing, load_image, preprocess
from vigor_jax.data.text.conversation import DEFAULT_TEMPLATE, find_template
from vigor_jax.data.text.tokenizer import Tokenizer
from vigor_jax.errors import InputError
from vigor_jax.inference.policy import Policy
from vigor_jax.inference.sampler import is_answer
from vigor_jax.inference.tree_attention import Answers, answer_places
from vigor_jax.models.vlm import Vlm
from vigor_jax.parallel.sharding import local_rows, round_up_batch, shard_rows
from vigor_jax.records import ScoreItem, Signal, Span, Verdict
from vigor_jax.rewards.reward_model_config import RewardModelConfig
from vigor_jax.rewards.sentences import split_sentences
from vigor_jax.rewards.stream import Credit

IMAGE_READERS = 4
BATCHES_AHEAD = 1


@dataclasses.dataclass
class _Task:
    """An item under way: its sequences, the signals found so far, and how many sequences are still to be read."""

    item: ScoreItem
    spans: list[list[Span]]
    sequences: list[TreeSequence]
    signals: list[list[Signal]]
    left: int


class RewardModel:
    """A `RewardStream` of the reward model's verdicts: one signal for every sentence, or one for the description.

    Args:
      model: its weights on `mesh`, its layers as `layers.stacks_inference` says.
      tokenizer: the model's own.
      preprocessing: its vision tower's settings.
      config: how to judge.
      mesh: the batch is split over `data` x `fsdp`, and made larger where it does not divide.
      weights_digest: names the weights, for `digest`.

    Attributes:
      compilations: how often the pass was compiled so far; a long run should stand still here.

    Raises:
      InputError: the template asks no questions.
    """

    name = "reward_model"
    uses_devices = True
    credit: Credit = "sentence"

    def __init__(
        self,
        model: Vlm,
        tokenizer: Tokenizer,
        preprocessing: Preprocessing,
        config: RewardModelConfig,
        mesh: Mesh,
        *,
        weights_digest: str,
    ) -> None:
        config = dataclasses.replace(config, batch_size=round_up_batch(config.batch_size, mesh))
        self._config, self._mesh, self._tokenizer, self._preprocessing = config, mesh, tokenizer, preprocessing
        self.credit = "sentence" if config.per == "sentence" else "response"
        self._template = find_template(config.template)
        question = config.question or QUESTIONS[config.per]
        self._encoder = TreeEncoder(
            tokenizer,
            self._template,
            question,
            image_token_id=model.config.image_token_id,
            num_image_tokens=model.config.num_image_tokens,
            max_length=config.max_length,
            max_position=model.config.text.max_position_embeddings - config.answer_tokens,
        )
        asked = {"question": question, "template": config.template or DEFAULT_TEMPLATE}
        self.digest = fingerprint.digest([weights_digest, fingerprint.of(config) | asked])

        self.compilations = 0
        self._graphdef, self._weights = nnx.split(model)
        self._scored = jnp.array([self._encoder.good_id, self._encoder.bad_id], jnp.int32)
        self._is_answer = jnp.asarray(is_answer(model.config, tokenizer))
        self._own_rows = frozenset(local_rows(config.batch_size, mesh))
        self._answer = jax.jit(self._answer_rows, out_shardings=NamedSharding(mesh, P()))

    @classmethod
    def of(cls, policy: Policy, config: RewardModelConfig) -> Self:
        """With the weights of an opened checkpoint, which are loaded now; the template is that of `config`."""
        checkpoint = policy.checkpoint
        return cls(
            policy.model,
            checkpoint.tokenizer,
            checkpoint.preprocessing,
            config,
            policy.mesh,
            weights_digest=checkpoint.digest(),
        )

    def judge(self, items: Iterable[ScoreItem]) -> Iterator[list[Verdict]]:
        """Verdicts on the texts of each item, in their order; a text without sentences has no signals.

        With several processes, each gives the same items and gets all the verdicts, but reads only the images of
        its own rows.

        Raises:
          InputError: an image cannot be read, or a text is too long; names them.
          FloatingPointError: the model's scores are not finite.
        """
        tasks: collections.deque[_Task] = collections.deque()
        waiting: collections.deque[tuple[list[tuple[_Task, TreeSequence]], dict[int, Future]]] = collections.deque()
        sequences = self._sequences(items, tasks)
        readers = ThreadPoolExecutor(IMAGE_READERS, "read-image")
        try:
            while batch := list(itertools.islice(sequences, self._config.batch_size)):
                images = {
                    row: readers.submit(self._read, sequence)
                    for row, (_, sequence) in enumerate(batch)
                    if row in self._own_rows
                }
                waiting.append((batch, images))
                if len(waiting) > BATCHES_AHEAD:
                    self._complete(*waiting.popleft())
                    yield from self._done(tasks)
            while waiting:
                self._complete(*waiting.popleft())
                yield from self._done(tasks)
            yield from self._done(tasks)  # items without any sentences
        finally:
            readers.shutdown(cancel_futures=True)

    def _sequences(
        self, items: Iterable[ScoreItem], tasks: collections.deque[_Task]
    ) -> Iterator[tuple[_Task, TreeSequence]]:
        """The rows to come; notes each item among `tasks` before the first of its rows."""
        for item in items:
            spans = [split_sentences(text) for text in item.texts]
            descriptions = [
                Description(index, text, tuple(found), asked(len(found), self._config.per))
                for index, (text, found) in enumerate(zip(item.texts, spans, strict=True))
                if found
            ]
            sequences = self._encoder.sequences(item.image, item.path, descriptions)
            task = _Task(item, spans, sequences, [[] for _ in item.texts], len(sequences))
            tasks.append(task)
            for sequence in sequences:
                yield task, sequence

    def _read(self, sequence: TreeSequence) -> np.ndarray:
        try:
            return preprocess(load_image(sequence.path), self._preprocessing)
        except InputError as error:
            raise InputError(f"{sequence.image}: {error}") from error

    def _complete(self, batch: list[tuple[_Task, TreeSequence]], images: dict[int, Future]) -> None:
        """Runs a batch and hands its signals to the tasks."""
        rows = [self._encoder.row(sequence) for _, sequence in batch]
        with jax.set_mesh(self._mesh):
            answers = self._answer(self._weights, self._to_device(rows, images))
        scores, token_ids = (np.asarray(x) for x in jax.device_get(answers))
        for row, (task, sequence) in enumerate(batch):
            place = 0
            for description in sequence.descriptions:
                for sentence in description.asked:
                    task.signals[description.candidate].append(
                        self._signal(task, description.candidate, sentence, scores[row, place], token_ids[row, place])
                    )
                    place += 1
            task.left -= 1

    def _to_device(self, rows: list[Row], images: dict[int, Future]) -> TreeRows:
        """Rows of padding fill the batch up."""
        size, edge = self._config.batch_size, self._preprocessing.size
        pixels = np.zeros((size, 1, edge, edge, 3), np.uint8)
        for row, future in images.items():
            pixels[row, 0] = future.result()
        padded = [*rows, *[None] * (size - len(rows))]
        instructions, sizes = self._encoder.instructions(size), padded_sizes(rows, self._config.bucket)
        batch = collate(padded, *sizes, self._tokenizer.pad_id, pixels, instructions)
        placed: TreeRows = shard_rows(batch, self._mesh)
        return placed

    def _answer_rows(self, weights: nnx.State, rows: TreeRows) -> Answers:
        self.compilations += 1
        return answer_places(
            nnx.merge(self._graphdef, weights),
            rows,
            self._scored,
            self._is_answer,
            num_tokens=self._config.answer_tokens,
            eos_id=self._tokenizer.eos_id,
        )

    def _signal(self, task: _Task, candidate: int, sentence: int, scores: np.ndarray, token_ids: np.ndarray) -> Signal:
        if not np.isfinite(scores).all():
            raise FloatingPointError(f"{task.item.image}: the model's scores are not finite; are its weights sound?")
        good, bad = scores
        p_good = float(np.exp(-np.logaddexp(0, bad - good)))  # the softmax over the two
        label = self._text(token_ids)
        is_good = token_ids[0] == self._encoder.good_id
        positive = p_good if self._config.badness == "probability" else float(is_good)
        spans = task.spans[candidate]
        span = spans[sentence] if self._config.per == "sentence" else Span(spans[0].start, spans[-1].end)
        return Signal(label, (span,), negative=1 - positive, positive=positive, score=p_good)

    def _text(self, token_ids: np.ndarray) -> str:
        ends = np.flatnonzero(token_ids == self._tokenizer.eos_id)
        text = self._tokenizer.decode([*self._encoder.shared, *token_ids[: ends[0] if ends.size else None].tolist()])
        return (text if self._template.stop is None else text.split(self._template.stop)[0]).strip()

    def _done(self, tasks: collections.deque[_Task]) -> Iterator[list[Verdict]]:
        while tasks and not tasks[0].left:
            task = tasks.popleft()
            yield [
                Verdict(task.item.image, candidate, self.name, tuple(signals))
                for candidate, signals in enumerate(task.signals)
            ]
