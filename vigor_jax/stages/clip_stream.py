"""The verifier's stream in a run: what its verdicts depend on, how it is opened, and what it compiles."""

import dataclasses
import functools
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vigor_jax import fingerprint
from vigor_jax.errors import InputError
from vigor_jax.hf.clip.checkpoint import ClipCheckpoint, compare_towers, open_clip
from vigor_jax.hf.clip.config import read_config
from vigor_jax.models.clip import ClipPairConfig
from vigor_jax.parallel.processes import is_first
from vigor_jax.parallel.sharding import round_up_batch
from vigor_jax.rewards.clip import ClipStream, check_made_of
from vigor_jax.rewards.clip_baselines import Baselines
from vigor_jax.rewards.clip_towers import DTYPE
from vigor_jax.rewards.verifier import made_of, read_entities
from vigor_jax.rewards.verifier_config import ClipStreamConfig
from vigor_jax.stages.programs import Program, Target, array, bytes_held, for_inference
from vigor_jax.stages.stage import RunContext

logger = logging.getLogger(__name__)


class ClipJudge:
    """A run's verifier, which is opened when it is first asked for.

    Args:
      config: its section.
    """

    def __init__(self, config: ClipStreamConfig) -> None:
        self._config = config

    @functools.cached_property
    def checkpoint(self) -> ClipCheckpoint:
        self._config.check_given()
        return open_model(self._config.model, "clip.model")

    @functools.cached_property
    def baselines(self) -> Baselines:
        self._config.check_given()
        assert self._config.baselines is not None
        return Baselines.read(self._config.baselines)

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """What the verdicts depend on.

        Raises:
          InputError: the verifier, its words or its baselines cannot be used.
        """
        found = made_of(self.checkpoint, self._config, read_entities(self._config))
        check_made_of(self.baselines, found, str(self._config.baselines))
        content = fingerprint.plain(dataclasses.asdict(self.baselines))
        files = {
            "clip.model": found["verifier"],
            "clip.entities": found["entities"],
            "clip.baselines": fingerprint.digest(content),
        }
        return fingerprint.of(self._config, "clip") | files

    def open(self, context: RunContext) -> ClipStream:
        """The stream; says whether the policy sees with the same weights."""
        if is_first():
            logger.info(
                "clip: verifier %s; %s", self.checkpoint.origin, compare_towers(self.checkpoint, context.checkpoint)
            )
        return ClipStream(self.checkpoint, self._config, context.inference_mesh, self.baselines)

    def program(self, stage: str, target: Target) -> Program:
        """What a pass over images compiles; words are embedded once, in seconds."""
        return image_program(stage, "verifier", self._config.model, self._config.batch_size, target)


def open_model(model: str | Path | None, option: str) -> ClipCheckpoint:
    """The CLIP that an option names.

    Raises:
      InputError: as `open_clip`; names the option.
    """
    assert model is not None
    try:
        return open_clip(model)
    except InputError as error:
        raise InputError(f"{option}: {error}") from None


def image_program(stage: str, name: str, model: str | Path | None, batch_size: int, target: Target) -> Program:
    """A pass of a CLIP over images; of ViT-L/14 at 336 pixels where it is not on this disk."""
    path = Path(model or "")
    sizes = read_config(path) if (path / "config.json").is_file() else ClipPairConfig()
    mesh = target.inference_mesh
    rows, edge = round_up_batch(batch_size, mesh), sizes.vision.image_size
    whole = for_inference(sizes, jnp.dtype(DTYPE), mesh)
    graphdef, weights = nnx.split(whole)
    of_text = bytes_held(nnx.state((whole.text_model, whole.text_projection)))  # no argument of a pass over images
    pixels = array(mesh, (rows, edge, edge, 3), jnp.uint8)

    def embed(weights: nnx.State, pixels: jax.Array) -> Any:
        with jax.default_matmul_precision("highest"):
            return nnx.merge(graphdef, weights).embed_images(pixels)

    def lower() -> Any:
        with jax.set_mesh(mesh):
            return jax.jit(embed, out_shardings=NamedSharding(mesh, P())).lower(weights, pixels)

    flops = sizes.vision.forward_flops(sizes.vision.num_layers, images=rows)
    held, tokens = bytes_held(weights), sizes.vision.num_patches + 1
    return Program(stage, name, lower, flops, held, rows, tokens, held_by_others=of_text)
