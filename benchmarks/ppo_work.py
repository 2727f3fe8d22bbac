"""What the sides of `benchmarks/ppo.py` are given: a checkpoint in memory, images, lengths, rewards; our iteration.

Nothing comes from files: weights are those of a model of transformers, or drawn; responses end at given lengths.
"""

import contextlib
import dataclasses
import io
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from benchmarks.sft import CAPTION_LENGTHS
from vigor_jax.data.images.preprocessing import Preprocessing
from vigor_jax.hf.llava.family import LlavaFamily
from vigor_jax.hf.load import Checkpoint
from vigor_jax.hf.weights.tensor_checks import Stored
from vigor_jax.inference.policy import Policy
from vigor_jax.inference.sampler import Completion, Ending, Sampler
from vigor_jax.inference.sampling_config import SamplingConfig
from vigor_jax.inference.schedule import Candidate
from vigor_jax.models.llava import LlavaConfig
from vigor_jax.models.lora_config import LoraConfig
from vigor_jax.models.vlm import abstract_model, param_paths
from vigor_jax.parallel.config import MeshConfig
from vigor_jax.parallel.sharding import make_mesh
from vigor_jax.records import ScoreItem, Signal, Span, Verdict
from vigor_jax.stages import ppo as stage
from vigor_jax.stages.ppo_config import PpoConfig
from vigor_jax.stages.ppo_learner import Learner, Publisher
from vigor_jax.stages.ppo_questions import Question
from vigor_jax.stages.ppo_rollout import Rollouts, TokenArrays
from vigor_jax.training.train_step import Metrics

PROMPT = "Describe this image in detail."
VOCAB_SIZE = 32000
UPDATES_IN_ALL = 10**6  # of the schedule: the rate stays what it is
PARTS = ("rollout", "score", "update")
# Of this many tokens one is rewarded, and one punished.
REWARDED_EVERY = 20


@dataclasses.dataclass(frozen=True)
class Settings:
    """An iteration.

    Attributes:
      images: of an iteration.
      candidates: responses to each.
      minibatch: images an update; `images` / `minibatch` updates an epoch.
      at_once: images of a minibatch that are computed at a time.
      epochs: passes over the responses.
      rank: of the adapter on the seven projections of every layer; its alpha is twice that.
      learning_rate: of the adapter and the value head.
      most_tokens: of a response; the lengths are those of real captions (`sft.CAPTION_LENGTHS`), cut there.
      bucket: lengths of rows of ours are multiples of it.
      remat: of ours; the peer keeps its activations, unless it is "full".
    """

    images: int
    candidates: int
    minibatch: int
    at_once: int
    epochs: int = 4
    rank: int = 16
    learning_rate: float = 1e-4
    most_tokens: int = max(CAPTION_LENGTHS)
    bucket: int = 64
    remat: str = "none"

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each response, int [images, candidates]: evenly from the shortest to the longest, in random
        order."""
        count = self.images * self.candidates
        drawn = np.quantile(CAPTION_LENGTHS, (np.arange(count) + 0.5) / count).astype(int)
        drawn = np.minimum(np.random.default_rng(0).permutation(drawn), self.most_tokens)
        return drawn.reshape(self.images, self.candidates)

    def config(self, *, separate: bool) -> PpoConfig:
        """Of our side; with `separate`, every response is a row of its own image."""
        each = self.candidates if separate else 1
        return PpoConfig(
            batch_size=self.images * each,
            minibatch=self.minibatch * each,
            accumulate=self.minibatch // self.at_once,
            ppo_epochs=self.epochs,
            learning_rate=self.learning_rate,
            warmup_ratio=0.0,
            bucket=self.bucket,
            remat=self.remat,
            lora=LoraConfig(rank=self.rank, alpha=2.0 * self.rank),
            kl_target=0.0,
            sampling=SamplingConfig(
                temperature=1.0,
                num_candidates=1 if separate else self.candidates,
                max_new_tokens=int(self.lengths.max()),
                batch_size=self.images * each,
            ),
        )


class Words:
    """A tokenizer of which every token is a number, and none ends a response."""

    bos_id, eos_id, pad_id, vocab_size = 1, -1, 0, VOCAB_SIZE
    adds_bos, restarts_after_image, images_first, image_strips = True, True, False, (False, False)

    def encode(self, text: str, *, prefix: bool = True) -> list[int]:
        return [9 + zlib.crc32(word.encode()) % (VOCAB_SIZE - 9) for word in text.split()]

    def split_text(self, token_ids: Sequence[int]) -> list[str]:
        return [f" {token_id}" for token_id in token_ids]

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(self.split_text(token_ids))

    def instruction_ids(self, texts: Sequence[str]) -> None:
        """None: LLaVA reads no instructions."""


class Given:
    """A reward stream that knows the rewards: token number k of a response gets `rewards_of(...)[k]`."""

    name = digest = "given"

    def judge(self, items: Iterable[ScoreItem]) -> Iterator[list[Verdict]]:
        for item in items:
            yield [Verdict(item.image, i, self.name, tuple(_signals(text))) for i, text in enumerate(item.texts)]


def rewards_of(length: int) -> np.ndarray:
    """Rewards of the tokens of a response: 1, -1 or 0."""
    place = np.arange(length) % REWARDED_EVERY
    return (place == REWARDED_EVERY // 4).astype(np.float32) - (place == 3 * REWARDED_EVERY // 4)


def _signals(text: str) -> Iterator[Signal]:
    words = text.split()
    ends = np.cumsum([len(word) + 1 for word in words]) - 1
    for index, reward in enumerate(rewards_of(len(words))):
        if reward:
            span = Span(int(ends[index]) - len(words[index]), int(ends[index]))
            yield Signal(f"token {index}", (span,), float(reward < 0), float(reward > 0), 0.5)


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image file in memory."""

    name: str
    content: bytes

    def read_bytes(self) -> bytes:
        return self.content


