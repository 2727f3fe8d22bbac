"""A training checkpoint → a directory that transformers or the original LLaVA code loads."""

import functools
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

import vigor_jax
from vigor_jax import fingerprint
from vigor_jax.data.text.conversation import TEMPLATES
from vigor_jax.errors import InputError
from vigor_jax.hf.export import export_checkpoint, find_layout
from vigor_jax.hf.hub import origin
from vigor_jax.hf.load import Checkpoint
from vigor_jax.hf.options import ExportConfig
from vigor_jax.hf.peft import check_begun_with
from vigor_jax.hf.reward_head import RewardHead
from vigor_jax.hf.weights.merged import Rounding
from vigor_jax.json_fields import Fields, exists, read_json
from vigor_jax.models.lora import add_lora
from vigor_jax.models.lora_config import LoraConfig
from vigor_jax.models.vlm import abstract_model, param_paths
from vigor_jax.parallel.processes import is_first
from vigor_jax.parallel.sharding import param_shardings
from vigor_jax.stages.exported_readme import PROVENANCE as PROVENANCE
from vigor_jax.stages.exported_readme import put_aside, put_back
from vigor_jax.stages.stage import EXPORT, Lazy, Progress, Result, RunContext, Stage
from vigor_jax.training.checkpoint import latest_step, read_record, restore_params_only
from vigor_jax.training.config import TrainingConfig
from vigor_jax.training.heads import head_paths, with_abstract_head
from vigor_jax.training.train_step import trained_in

logger = logging.getLogger(__name__)

# In the provenance: which part of an adapter's update survived the rounding to the type of the file, where merged.
UPDATE_KEPT = "update_kept"


def export(
    config: ExportConfig, checkpoint: Checkpoint, checkpoints: Path, out: Path, mesh: Mesh, *, head: str = ""
) -> None:
    """Writes the latest checkpoint of a training stage; does nothing where `out` holds just that already.

    Args:
      config: layout and types.
      checkpoint: the checkpoint that training began with.
      checkpoints: directory that `stages.sft` returned.
      out: replaced if it holds an earlier export of this run, but for what people have written into its README.md;
        refused if anything else.
      mesh: the trained weights pass through its devices.
      head: the name of the head that was trained with a reward model, if one was.

    Raises:
      InputError: there is no checkpoint, it is of another model, or `out` holds something else.
    """
    step = latest_step(checkpoints)
    if step is None:
        raise InputError(f"export: no checkpoint in {checkpoints}; run the stage sft first")
    record = Fields(read_record(checkpoints, step), checkpoints / str(step) / "record" / "record.json")
    trained_with = Fields(record.values["fingerprint"], record.path, "fingerprint.")
    template = trained_with.text("template", None, null=True)
    trained_as = TrainingConfig(freeze=trained_with.texts("freeze"), lora=_lora(trained_with))
    provenance = {
        "made_by": f"vigor_jax {vigor_jax.__version__}",
        "base": origin(checkpoint.directory.resolve()),
        "checkpoint": os.path.relpath(checkpoints, out),  # so that a run may be moved
        "step": step,
        "template": template,
        "training": trained_with.values,
        "layout": find_layout(config.layout, checkpoint, trained_as.lora),
        "dtype": config.dtype,
    }
    before = read_json(out / PROVENANCE) if exists(out / PROVENANCE) else {}
    if {key: value for key, value in before.items() if key != UPDATE_KEPT} == provenance:
        logger.info("export: %s holds step %d already", out, step)
        return
    check_begun_with(record, checkpoint)
    if before.get("checkpoint") == provenance["checkpoint"] and is_first():
        put_aside(out)
        shutil.rmtree(out)

    model = abstract_model(checkpoint.config)
    whole = add_lora(model, trained_as.lora) if trained_as.lora else model
    trained = trained_in(param_paths(nnx.state(whole)).keys(), trained_as)
    if head:
        with_abstract_head(whole, head)
        trained |= head_paths(head)
    state = nnx.state(whole)
    shardings = param_paths(param_shardings(state, mesh))
    abstract = {
        path: jax.ShapeDtypeStruct(variable.get_value().shape, jnp.float32, sharding=shardings[path].get_value())
        for path, variable in param_paths(state).items()
        if path in trained
    }
    params = restore_params_only(checkpoints, abstract, step)
    own = [np.asarray(params.pop(f"{head}.{part}")) for part in ("kernel", "bias")] if head else None
    export_checkpoint(
        checkpoint,
        params,
        out,
        layout=config.layout,
        dtype=config.dtype,
        shard_bytes=config.shard_bytes,
        more_files=lambda rounding: {PROVENANCE: provenance | _kept(rounding)},
        template=TEMPLATES.get(template or ""),
        lora=trained_as.lora,
        head=RewardHead(own[0], float(own[1])) if own else None,
    )
    if is_first():
        put_back(out)
    logger.info("export: step %d is in %s", step, out)


def _kept(rounding: Rounding) -> dict[str, float]:
    return {} if rounding.share is None else {UPDATE_KEPT: round(rounding.share, 4)}


def _lora(trained_with: Fields) -> LoraConfig | None:
    """The adapter that a stage trained, by the fingerprint of its run."""
    if (rank := trained_with.integer("lora.rank", None, least=1, most=1 << 20)) is None:
        return None
    alpha = trained_with.number("lora.alpha", LoraConfig.alpha, least=0, most=1e9)
    parts = {name: trained_with.texts(f"lora.{name}") for name in ("target", "also")}
    return LoraConfig(rank, alpha, **parts, rslora=trained_with.boolean("lora.rslora", False))


class ExportStage(Stage):
    """The latest checkpoint of a training stage → a directory that others load.

    Args:
      config: layout and types.
      of: the training stage.
      lora: the adapter that it trains, if it does.
    """

    name = "export"

    def __init__(self, config: ExportConfig, of: str, *, lora: LoraConfig | None = None) -> None:
        self._config, self._of, self._lora = config, of, lora

    def results(self, context: RunContext) -> list[Result]:
        settings = Lazy(functools.partial(self._settings, context))
        return [Result(self.name, settings, (self._of,), (context.dir / EXPORT,))]

    def _settings(self, context: RunContext) -> dict[str, Any]:
        find_layout(self._config.layout, context.checkpoint, self._lora)  # now rather than after training
        return fingerprint.of(self._config, self.name)

    def run(self, context: RunContext, progress: Progress) -> None:
        progress.begin(self.name)
        checkpoints = context.dir / "checkpoints" / self._of
        export(self._config, context.checkpoint, checkpoints, context.dir / EXPORT, context.training_mesh)

    def before_removal(self, context: RunContext) -> None:
        put_aside(context.dir / EXPORT)
