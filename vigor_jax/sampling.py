"""Sampling of responses: requests in, completed candidates out, in order, while the next images are being read."""

import bisect
import collections
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vigor_jax.data.tokenizer import Tokenizer
from vigor_jax.decoding import Batch, Decoder, SamplingConfig, stages
from vigor_jax.errors import InputError
from vigor_jax.models.llava import Llava, LlavaConfig
from vigor_jax.sharding import own_rows, split_rows, whole_batch

FinishReason = Literal["stop", "length", "repetition"]

IMAGE_READERS = 4
BATCHES_AHEAD = 1
# Stop strings and repetitions are looked for on the host, between runs of the device of so many steps.
STEPS_BETWEEN_LOOKS = 16


@dataclasses.dataclass(frozen=True)
class Request:
    """One image (or none) and what is asked about it.

    Attributes:
      image_id: names the image in every run; random choices depend on it.
      prompt_ids: token ids of the whole prompt, see `data.conversation.encode_prompt`.
      pixels: uint8 [S, S, 3], or a function that reads them (called on another thread, and only where they are
        needed); None for a prompt of text alone.
      prompt: the prompt's words; random choices depend on them.
    """

    image_id: str
    prompt_ids: Sequence[int]
    pixels: Callable[[], np.ndarray] | np.ndarray | None
    prompt: str


@dataclasses.dataclass(frozen=True)
class Completion:
    """One candidate.

    Attributes:
      image_id: as in the request.
      candidate: its index among those of its request.
      text: decoded, without what ended it, stripped.
      token_ids: with the EOS token, or the tokens of the stop string, where one ended it.
      logprobs: float32 [len(token_ids)], each token's log-probability under the model as it is: neither tempered nor
        truncated.
      finish_reason: "stop" at EOS or the stop string, "repetition", or "length" when `max_new_tokens` or the model's
        positions ran out.
    """

    image_id: str
    candidate: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: np.ndarray
    finish_reason: FinishReason

    @property
    def mean_logprob(self) -> float:
        return float(self.logprobs.mean(dtype=np.float64))


class Ending(NamedTuple):
    """Where a candidate ends: tokens it has by then, and why."""

    num_tokens: int
    reason: FinishReason