def make_pictures(count: int, edge: int) -> list[Picture]:
    """Noise of the size that the model takes."""
    rng, pictures = np.random.default_rng(0), []
    for index in range(count):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (edge, edge, 3), np.uint8)).save(file, "PNG", compress_level=0)
        pictures.append(Picture(f"{index}.png", file.getvalue()))
    return pictures


class Weights:
    """Tensors in memory, where the package expects a file.

    Args:
      shapes: of all tensors.
      read: gives one by its name.
      dtype: of all of them.
    """

    def __init__(
        self, shapes: dict[str, tuple[int, ...]], read: Callable[[str], np.ndarray], dtype: Any = np.float32
    ) -> None:
        self._shapes, self._read, self._dtype = shapes, read, np.dtype(dtype)

    def names(self) -> Iterable[str]:
        return self._shapes

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def dtype(self, name: str) -> np.dtype:
        return self._dtype

    def read(self, name: str, index: Any = None) -> np.ndarray:
        return self._read(name)[... if index is None else index]


def weights_of(peer: Any) -> Weights:
    """Those of a model of transformers, in float32."""
    family = LlavaFamily()
    tensors = {family.canonical_name(name): each.detach().numpy() for name, each in peer.state_dict().items()}
    tensors = {name: each.copy() for name, each in tensors.items()}  # PEFT changes the model in place
    return Weights({name: each.shape for name, each in tensors.items()}, tensors.__getitem__)


def drawn_weights(config: LlavaConfig) -> Weights:
    """Random ones of which the same million numbers come again and again: drawing billions takes minutes."""
    numbers = (0.02 * np.random.default_rng(0).standard_normal(2**20)).astype(np.float16)
    ours = {path: variable.get_value().shape for path, variable in param_paths(_state(config)).items()}
    shapes, is_scale = {}, {}
    for entry in LlavaFamily().entries(config):
        shape = ours[entry.unstacked_path]
        shapes[entry.name] = tuple(shape[entry.axes.index(axis)] for axis in range(len(shape)))
        is_scale[entry.name] = entry.path.endswith(".scale")

    def read(name: str) -> np.ndarray:
        return np.ones(shapes[name], np.float16) if is_scale[name] else np.resize(numbers, shapes[name])

    return Weights(shapes, read, np.float16)


def _state(config: LlavaConfig) -> Any:
    from flax import nnx

    return nnx.state(abstract_model(config, scan=False))


def make_checkpoint(config: LlavaConfig, weights: Weights) -> Checkpoint:
    tensors = {name: Stored(weights, name) for name in weights.names()}  # type: ignore[arg-type]
    preprocessing = Preprocessing(config.vision.image_size)
    return Checkpoint(LlavaFamily(), Path("memory"), "llava-hf", config, preprocessing, Words(), tensors)  # type: ignore[arg-type]


