"""Annotations as rows of reward training, and the loss on them (ViGoR, section 3.2)."""

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vigor_jax import fingerprint
from vigor_jax.data.batches.tree_batches import TreeRows
from vigor_jax.data.batches.tree_sequences import QUESTIONS, Description, Per, TreeEncoder, TreeSequence, answer, asked
from vigor_jax.data.images.store import open_images
from vigor_jax.data.text.conversation import find_template
from vigor_jax.errors import InputError
from vigor_jax.hf.load import Checkpoint
from vigor_jax.inference.tree_attention import hidden_states_at
from vigor_jax.models.vlm import Vlm
from vigor_jax.records import Annotation, ErrorType
from vigor_jax.training.train_step import TrainingConfig

# Image → judgments of the descriptions of it.
Annotations: TypeAlias = Mapping[str, Sequence[Annotation]]


@dataclasses.dataclass(frozen=True)
class AnnotationSource:
    """One of several files of judged descriptions.

    Attributes:
      name: in logs, tables and reports.
      annotations: the file, see docs/artifacts.md.
      images: where the images that it names are; by default `train_reward.images`.
      weight: of each of its answers in the loss: one of weight 2 counts as two of weight 1.
    """

    name: str
    annotations: Path = fingerprint.place()
    images: str | None = fingerprint.place(None)
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not (self.name.strip() and self.name.isprintable()):
            raise InputError(f"sources: expected a name on one line, got {self.name!r}")
        if not 0 < self.weight < math.inf:
            raise InputError(f"sources: expected a weight of more than 0 for {self.name}, got {self.weight}")


@dataclasses.dataclass(frozen=True)
class TrainRewardConfig(TrainingConfig):
    """Fine-tuning of the reward model: what `TrainingConfig` says, and the following.

    Attributes:
      annotations: judged descriptions, see docs/artifacts.md.
      images: where the images that they name are: a folder, tar shards or Parquet (docs/images.md).
      sources: several files of judged descriptions in place of `annotations`, each with name, annotations, images and
        weight (docs/training.md).
      epochs: passes over the data; the paper's 5.
      batch_size: rows an update, over all devices: images in branch form, sentences in separate form.
      max_length: most tokens of a row; an image whose descriptions do not fit gets several rows.
      held_out: share of the images that is not trained on but evaluated after each epoch, chosen by their names; with
        several sources by the names alone, without folders, so that an image is held out in all of them.
      form: "branches" is one row an image, "separate" one row a sentence; the loss is the same.
      balance: "weighted" weighs good and bad answers inversely to how many there are of each.
      per: judge every sentence, or the description as a whole (the holistic ablation).
      question: what is asked; "" for the paper's words.
    """

    annotations: Path | None = fingerprint.place(None)
    sources: tuple[AnnotationSource, ...] = fingerprint.optional(())
    epochs: int = 5
    max_length: int = 2048
    held_out: float = 0.05
    form: Literal["branches", "separate"] = "branches"
    balance: Literal["none", "weighted"] = "none"
    per: Per = "sentence"
    question: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.held_out < 1:
            raise InputError(f"held_out: expected 0 to less than 1, got {self.held_out}")
        if self.max_length < 1:
            raise InputError(f"max_length: expected at least 1, got {self.max_length!r}")
        if self.sources and self.annotations:
            raise InputError("annotations, sources: one file or several of judged descriptions; give one of the two")
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise InputError(f"sources: expected each name once, got {', '.join(names)}")

    @property
    def files(self) -> tuple[Path, ...]:
        """Of all judged descriptions."""
        own = (self.annotations,) if self.annotations else ()
        return tuple(source.annotations for source in self.sources) or own


def make_encoder(config: TrainRewardConfig, checkpoint: Checkpoint) -> TreeEncoder:
    """What makes rows of descriptions in the words of a checkpoint."""
    return TreeEncoder(
        checkpoint.tokenizer,
        find_template(config.template),
        config.question or QUESTIONS[config.per],
        image_token_id=checkpoint.config.image_token_id,
        num_image_tokens=checkpoint.config.num_image_tokens,
        max_length=config.max_length,
        max_position=checkpoint.config.text.max_position_embeddings,
    )


