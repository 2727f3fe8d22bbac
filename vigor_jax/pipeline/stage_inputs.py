"""What decides on the result of each stage: a change of it makes the stage stale, and all that follow it."""

from pathlib import Path
from typing import Any

from vigor_jax.config import TrainConfig
from vigor_jax.data.records.checksum import SUFFIX
from vigor_jax.data.records.store import join
from vigor_jax.hf.load import Checkpoint, open_checkpoint
from vigor_jax.inference.sampling_methods import NOT_IN_RESULTS
from vigor_jax.pipeline.manifest import StageInputs, settings_of
from vigor_jax.rewards.detection import NOT_IN_VERDICTS
from vigor_jax.rewards.reward_model import NOT_IN_DIGEST
from vigor_jax.stages.score import stream_class
from vigor_jax.stages.sft import NOT_IN_FINGERPRINT, file_digest
from vigor_jax.training.resumption import places_file

# Names below the run directory.
REWARD_MODEL, EXPORT, TARGETS, EVALUATION = "reward_model", "export", "targets.json", "evaluation"


def stage_inputs(config: TrainConfig, checkpoint: Checkpoint) -> list[StageInputs]:
    """All stages that a config can be asked for, each after those that it reads.

    Which of them are to be run plays no part, so `run.stages` may name any at any time.

    Args:
      config: of one round.
      checkpoint: the policy, opened.

    Raises:
      InputError: the given reward model cannot be opened.
    """
    run_dir, records = config.run.dir, config.run.records or config.run.dir
    model = {
        "model": checkpoint.digest(),
        "model.tokenizer": checkpoint.tokenizer.digest(),
        "model.dtype": config.model.dtype,
    }
    scores = tuple(map(score_name, config.score.streams))
    stages = [
        StageInputs(
            "train_reward",
            model | _training("train_reward", config.train_reward, config.train_reward.annotations),
            (),
            (run_dir / "checkpoints" / "train_reward", run_dir / REWARD_MODEL, places_file(run_dir, "train_reward")),
        ),
        StageInputs(
            "sample",
            # The images are told apart by the candidates' own metadata, which can say which are gone.
            model | settings_of("sample", config.sample, ("images", *NOT_IN_RESULTS)),
            (),
            (join(records, "candidates"),),
        ),
    ]
    for spec, name in zip(config.score.streams, scores, strict=True):
        is_own = spec == "reward_model" and config.score.reward_model is None
        after = ("sample", "train_reward") if is_own else ("sample",)
        folder = join(records, "verdicts", stream_class(spec).name)
        stages.append(StageInputs(name, _scoring(spec, config), after, (folder,)))
    written = ("selections", "targets", TARGETS, TARGETS + SUFFIX, "summary.json")
    selected = tuple(join(records, name) for name in written)
    return [
        *stages,
        StageInputs("select", settings_of("select", config.select), ("sample", *scores), selected),
        StageInputs(
            "sft",
            model | _training("sft", config.sft, config.sft.data),
            () if config.sft.data else ("select",),
            (run_dir / "checkpoints" / "sft", places_file(run_dir, "sft")),
        ),
        StageInputs("export", settings_of("export", config.export), ("sft",), (run_dir / EXPORT,)),
        StageInputs("evaluate", _evaluation(config, model), ("export",), (run_dir / EVALUATION,)),
    ]


def score_name(spec: str) -> str:
    """What scoring by one stream is called among the stages."""
    return f"score.{spec}"


def _training(section: str, settings: Any, data: Path | None) -> dict[str, Any]:
    content = {f"{section}.data": file_digest(data)} if data and data.is_file() else {}
    return settings_of(section, settings, NOT_IN_FINGERPRINT) | content


def _evaluation(config: TrainConfig, model: dict[str, Any]) -> dict[str, Any]:
    asked = config.evaluate
    files = [path for path in (*asked.objects, asked.synonyms, *asked.pope) if path and path.is_file()]
    content = {"evaluate.files": [file_digest(path) for path in files]}
    return model | settings_of("evaluate", asked, NOT_IN_RESULTS) | content


def _scoring(spec: str, config: TrainConfig) -> dict[str, Any]:
    if spec == "detector":
        return settings_of("detection", config.detection, NOT_IN_VERDICTS)
    if spec == "reward_model":
        given = config.score.reward_model
        judge = open_checkpoint(given, config.model.vision_tower) if given else None
        weights, tokenizer = (judge.digest(), judge.tokenizer.digest()) if judge else (None, None)
        settings = settings_of("reward_model", config.reward_model, NOT_IN_DIGEST)
        judge_of = {"score.reward_model": weights, "score.reward_model.tokenizer": tokenizer}
        return settings | judge_of | {"model.dtype": config.model.dtype}
    return {}