class Lengths(Sampler):
    """The package's own sampler, whose responses end at given lengths."""

    ends: dict[str, list[int]]

    def _ending(self, candidate: Candidate) -> Ending | None:
        end = self.ends[candidate.group.request.image_id][candidate.index]
        return Ending(end, "length") if len(candidate.token_ids) >= end else None


class Repeated:
    """A policy that says again what was said before."""

    def __init__(self, policy: Policy, completions: list[list[Completion]]) -> None:
        self._policy, self._completions = policy, completions

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def sample(self, *_: Any, **__: Any) -> Iterator[list[Completion]]:
        return iter(self._completions)


class Watched(Learner):
    """The package's own learner, and the losses of its updates."""

    losses: list[float]

    def update(self, rows: Any) -> Metrics:
        metrics = super().update(rows)
        self.losses.append(float(metrics["loss"]))
        return metrics


class Clock:
    """Seconds of each part of an iteration: of the wall clock, and of the process's CPUs."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = {}
        self.cpu: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = time.perf_counter(), time.process_time()
        yield
        self.wall[part] = time.perf_counter() - start[0]
        self.cpu[part] = time.process_time() - start[1]


class Ours:
    """Iterations as `stages/ppo.py` runs them.

    Args:
      checkpoint: the model.
      settings: of the iteration.
      dtype: to compute in.
      separate: each response is a row, with image and prompt once more.
    """

    def __init__(self, checkpoint: Checkpoint, settings: Settings, dtype: str, *, separate: bool = False) -> None:
        self.config, self.dtype, self.number = settings.config(separate=separate), dtype, 0
        self.mesh, inference_mesh = make_mesh(MeshConfig()), make_mesh(MeshConfig(data=-1, fsdp=1))
        self.policy = Policy(checkpoint, inference_mesh, dtype=dtype)
        with jax.set_mesh(self.mesh):
            self.learner = Watched(self.config, checkpoint, self.mesh, dtype, UPDATES_IN_ALL)
        self.publish = Publisher(self.policy, self.config, self.learner.policy_params, self.mesh)

        pictures = make_pictures(settings.images, checkpoint.config.vision.image_size)
        ends: dict[str, list[int]] = {}
        self.questions = []
        for picture, lengths in zip(pictures, settings.lengths.tolist(), strict=True):
            for number, some in enumerate([[length] for length in lengths] if separate else [lengths]):
                name = f"{picture.name} {number}"
                ends[name] = some
                self.questions.append(Question(name, picture, PROMPT))
        self._take(ends, inference_mesh)

    def _take(self, ends: dict[str, list[int]], mesh: Mesh) -> None:
        """Puts the sampler that knows the lengths where the policy keeps its own."""
        sampling = dataclasses.replace(self.config.sampling, seed=0)
        sampler = Lengths(self.policy.model, self.policy.checkpoint.tokenizer, sampling, mesh)
        sampler.ends = ends
        self.policy._samplers[sampling] = sampler

    def rollout(self, policy: Any = None) -> Rollouts:
        """Responses from the policy as it is."""
        with jax.set_mesh(self.mesh):
            self.publish(self.learner.policy_params)
        return Rollouts(self.config, policy or self.policy, {Given.name: Given()}, self.questions, self.number)

    def __call__(
        self, clock: Clock, said: list[list[Completion]] | None = None, epochs: int | None = None
    ) -> tuple[Rollouts, TokenArrays]:
        """An iteration; with `said`, its responses are these; `epochs` replaces those of the settings."""
        self.number += 1
        self.learner.losses = []
        policy: Any = self.policy if said is None else Repeated(self.policy, said)
        config = dataclasses.replace(self.config, ppo_epochs=epochs or self.config.ppo_epochs)
        learner, mesh, kl_factor = self.learner, self.mesh, config.kl_factor
        with clock("rollout"):
            rollouts = self.rollout(policy)
        with clock("score"):
            scores, ref_scores = stage._score(config, learner, mesh, rollouts)
            arrays = rollouts.token_arrays(scores, ref_scores, kl_factor)
        with clock("update"):
            stage._learn(config, learner, mesh, rollouts, arrays, kl_factor, self.number, self.dtype)
        return rollouts, arrays