def is_held_out(image: str, share: float) -> bool:
    """Whether an image is left for evaluation: by its name, so that it stays so when others are added."""
    digest = hashlib.blake2b(image.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def errors_asked(annotation: Annotation, per: Per) -> list[tuple[ErrorType, ...]]:
    """The kinds of error in what each question asks about: in each sentence, or in any of them."""
    if per == "sentence":
        return [sentence.errors for sentence in annotation.sentences]
    found = {error for sentence in annotation.sentences for error in sentence.errors}
    return [tuple(kind for kind in get_args(ErrorType) if kind in found)]


def all_errors(annotations: Annotations, per: Per) -> list[tuple[ErrorType, ...]]:
    """`errors_asked` of all descriptions, in the order of `make_sequences`."""
    return [errors for group in annotations.values() for each in group for errors in errors_asked(each, per)]


def class_weights(balance: Mapping[bool, float]) -> dict[bool, float]:
    """Weights inverse to the number of good and of bad answers, 1 on average; an answer counts its own weight."""
    if len(balance) < 2:
        return {}
    return {is_good: sum(balance.values()) / (2 * count) for is_good, count in balance.items()}


def make_sequences(
    annotations: Annotations,
    config: TrainRewardConfig,
    encoder: TreeEncoder,
    *,
    learn: bool,
    weights: Mapping[bool, float] | None = None,
) -> list[TreeSequence]:
    """Annotations of one source as rows, in their order.

    Args:
      annotations: with at least one sentence each.
      config: what is read is `images`, `per` and, where there is something to learn, `form`.
      encoder: knows what fits.
      learn: with the answers, or with questions alone.
      weights: of good (True) and bad answers in the loss; 1 by default.

    Raises:
      InputError: a description is too long.
    """
    images, sequences = open_images(config.images or "."), []
    for image, group in annotations.items():
        each = [
            descriptions(annotation, index, config, learn=learn, weights=weights)
            for index, annotation in enumerate(group)
        ]
        separate = learn and config.form == "separate"
        rows = [[single] for some in each for single in some] if separate else [[whole for (whole,) in each]]
        for row in rows:
            sequences += encoder.sequences(image, images.file(image), row)
    return sequences


def descriptions(
    annotation: Annotation,
    index: int,
    config: TrainRewardConfig,
    *,
    learn: bool,
    weights: Mapping[bool, float] | None = None,
) -> list[Description]:
    """One description; in separate form, where there is something to learn, one for each question."""
    errors = errors_asked(annotation, config.per)
    description = Description(
        candidate=index,
        text=annotation.description,
        spans=tuple(sentence.span for sentence in annotation.sentences),
        asked=asked(len(annotation.sentences), config.per),
        answers=tuple(map(answer, errors)) if learn else None,
        weights=tuple((weights or {}).get(not kinds, 1.0) for kinds in errors),
    )
    if not (learn and config.form == "separate"):
        return [description]
    answers, own = description.answers or (), description.weights or ()
    return [
        dataclasses.replace(description, asked=(sentence,), answers=(text,), weights=(weight,))
        for sentence, text, weight in zip(description.asked, answers, own, strict=True)
    ]


def answer_loss(model: Vlm, rows: TreeRows, config: TrainingConfig) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Weighted sum of the cross-entropy of the answers' tokens, and the sum of their weights.

    Only where an answer is learned are there logits: a few hundred places of a row at most.
    """
    hidden = hidden_states_at(model, rows, remat=config.remat)
    logits = model.language_model.logits(hidden)
    # A product with one-hot rows in place of a gather leaves a split vocabulary split; what is padded has no target.
    targets = jnp.sum(logits * jax.nn.one_hot(rows.targets, logits.shape[-1]), -1)
    return jnp.sum(rows.weights * (jax.nn.logsumexp(logits, -1) - targets)), jnp.sum(rows.weights)
