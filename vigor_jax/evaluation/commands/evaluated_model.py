"""The model that an evaluation command asks; commands import this only then, for it brings JAX."""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from vigor_jax.data.images.store import Images, open_images
from vigor_jax.errors import InputError
from vigor_jax.evaluation.answer_sampling import AnswerSampling, by_protocol, kept_with, told_by
from vigor_jax.evaluation.commands.evaluated_model_config import EvaluatedModelConfig
from vigor_jax.evaluation.protocol import Protocol
from vigor_jax.hf.load import open_checkpoint
from vigor_jax.inference.predictor import Predictor, Question
from vigor_jax.parallel.compilation_cache import keep_compiled
from vigor_jax.parallel.processes import is_first
from vigor_jax.parallel.sharding import join_processes, make_mesh
from vigor_jax.records import ImageFile


class EvaluatedModel:
    """Asks a model, and keeps what it says in a folder.

    Args:
      config: which model.
      out: gets a file of answers for each name that `answer` is given.

    Attributes:
      is_first: whether this process writes what all would write.

    Raises:
      InputError: no model is given, or one that cannot be used.
    """

    def __init__(self, config: EvaluatedModelConfig, out: Path) -> None:
        if config.model is None:
            raise InputError("--model is not given; name the directory of the model that is asked")
        join_processes(config.distributed)
        keep_compiled(config.compiled)
        self._config, self._out = config, out
        checkpoint = open_checkpoint(config.model, config.vision_tower, config.adapter)
        self._predictor = Predictor(checkpoint, config.template, make_mesh(config.mesh), dtype=config.dtype)
        self.is_first = is_first()

    def at(self, out: Path, images: str | None) -> "EvaluatedModel":
        """The same model, with its weights, which looks for images at another place and keeps its answers in `out`."""
        other = copy.copy(self)
        other.__dict__.pop("images", None)
        other._config, other._out = dataclasses.replace(self._config, images=images), out
        return other

    @cached_property
    def images(self) -> Images:
        """The images there are."""
        if self._config.images is None:
            raise InputError("--images is not given; name the folder of the images")
        return open_images(self._config.images)

    def answer(
        self,
        name: str,
        asked: Sequence[tuple[str, str]],
        paths: Mapping[str, ImageFile] | None = None,
        *,
        protocol: Protocol | None = None,
    ) -> list[str]:
        """The model's answers.

        Args:
          name: of the file that they are kept in.
          asked: image and words of each question; no image is "".
          paths: image → file; by default `images`.
          protocol: by which these words are asked; stands with the answers' settings, and must stay the same.

        Raises:
          InputError: an image is missing or cannot be read, there are answers of another model or protocol, or the
            options say otherwise than the protocol.
        """
        if paths is None:
            paths = self.images if any(image for image, _ in asked) else {}
        if gone := [image for image, _ in asked if image and image not in paths]:
            raise InputError(
                f"{name}: image {gone[0]} is not in {self._config.images} ({len(gone)} questions lack theirs); check "
                "--images"
            )
        questions = [Question(image, paths[image] if image else None, words) for image, words in asked]
        settings = kept_with(protocol) if protocol else {}
        out = self._out / f"{name}.jsonl"
        return self._predictor.ask(questions, out, self._sampling(protocol), desc=name, settings=settings)

    def asking(self, protocol: Protocol) -> Protocol:
        """The protocol with how this model's answers are drawn, where it does not say."""
        return told_by(protocol, self._sampling(protocol))

    def _sampling(self, protocol: Protocol | None) -> AnswerSampling:
        if protocol is None:
            return self._config.sampling
        if protocol.template is not None and self._config.template != protocol.template:
            raise InputError(
                f"--template: protocol {protocol.name} has {protocol.template}, got {self._config.template}; give that "
                "one"
            )
        return by_protocol(self._config.sampling, protocol)
