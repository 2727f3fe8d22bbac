"""What the sides of `benchmarks/dpo.py` are given: images and responses of given lengths; and our updates on them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float32, Int32

from benchmarks.ppo_work import PROMPT, UPDATES_IN_ALL, Words, make_pictures
from benchmarks.sft import CAPTION_LENGTHS
from vigor_jax.data.batches.preference_rows import PreferenceEncoder, PreferenceLoader
from vigor_jax.data.preferences.read import PreferenceRow
from vigor_jax.data.text.conversation import TEMPLATES
from vigor_jax.hf.load import Checkpoint
from vigor_jax.inference.logprobs import ResponseBatch, collate_responses, per_token_logps
from vigor_jax.models.lora_config import LoraConfig
from vigor_jax.models.vlm import Vlm
from vigor_jax.parallel.config import MeshConfig
from vigor_jax.parallel.sharding import make_mesh, to_global
from vigor_jax.records import Preference
from vigor_jax.stages.dpo_config import DpoConfig
from vigor_jax.stages.dpo_update import dpo_loss, logps_of
from vigor_jax.training import dpo
from vigor_jax.training.train_step import abstract_state, init_state, learning_rate, make_optimizer, make_train_step
from vigor_jax.training.trainable import load_trainable


@dataclasses.dataclass(frozen=True)
class Settings:
    """An update.

    Attributes:
      images: of an update.
      responses: to each, every one better than those after it: r (r - 1) / 2 pairs.
      rank: of the adapter on the seven projections of every layer, whose alpha is twice that; 0 trains projector and
        language model in full.
      learning_rate: of what is trained.
      most_tokens: of a response, without what ends it; the lengths are those of real captions, cut there.
      bucket: lengths of rows of ours are multiples of it.
      remat: of ours; the peer keeps its activations, unless it is "full".
    """

    images: int
    responses: int
    rank: int
    learning_rate: float
    most_tokens: int
    bucket: int
    remat: str

    @property
    def lengths(self) -> np.ndarray:
        """Words of each response, int [images, responses]: evenly from the shortest to the longest, in random order."""
        count = self.images * self.responses
        drawn = np.quantile(CAPTION_LENGTHS, (np.arange(count) + 0.5) / count).astype(int)
        drawn = np.minimum(np.random.default_rng(0).permutation(drawn), self.most_tokens)
        return drawn.reshape(self.images, self.responses)

    @property
    def pairs(self) -> int:
        """Of an update."""
        return self.images * self.responses * (self.responses - 1) // 2

    def config(self) -> DpoConfig:
        return DpoConfig(
            batch_size=self.images,
            learning_rate=self.learning_rate,
            warmup_ratio=0.0,
            bucket=self.bucket,
            remat=self.remat,
            lora=LoraConfig(rank=self.rank, alpha=2.0 * self.rank) if self.rank else None,
            max_length=4096,
        )


class EndedWords(Words):
    """Words, and a token that ends an answer."""

    eos_id = 2


def make_preferences(settings: Settings, image_size: int) -> list[PreferenceRow]:
    """Random words about random images."""
    rng, rows = np.random.default_rng(1), []
    for index, (picture, lengths) in enumerate(
        zip(make_pictures(settings.images, image_size), settings.lengths, strict=True)
    ):
        responses = tuple(" ".join(map(str, rng.integers(0, 10**6, length))) for length in lengths)
        ratings = tuple(float(-number) for number in range(settings.responses))
        preference = Preference(picture.name, PROMPT, responses, ratings)
        rows.append(PreferenceRow(preference, picture, index, f"index {index}"))  # type: ignore[arg-type]
    return rows


class Encoded(NamedTuple):
    """A row as tokens."""

    prompt: list[int]
    responses: list[list[int]]
    pairs: tuple[tuple[int, int], ...]


class SeparateRows(NamedTuple):
    """One response a row; R tokens at most, K pairs by the numbers of their rows."""

    responses: ResponseBatch
    ref_logps: Float32[Any, "B R"]
    better: Int32[Any, "K"]
    worse: Int32[Any, "K"]


def separate_loss(model: Vlm, rows: SeparateRows, config: Any) -> tuple[Array, dict[str, Array]]:
    """`dpo_loss` of responses in separate rows, each with the image and the prompt once more."""
    logps = per_token_logps(model, rows.responses, remat=config.remat)
    scores = jnp.sum(jnp.where(rows.responses.response_mask, logps - rows.ref_logps, 0), axis=1)
    margins = scores[rows.better] - scores[rows.worse]
    loss = dpo.preference_loss(margins, config.loss, config.beta, config.label_smoothing)
    return jnp.sum(loss), {"tokens": jnp.float32(len(margins))}


class Ours:
    """Updates as `stages/dpo.py` does them, on a batch that is there.

    Args:
      checkpoint: the model.
      settings: of an update.
      rows: what is learned from.
      separate: each response is a row, with image and prompt once more.

    Attributes:
      loss: of the last update.
    """

    def __init__(
        self, checkpoint: Checkpoint, settings: Settings, rows: list[PreferenceRow], *, separate: bool
    ) -> None:
        self.config, self.mesh, self.loss = settings.config(), make_mesh(MeshConfig()), 0.0
        model, size = checkpoint.config, len(rows)
        encoder = PreferenceEncoder(
            checkpoint.tokenizer,
            TEMPLATES["v1"],
            model.image_token_id,
            model.num_image_tokens,
            max_length=self.config.max_length,
            max_positions=model.text.max_position_embeddings,
        )
        self.encoded = [Encoded(*encoder.tokens(row), row.preference.pairs()) for row in rows]
        self.loader = PreferenceLoader(
            data=rows,
            data_file=Path("memory"),
            encoder=encoder,
            preprocessing=checkpoint.preprocessing,
            batch_size=size,
            num_responses=settings.responses,
            num_pairs=settings.pairs // size,
            bucket=settings.bucket,
        )
        blank = self.loader.make(range(size)).rows
        self.pixels = blank.pixels[:, 0]
        with jax.set_mesh(self.mesh):
            self._prepare(checkpoint, self._separate(settings.bucket) if separate else blank)

    def _separate(self, bucket: int) -> SeparateRows:
        """All first responses, all second ones, ..."""
        count = len(self.encoded[0].responses)
        responses = [each.responses[number] for number in range(count) for each in self.encoded]
        prompts = [each.prompt for each in self.encoded] * count
        batch = collate_responses(
            prompts, responses, np.concatenate([self.pixels] * count), num_rows=len(responses), bucket=bucket
        )
        pairs = [pair for each in self.encoded for pair in each.pairs]
        image = np.repeat(np.arange(len(self.encoded)), len(self.encoded[0].pairs))
        better, worse = (np.array(side) * len(self.encoded) + image for side in zip(*pairs, strict=True))
        references = np.zeros(batch.response_mask.shape, np.float32)
        return SeparateRows(batch, references, better.astype(np.int32), worse.astype(np.int32))

    def _prepare(self, checkpoint: Checkpoint, rows: Any) -> None:
        config, dtype = self.config, jnp.float32
        loaded = load_trainable(checkpoint, config, self.mesh, dtype)
        self.graphdef, self._frozen = loaded.graphdef, loaded.frozen
        self.adapter = {path: np.array(weight) for path, weight in loaded.params.items()} if config.lora else {}

        def logps(weights: dict[str, Array], rows: Any) -> Array:
            model = nnx.merge(
                self.graphdef, nnx.from_flat_state([(tuple(p.split(".")), w) for p, w in weights.items()])
            )
            if isinstance(rows, SeparateRows):
                return per_token_logps(model, rows.responses)
            return logps_of(model, rows, config).own

        rows = to_global(rows, self.mesh) if not isinstance(rows, SeparateRows) else jax.tree.map(jnp.asarray, rows)
        found = jax.jit(logps)(loaded.params | loaded.frozen, rows)
        self.rows = rows._replace(ref_logps=found)
        self.ref_logps = self._of_pairs(found)
        optimizer, schedule = make_optimizer(config, UPDATES_IN_ALL), learning_rate(config, UPDATES_IN_ALL)
        abstract = abstract_state(loaded.params, optimizer, self.mesh)
        self._state = init_state(loaded.params, optimizer, self.mesh, seed=0)
        loss: Callable[..., Any] = separate_loss if isinstance(rows, SeparateRows) else dpo_loss
        self._step = make_train_step(self.graphdef, abstract, optimizer, schedule, config, dtype, loss)

    def _of_pairs(self, logps: Array) -> np.ndarray:
        """Sums over the responses of all pairs, the better ones first."""
        if isinstance(self.rows, SeparateRows):
            sums = logps.sum(1)
            return np.concatenate([sums[self.rows.better], sums[self.rows.worse]])
        sums = dpo.response_sums(logps, self.rows.owners, self.rows.lengths.shape[1])
        better, worse = (jnp.take_along_axis(sums, of, axis=1) for of in (self.rows.better, self.rows.worse))
        return np.concatenate([better.ravel(), worse.ravel()])

    @property
    def token_ids(self) -> Any:
        """With padding."""
        return self.rows.responses.token_ids

    def __call__(self) -> None:
        """An update."""
        with jax.set_mesh(self.mesh):
            self._state, metrics = self._step(self._state, self._frozen, self.rows)
        self.loss = float(metrics["loss"])