class Sampler:
    """Draws `num_candidates` responses to each request.

    Args:
      model: its weights on `mesh`, its layers as `layers.stacks_inference` says. Every weight is read for every token,
        so split them over `tensor` rather than `fsdp` if they do not fit on a device.
      tokenizer: decodes, and says which ids are tokens and which one ends an answer.
      config: how to sample.
      mesh: the batch is split over `data` x `fsdp`, and made larger where it does not divide.
      stop: text that ends an answer besides EOS (`Template.stop`).
    """

    def __init__(
        self, model: Llava, tokenizer: Tokenizer, config: SamplingConfig, mesh: Mesh, stop: str | None = None
    ) -> None:
        config = dataclasses.replace(config, batch_size=whole_batch(config.batch_size, mesh))
        self._model, self._tokenizer, self._config, self._mesh, self._stop = model.config, tokenizer, config, mesh, stop
        self._decoder = Decoder(model, config, is_answer(model.config, tokenizer), tokenizer.eos_id)
        self._own_rows = frozenset(own_rows(config.batch_size, mesh))
        self._rooms = self._steps = stages(min(config.max_new_tokens, model.config.text.max_position_embeddings - 1))
        if stop is not None or config.repetition_stop:
            self._steps = sorted({*self._rooms, *range(STEPS_BETWEEN_LOOKS, self._rooms[-1], STEPS_BETWEEN_LOOKS)})
        self._gather = jax.jit(lambda *arrays: arrays, out_shardings=NamedSharding(mesh, P()))

    @property
    def compilations(self) -> collections.Counter[str]:
        """How often each part was compiled so far; a long run should stand still here."""
        return self._decoder.compilations

    def generate(self, requests: Iterable[Request]) -> Iterator[list[Completion]]:
        """Completions of each request, in the order of the requests, which are read as they are needed.

        With several processes, each gives the same requests and gets all the results, but reads the pixels of its own
        rows only.

        Raises:
          InputError: a prompt is empty, too long, or has not as many image tokens as its image has features.
          FloatingPointError: the model's scores are not finite.
        """
        requests = iter(requests)
        waiting: collections.deque[tuple[list[Request], dict[int, Future]]] = collections.deque()
        readers = ThreadPoolExecutor(IMAGE_READERS, "read-image")
        try:
            while batch := list(itertools.islice(requests, self._config.batch_size)):
                waiting.append((batch, self._start_reading(batch, readers)))
                if len(waiting) > BATCHES_AHEAD:
                    yield from self._complete(*waiting.popleft())
            while waiting:
                yield from self._complete(*waiting.popleft())
        finally:
            readers.shutdown(cancel_futures=True)

    def _start_reading(self, batch: list[Request], readers: ThreadPoolExecutor) -> dict[int, Future]:
        for request in batch:
            self._check(request)
        return {
            row: readers.submit(_read, request)
            for row, request in enumerate(batch)
            if row in self._own_rows and request.pixels is not None
        }

    def _check(self, request: Request) -> None:
        length, positions = len(request.prompt_ids), self._model.text.max_position_embeddings
        if not 0 < length < positions:
            raise InputError(
                f"{request.image_id}: a prompt of {length} tokens, expected at least 1 and fewer than the model's "
                f"{positions} positions; shorten it"
            )
        expected = 0 if request.pixels is None else self._model.num_image_tokens
        found = sum(token_id == self._model.image_token_id for token_id in request.prompt_ids)
        if found != expected:
            raise InputError(
                f"{request.image_id}: the prompt has {found} image tokens, expected {expected}; "
                "a prompt names its image once, and a prompt without image not at all"
            )

    def _complete(self, requests: list[Request], images: dict[int, Future]) -> list[list[Completion]]:
        config, positions = self._config, self._model.text.max_position_embeddings
        limits = [min(config.max_new_tokens, positions - len(request.prompt_ids)) for request in requests]
        endings: list[list[Ending | None]] = [[None] * config.num_candidates for _ in requests]
        with jax.set_mesh(self._mesh):
            prefix, candidates = self._decoder.prefill(self._to_device(requests, images))
            for step in self._steps:
                candidates = self._decoder.grow(candidates, next(room for room in self._rooms if step <= room))
                candidates = self._decoder.extend(prefix, candidates, step)
                token_ids, logprobs = jax.device_get(self._gather(candidates.token_ids, candidates.logprobs))
                for row, candidate in np.ndindex(len(requests), config.num_candidates):
                    if endings[row][candidate] is None:
                        endings[row][candidate] = self._ending(token_ids[row, candidate, :step], limits[row])
                done = np.ones((config.batch_size, config.num_candidates), bool)
                done[: len(requests)] = [[ending is not None for ending in row] for row in endings]
                if done.all():
                    break
                candidates = dataclasses.replace(candidates, done=split_rows(done, self._mesh))
        return [
            [
                self._completion(request, candidate, ending, token_ids[row, candidate], logprobs[row, candidate])
                for candidate, ending in enumerate(endings[row])
                if ending is not None  # each has ended: the last step is no less than any limit
            ]
            for row, request in enumerate(requests)
        ]

    def _to_device(self, requests: list[Request], images: dict[int, Future]) -> Batch:
        """Rows past the requests fill the batch up."""
        size, bucket, edge = self._config.batch_size, self._config.prompt_bucket, self._model.vision.image_size
        longest = max(len(request.prompt_ids) for request in requests)
        token_ids = np.zeros((size, -(-longest // bucket) * bucket), np.int32)
        lengths, seeds = np.ones(size, np.int32), np.zeros((size, 2), np.uint32)
        for row, request in enumerate(requests):
            lengths[row] = len(request.prompt_ids)
            token_ids[row, : lengths[row]] = request.prompt_ids
            seeds[row] = stream_seed(self._config.seed, request)
        pixels = None
        if any(request.pixels is not None for request in requests):
            pixels = np.zeros((size, edge, edge, 3), np.uint8)
            for row, future in images.items():
                image = future.result()
                assert image.shape == pixels.shape[1:], (
                    f"{requests[row].image_id}: {image.shape}, not {edge} pixels wide"
                )
                pixels[row] = image
        is_real = np.arange(size) < len(requests)
        return Batch(*split_rows((token_ids, lengths, seeds, is_real, pixels), self._mesh))

    def _ending(self, token_ids: np.ndarray, limit: int) -> Ending | None:
        """The earliest end among the tokens so far."""
        ends: list[Ending] = []
        is_full, token_ids = len(token_ids) >= limit, token_ids[:limit]
        eos = np.flatnonzero(token_ids == self._tokenizer.eos_id)
        if eos.size:
            ends.append(Ending(int(eos[0]) + 1, "stop"))
            token_ids = token_ids[: eos[0] + 1]
        if self._has_stop(token_ids):
            lengths = range(len(token_ids))
            ends.append(Ending(bisect.bisect_left(lengths, True, key=lambda n: self._has_stop(token_ids[:n])), "stop"))
        if self._config.repetition_stop:
            end = repetition_end(token_ids, self._config.repetition_stop)
            ends += [] if end is None else [Ending(end, "repetition")]
        ends += [Ending(limit, "length")] if is_full else []
        return min(ends, key=lambda ending: ending.num_tokens, default=None)

    def _has_stop(self, token_ids: np.ndarray) -> bool:
        return self._stop is not None and self._stop in self._tokenizer.decode(token_ids)

    def _completion(
        self, request: Request, candidate: int, ending: Ending, token_ids: np.ndarray, logprobs: np.ndarray
    ) -> Completion:
        token_ids, logprobs = token_ids[: ending.num_tokens], logprobs[: ending.num_tokens]
        if not np.isfinite(logprobs).all():
            raise FloatingPointError(f"{request.image_id}: the model's scores are not finite; are its weights sound?")
        text = self._tokenizer.decode(token_ids)
        text = text if self._stop is None else text.split(self._stop)[0]
        ids = tuple(token_ids.tolist())
        return Completion(request.image_id, candidate, text.strip(), ids, logprobs, ending.reason)


def is_answer(config: LlavaConfig, tokenizer: Tokenizer) -> np.ndarray:
    """Which rows of the vocabulary may stand in an answer: bool [V].

    An image's place, padding, and the rows that fill an embedding matrix up are no words, whatever their scores.
    """
    ids = np.arange(config.text.vocab_size)
    return (
        (ids < tokenizer.vocab_size)
        & (ids != config.image_token_id)
        & ((ids != tokenizer.pad_id) | (ids == tokenizer.eos_id))
    )


def stream_seed(seed: int, request: Request) -> np.ndarray:
    """Where the random numbers of a request start: uint32 [2], the same in every run, process and batch."""
    name = json.dumps([seed, request.image_id, request.prompt])
    return np.frombuffer(hashlib.blake2b(name.encode(), digest_size=8).digest(), "<u4")


def repetition_end(token_ids: np.ndarray, n: int) -> int | None:
    """The least length at which the last 2·n tokens repeat with a period of at most n; None if they never do."""
    count = len(token_ids) - 2 * n + 1  # places where 2·n tokens end
    if count <= 0:
        return None
    repeats = np.zeros(count, bool)
    for period in range(1, n + 1):
        width = 2 * n - period
        same = np.cumsum(np.r_[0, token_ids[period:] == token_ids[:-period]])
        repeats |= same[width:] - same[:-width] == width
    return 2 * n + int(repeats.argmax()) if repeats.any() else None


def _read(request: Request) -> np.ndarray:
    return request.pixels() if callable(request.pixels) else np.asarray(request.pixels)
