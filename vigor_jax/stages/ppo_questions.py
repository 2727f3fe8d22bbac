"""What PPO asks: images with a question each, from conversations or from a folder of images."""

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import NamedTuple

from vigor_jax.data.batches.trainable import Encoder, usable_examples
from vigor_jax.data.images.store import open_images
from vigor_jax.data.text.conversation import IMAGE_PLACEHOLDER, find_template
from vigor_jax.errors import InputError
from vigor_jax.hf.load import Checkpoint
from vigor_jax.parallel.processes import is_first
from vigor_jax.records import ImageFile
from vigor_jax.stages.ppo_config import PpoConfig
from vigor_jax.stages.sample import choose_prompt

logger = logging.getLogger(__name__)


class Question(NamedTuple):
    """An image and what is asked about it.

    Attributes:
      image: its name in every run.
      file: it.
      prompt: the words.
    """

    image: str
    file: ImageFile
    prompt: str


def read_questions(config: PpoConfig, checkpoint: Checkpoint, run_dir: Path) -> list[Question]:
    """All questions, in the order of the file or of the images' names.

    Raises:
      InputError: there are no images, or a row of the data cannot be used.
    """
    if config.images is None:
        raise InputError("ppo.images is not given; name the folder of images")
    if config.data is None:
        images = open_images(config.images, limit=config.limit)
        names = images.names(0, len(images))
        return [
            Question(name, images.file(name), choose_prompt(config.prompts, config.sampling.seed, name))
            for name in names
        ]
    encoder = Encoder(
        checkpoint.tokenizer,
        find_template(config.template),
        checkpoint.config.image_token_id,
        checkpoint.config.num_image_tokens,
        checkpoint.config.text.max_position_embeddings,
    )
    examples = usable_examples(
        config.data, config.images, encoder,
        skip=config.skip_bad, option="ppo.skip_bad", report=run_dir / "bad_rows.jsonl", writes=is_first(),
    )  # fmt: skip
    questions = [
        Question(_name(example.image, config.images), example.image, _words(example.turns[0].text))
        for example in examples
        if example.image is not None
    ]
    if without := len(examples) - len(questions):
        logger.warning("ppo: %d rows of %s have no image and are left out", without, config.data)
    if not questions:
        raise InputError(f"ppo.data: {config.data} has no row with an image")
    return questions[: config.limit or None]


def digest(questions: list[Question]) -> str:
    """Names them, whatever the order of the run."""
    content = json.dumps([[question.image, question.prompt] for question in questions])
    return hashlib.sha256(content.encode()).hexdigest()


def _name(image: ImageFile, images: str) -> str:
    """Below the folder of the images; of an image in a shard, what the shard calls it."""
    return os.path.relpath(image, images) if isinstance(image, Path) and str(image) != images else image.name


def _words(question: str) -> str:
    """Without the image's place, which is in front in any case."""
    return question.replace(IMAGE_PLACEHOLDER, "").strip()
