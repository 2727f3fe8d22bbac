"""A CLIP that judges attributes, in a run: what its verdicts depend on, how it is opened, and what it compiles."""

import functools
import logging
from typing import Any

from vigor_jax import fingerprint
from vigor_jax.hf.clip.checkpoint import ClipCheckpoint
from vigor_jax.parallel.processes import is_first
from vigor_jax.rewards.claims.clip_attributes import ClipAttributeStream, made_of_clip
from vigor_jax.rewards.claims.crops import ClipAttributesConfig
from vigor_jax.rewards.claims.stream import ClaimsConfig
from vigor_jax.rewards.phrases import PhrasesConfig
from vigor_jax.stages.clip_stream import image_program, open_model
from vigor_jax.stages.programs import Program, Target
from vigor_jax.stages.stage import RunContext

logger = logging.getLogger(__name__)

# What a plan calls a pass over crops, and with how many crops it reckons. A caption by LLaVA-13B makes 0.6 such claims,
# so five captions of an image are about three things, and of some there are several.
PROGRAM, CROPS_PER_IMAGE = "crops", 4


class ClipAttributesJudge:
    """A run's CLIP for attributes, which is opened when it is first asked for.

    Args:
      config: its section.
      claims: how claims are read.
      phrases: how things are found.
    """

    def __init__(self, config: ClipAttributesConfig, claims: ClaimsConfig, phrases: PhrasesConfig) -> None:
        self._config, self._claims, self._phrases = config, claims, phrases

    @functools.cached_property
    def checkpoint(self) -> ClipCheckpoint:
        self._config.check_given()
        return open_model(self._config.model, "clip_attributes.model")

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """What the verdicts depend on.

        Raises:
          InputError: the CLIP cannot be used.
        """
        read = {"claims.judge.iou": self._claims.judge.iou} | fingerprint.of(self._claims.words, "claims.words")
        phrases = fingerprint.of(self._phrases, "detection.phrases")
        own = {"clip_attributes.model": made_of_clip(self.checkpoint)}
        return fingerprint.of(self._config, "clip_attributes") | own | read | phrases

    def open(self, context: RunContext) -> ClipAttributeStream:
        """The stream."""
        if is_first():
            logger.info("clip_attributes: CLIP %s", self.checkpoint.origin)
        return ClipAttributeStream(self.checkpoint, self._config, self._claims, self._phrases, context.inference_mesh)

    def program(self, stage: str, target: Target) -> Program:
        """What a pass over crops compiles; phrases are embedded once each."""
        return image_program(stage, PROGRAM, self._config.model, self._config.batch_size, target)
