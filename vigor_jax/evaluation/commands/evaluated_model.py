"""The model that an evaluation command asks; commands import this only then, for it brings JAX."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from vigor_jax.data.images.store import Images, open_images
from vigor_jax.errors import InputError
from vigor_jax.evaluation.commands.evaluated_model_config import EvaluatedModelConfig
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
        protocol: str = "",
    ) -> list[str]:
        """The model's answers.

        Args:
          name: of the file that they are kept in.
          asked: image and words of each question; no image is "".
          paths: image → file; by default `images`.
          protocol: whose words these are; stands with the answers' settings, and must stay the same.

        Raises:
          InputError: an image is missing or cannot be read, or there are answers of another model.
        """
        if paths is None:
            paths = self.images if any(image for image, _ in asked) else {}
        if gone := [image for image, _ in asked if image and image not in paths]:
            raise InputError(
                f"{name}: image {gone[0]} is not in {self._config.images} ({len(gone)} questions lack theirs); check "
                "--images"
            )
        questions = [Question(image, paths[image] if image else None, words) for image, words in asked]
        settings = {"protocol": protocol} if protocol else {}
        out = self._out / f"{name}.jsonl"
        return self._predictor.ask(questions, out, self._config.sampling, desc=name, settings=settings)
