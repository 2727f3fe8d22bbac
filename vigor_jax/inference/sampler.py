"""Sampling of responses: requests in, completed candidates out, in order; a free slot takes the next candidate."""

import bisect
import collections
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vigor_jax.data.text.tokenizer import Tokenizer
from vigor_jax.errors import InputError
from vigor_jax.inference.decoder import Batch, Decoder
from vigor_jax.inference.kv_cache import BLOCK, Latest, Pages, Prefix, Slots
from vigor_jax.inference.sampling_config import SamplingConfig
from vigor_jax.inference.schedule import Candidate, Part, Usage
from vigor_jax.models.vlm import Vlm, VlmConfig
from vigor_jax.parallel.sharding import local_rows, round_up_batch, shard_rows

FinishReason = Literal["stop", "length", "repetition"]

IMAGE_READERS = 4
# A prefill is for this share of a batch: the fewer prompts at a time, the more seldom one of them only fills it up.
PREFILL = 1 / 8
# Batches of requests that may wait where some part of the mesh is slower than the others.
MOST_AHEAD = 4


@dataclasses.dataclass(frozen=True)
class Request:
    """One image (or none) and what is asked about it.

    Attributes:
      image_id: names the image in every run; random choices depend on it.
      prompt_ids: token ids of the whole prompt, see `data.text.conversation.encode_prompt`.
      pixels: uint8 [S, S, 3], or a function that reads them (called on another thread, and only where they are
        needed); None for a prompt of text alone.
      prompt: the prompt's words; random choices depend on them, and the image's features where the model's family
        reads them.
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
      finish_reason: "stop" at EOS, the stop string or where it is enough, "repetition", or "length" when
        `max_new_tokens` or the model's positions ran out.
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


@dataclasses.dataclass(eq=False)
class _Group:
    """A request under way: the limit of its candidates, whether a text may end, and what is completed."""

    number: int
    request: Request
    limit: int
    is_enough: Callable[[str], bool] | None
    completions: dict[int, Completion] = dataclasses.field(default_factory=dict)


class Sampler:
    """Draws `num_candidates` responses to each request, `batch_size` requests at a time.

    As soon as a candidate has ended, one of another request takes its slot.

    Args:
      model: its weights on `mesh`, its layers as `layers.stacks_inference` says. Every weight is read for every token,
        so split them over `tensor` rather than `fsdp` if they do not fit on a device.
      tokenizer: decodes, and says which ids are tokens and which one ends an answer.
      config: how to sample.
      mesh: the batch is split over `data` x `fsdp`, and made larger where it does not divide.
      stop: text that ends an answer, as EOS does (`Template.stop`).

    Attributes:
      usage: what decoding did so far, and how much of it was of use.
    """

    def __init__(
        self, model: Vlm, tokenizer: Tokenizer, config: SamplingConfig, mesh: Mesh, stop: str | None = None
    ) -> None:
        config = dataclasses.replace(config, batch_size=round_up_batch(config.batch_size, mesh))
        self._model, self._tokenizer, self._config, self._mesh, self._stop = model.config, tokenizer, config, mesh, stop
        self._num_parts = round_up_batch(1, mesh)
        self._decoder = Decoder(model, config, is_answer(model.config, tokenizer), tokenizer.eos_id, self._num_parts)
        self._own_parts = frozenset(local_rows(self._num_parts, mesh))
        self._prefill_a_part = prefill_size(config.batch_size, mesh) // self._num_parts
        self._gather = jax.jit(lambda *arrays: arrays, out_shardings=NamedSharding(mesh, P()))
        self.usage = Usage()

    @property
    def compilations(self) -> collections.Counter[str]:
        """How often each part was compiled so far; a long run should stand still here."""
        return self._decoder.compilations

    def set_weights(self, weights: nnx.State) -> None:
        """Draws from the same model with other weights from now on; compiles nothing."""
        self._decoder.weights = weights

    def generate(
        self,
        requests: Iterable[Request],
        *,
        seed: int | None = None,
        is_enough: Callable[[str], bool] | None = None,
    ) -> Iterator[list[Completion]]:
        """Completions of each request, in the order of the requests, which are read as they are needed.

        With several processes, each gives the same requests and gets all the results, but reads only the pixels of
        its own parts' requests: each part of the mesh takes its turn.

        Args:
          requests: what is asked.
          seed: instead of that of the config; another one compiles nothing.
          is_enough: whether a text may end here, such as behind its first sentence; once it may, so may all longer
            ones. What is drawn is the same with it and without, but ends there, as if it had stopped. It is asked
            wherever the host looks, so rows become free sooner.

        Raises:
          InputError: a prompt is empty, too long, or has not as many image tokens as its image has features.
          FloatingPointError: the model's scores are not finite.
        """
        readers = ThreadPoolExecutor(IMAGE_READERS, "read-image")
        seed = self._config.seed if seed is None else seed
        try:
            yield from _Generation(self, iter(requests), readers, seed, is_enough).run()
        finally:
            readers.shutdown(cancel_futures=True)

    def _limit(self, request: Request) -> int:
        """Most tokens of its candidates."""
        return min(self._config.max_new_tokens, self._model.text.max_position_embeddings - len(request.prompt_ids))

    def _ending(self, candidate: Candidate) -> Ending | None:
        """The earliest end among its tokens so far."""
        ends: list[Ending] = []
        token_ids, limit, is_enough = candidate.token_ids, candidate.group.limit, candidate.group.is_enough
        is_full, token_ids = len(token_ids) >= limit, token_ids[:limit]
        eos = np.flatnonzero(token_ids == self._tokenizer.eos_id)
        if eos.size:
            ends.append(Ending(int(eos[0]) + 1, "stop"))
            token_ids = token_ids[: eos[0] + 1]
        for may_end in filter(None, (self._has_stop if self._stop else None, is_enough)):
            if may_end(self._tokenizer.decode(token_ids)):
                lengths, texts = range(len(token_ids)), lambda n: self._tokenizer.decode(token_ids[:n])
                ends.append(Ending(bisect.bisect_left(lengths, True, key=lambda n: may_end(texts(n))), "stop"))
        if self._config.repetition_stop:
            end = repetition_end(token_ids, self._config.repetition_stop)
            ends += [] if end is None else [Ending(end, "repetition")]
        ends += [Ending(limit, "length")] if is_full else []
        return min(ends, key=lambda ending: ending.num_tokens, default=None)

    def _has_stop(self, text: str) -> bool:
        return self._stop is not None and self._stop in text

    def _completion(self, candidate: Candidate, ending: Ending) -> Completion:
        token_ids, logprobs = candidate.token_ids[: ending.num_tokens], candidate.logprobs[: ending.num_tokens]
        image_id = candidate.group.request.image_id
        if not np.isfinite(logprobs).all():
            raise FloatingPointError(f"{image_id}: the model's scores are not finite; are its weights sound?")
        text = self._tokenizer.decode(token_ids)
        text = text if self._stop is None else text.split(self._stop)[0]
        return Completion(image_id, candidate.index, text.strip(), tuple(token_ids.tolist()), logprobs, ending.reason)


class _Generation:
    """One run through requests: those that wait, those under way, and completions that others must come before.

    Each part of the mesh has its own queue.
    """

    def __init__(
        self,
        sampler: Sampler,
        requests: Iterator[Request],
        readers: ThreadPoolExecutor,
        seed: int,
        is_enough: Callable[[str], bool] | None,
    ) -> None:
        self._sampler, self._requests, self._readers, self._seed = sampler, requests, readers, seed
        self._is_enough, self._usage = is_enough, sampler.usage
        self._config, self._decoder, self._mesh = sampler._config, sampler._decoder, sampler._mesh
        self._num_taken = self._num_given = 0
        self._waiting: list[collections.deque[tuple[_Group, Future | None]]] = [
            collections.deque() for _ in range(sampler._num_parts)
        ]
        decoder, num_candidates = self._decoder, self._config.num_candidates
        num_pages = sum(decoder.block_counts) * BLOCK
        self._parts = [
            Part(decoder.num_rows, decoder.num_slots, num_candidates, num_pages) for _ in range(sampler._num_parts)
        ]
        self._finished: dict[int, list[Completion]] = {}
        self._state: tuple[Prefix, Latest] | None = None
        self._pages: list[Pages] = []
        self._added = 0  # tokens, to each candidate, by the last call

    def run(self) -> Iterator[list[Completion]]:
        while self._advance():
            while self._num_given in self._finished:
                yield self._finished.pop(self._num_given)
                self._num_given += 1

    def _advance(self) -> bool:
        """Reads prompts, and adds some tokens to all candidates; whether there was anything left to do."""
        # Not around `run`: the code that takes its results has its own mesh, or none.
        with jax.set_mesh(self._mesh):
            self._read_ahead()
            while any(counts := self._worth_prefilling()):
                self._prefill(counts)
                self._read_ahead()
            pages = [part.place(self._added) for part in self._parts]
            if any(candidate for part in self._parts for candidate in part.slots):
                self._generate(pages)
                self._take_finished()
                return True
        return False

    def _read_ahead(self) -> None:
        """Takes requests, each part of the mesh in turn, until each has as many as a batch has for it."""
        sampler, most = self._sampler, MOST_AHEAD * self._config.batch_size
        enough = self._config.batch_size // sampler._num_parts
        while min(map(len, self._waiting)) < enough and sum(map(len, self._waiting)) < most:
            request = next(self._requests, None)
            if request is None:
                return
            check_request(request, sampler._model)
            part = self._num_taken % sampler._num_parts
            reads = part in sampler._own_parts and request.pixels is not None
            image = self._readers.submit(pixels_of, request) if reads else None
            group = _Group(self._num_taken, request, sampler._limit(request), self._is_enough)
            self._waiting[part].append((group, image))
            self._num_taken += 1

    def _worth_prefilling(self) -> list[int]:
        """Prompts of each part for a prefill now; none if it had better wait for more."""
        most = self._sampler._prefill_a_part
        in_reach = [min(most, len(waiting)) for waiting in self._waiting]
        counts = [min(count, part.free_rows) for count, part in zip(in_reach, self._parts, strict=True)]
        starves = any(count and part.starves for count, part in zip(counts, self._parts, strict=True))
        return counts if starves or counts == in_reach else []

    def _prefill(self, counts: list[int]) -> None:
        """Puts the requests that wait longest into free rows: as many of each part as it is told."""
        most = self._sampler._prefill_a_part
        rows = np.full((len(counts), most), self._decoder.num_rows, np.int32)
        taken: dict[int, tuple[_Group, Future | None]] = {}
        for part, count in enumerate(counts):
            for i in range(count):
                taken[part * most + i] = self._waiting[part].popleft()
                rows[part, i] = self._parts[part].add(taken[part * most + i][0])
        batch = self._to_device(taken, rows.ravel())
        prefix, latest = self._state or self._decoder.init_state(batch)
        prefix = self._decoder.pad_prefix(prefix, batch.token_ids.shape[1])
        self._state = self._decoder.prefill(prefix, batch), latest
        self._usage.prompts_read += rows.size
        self._usage.useful_prompts += len(taken)

    def _to_device(self, taken: dict[int, tuple[_Group, Future | None]], rows: np.ndarray) -> Batch:
        """Prompts by their place in the batch; what is left of it only fills up."""
        size, bucket, edge = len(rows), self._config.prompt_bucket, self._sampler._model.vision.image_size
        longest = max(len(group.request.prompt_ids) for group, _ in taken.values())
        token_ids = np.zeros((size, -(-longest // bucket) * bucket), np.int32)
        lengths, seeds = np.ones(size, np.int32), np.zeros((size, 2), np.uint32)
        has_image = any(group.request.pixels is not None for group, _ in taken.values())
        pixels = np.zeros((size, edge, edge, 3), np.uint8) if has_image else None
        for place, (group, future) in taken.items():
            request = group.request
            lengths[place] = len(request.prompt_ids)
            token_ids[place, : lengths[place]] = request.prompt_ids
            seeds[place] = stream_seed(self._seed, request)
            if pixels is not None and future is not None:
                image = future.result()
                assert image.shape == pixels.shape[1:], f"{request.image_id}: {image.shape}, not {edge} pixels wide"
                pixels[place] = image
        words = [taken[place][0].request.prompt if place in taken else "" for place in range(size)]
        instructions = self._sampler._tokenizer.instruction_ids(words) if has_image else None
        return Batch(*shard_rows((token_ids, lengths, seeds, rows, pixels, instructions), self._mesh))

    def _generate(self, places: list[np.ndarray]) -> None:
        """Some more tokens for all candidates; `places` are the pages for those of the last call."""
        assert self._state is not None
        prefix, latest = self._state
        left = [c.group.limit - max(1, len(c.token_ids)) for part in self._parts for c in part.slots if c]
        self._added = min(self._decoder.steps, max(left))
        if not self._added:
            return
        num_read = self._decoder.pages_to_read(max(part.pages_reach for part in self._parts))
        while len(self._pages) < num_read:
            self._pages.append(self._decoder.init_pages(latest, len(self._pages)))
        num_blocks = sum(self._decoder.block_counts[:num_read])
        tables = [part.tables(pages, num_blocks) for part, pages in zip(self._parts, places, strict=True)]
        slots: Slots = shard_rows(jax.tree.map(lambda *each: np.concatenate(each), *tables), self._mesh)
        self._pages[:num_read], latest = self._decoder.generate(
            prefix, self._pages[:num_read], latest, slots, self._added
        )
        self._state = prefix, latest
        num_slots = len(self._parts) * self._decoder.num_slots
        self._usage.steps += self._added * num_slots
        self._usage.tokens_read += (
            self._added * (len(self._parts) * num_blocks * BLOCK + num_slots) * self._decoder.steps
        )

    def _take_finished(self) -> None:
        """Slots whose candidates have ended are free from now on, and rows whose candidates all have."""
        assert self._state is not None
        prefix, latest = self._state
        arrays = prefix.token_ids, prefix.logprobs, latest.token_ids, latest.logprobs
        found = (np.split(x, len(self._parts)) for x in jax.device_get(self._sampler._gather(*arrays)))
        for part, *tokens in zip(self._parts, *found, strict=True):
            for slot, candidate in enumerate(part.slots):
                if candidate is not None:
                    self._add_tokens(candidate, slot, *tokens)
            part.release()

    def _add_tokens(
        self,
        candidate: Candidate,
        slot: int,
        first_ids: np.ndarray,
        first_logprobs: np.ndarray,
        token_ids: np.ndarray,
        logprobs: np.ndarray,
    ) -> None:
        """What the last call added to a candidate, and its first token if that is new, too; looks for its end."""
        before, place = max(1, len(candidate.token_ids)), (candidate.row, candidate.index)
        if not len(candidate.token_ids):
            candidate.token_ids, candidate.logprobs = first_ids[place][None], first_logprobs[place][None]
        candidate.token_ids = np.append(candidate.token_ids, token_ids[slot, : self._added])
        candidate.logprobs = np.append(candidate.logprobs, logprobs[slot, : self._added])
        ending = self._sampler._ending(candidate)
        after = len(candidate.token_ids) if ending is None else max(before, ending.num_tokens)
        self._usage.useful_steps += after - before
        self._usage.live_tokens_read += sum(range(before, after))
        if ending is not None:
            group, candidate.has_ended = candidate.group, True
            group.completions[candidate.index] = self._sampler._completion(candidate, ending)
            if len(group.completions) == self._config.num_candidates:
                self._finished[group.number] = [group.completions[i] for i in range(self._config.num_candidates)]


def check_request(request: Request, config: VlmConfig) -> None:
    """Raises InputError if a model of these sizes cannot take a request: too long, or not one place for its image."""
    length, positions = len(request.prompt_ids), config.text.max_position_embeddings
    if not 0 < length < positions:
        raise InputError(
            f"{request.image_id}: a prompt of {length} tokens, expected at least 1 and fewer than the model's "
            f"{positions} positions; shorten it"
        )
    expected = 0 if request.pixels is None else config.num_image_tokens
    found = sum(token_id == config.image_token_id for token_id in request.prompt_ids)
    if found != expected:
        raise InputError(
            f"{request.image_id}: the prompt has {found} image tokens, expected {expected}; "
            "a prompt names its image once, and a prompt without image not at all"
        )


def prefill_size(batch_size: int, mesh: Mesh) -> int:
    """Prompts that are read at a time: the same number for each part of the mesh."""
    parts = round_up_batch(1, mesh)
    return parts * max(1, int(PREFILL * batch_size / parts))


def is_answer(config: VlmConfig, tokenizer: Tokenizer) -> np.ndarray:
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


def pixels_of(request: Request) -> np.ndarray:
    """The image of a request that has one, uint8 [S, S, 3]."""
    return request.pixels() if callable(request.pixels) else np.asarray(request.pixels)
