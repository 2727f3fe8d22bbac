"""The whole configuration of a run, composed of the parts that each module owns."""

import dataclasses
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

from vigor_jax.errors import InputError
from vigor_jax.hf.hub import pinned
from vigor_jax.hf.options import ExportConfig, ModelConfig
from vigor_jax.parallel.config import Compiled, DistributedConfig, MeshConfig
from vigor_jax.rewards.claims.crops import ClipAttributesConfig
from vigor_jax.rewards.claims.stream import ClaimsConfig
from vigor_jax.rewards.detector_config import DetectionConfig, DetectorConfig
from vigor_jax.rewards.preference_reward_config import PreferenceRewardStreamConfig
from vigor_jax.rewards.reward_model_config import RewardModelConfig
from vigor_jax.rewards.verifier_config import ClipStreamConfig
from vigor_jax.stages.dpo_config import DpoConfig
from vigor_jax.stages.evaluate_config import EvaluateConfig
from vigor_jax.stages.pair_config import PairConfig
from vigor_jax.stages.ppo_config import PpoConfig
from vigor_jax.stages.preference_reward_config import PreferenceRewardConfig
from vigor_jax.stages.sample_config import SampleConfig
from vigor_jax.stages.score_config import ScoreConfig, as_config
from vigor_jax.stages.select_config import SelectConfig
from vigor_jax.stages.train_reward_config import TrainRewardConfig
from vigor_jax.training.config import SftConfig
from vigor_jax.training.trackers import Reporting, TrackerName

Detector = TypeVar("Detector", bound=DetectorConfig)
Stage: TypeAlias = Literal[
    "train_reward",
    "train_preference_reward",
    "sample",
    "score",
    "select",
    "pair",
    "sft",
    "dpo",
    "ppo",
    "export",
    "evaluate",
]


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Where a run lives and what it does.

    Attributes:
      dir: everything the run writes; the same command again continues from what it finds.
      stages: what to do, in this order.
      records: where candidates, verdicts, selections and targets are kept, if not in `dir`; may be remote, such as
        `gs://BUCKET/NAME`.
      rounds: how often to go through the stages, each time with the model that the last time exported (online; the
        paper's future work). More than one makes `dir/round-1`, `dir/round-2`, ...
      compiled: where compiled programs are kept for the next command: a folder, by default in the user's cache
        (docs/performance.md); off: nowhere.
      overwrite: remove what a changed setting has made stale, and make it again.
      report_to: experiment trackers that get the metrics of training too: wandb, trackio (docs/metrics.md).
      project: the project there; by default `WANDB_PROJECT` or `TRACKIO_PROJECT` of the environment, or vigor-jax.
      run_name: the run's name there, followed by the stage's; by default the name of `dir`.
    """

    dir: Path
    stages: tuple[Stage, ...] = ("sft", "export")
    records: str | None = None
    rounds: int = 1
    compiled: Compiled = None
    overwrite: bool = False
    report_to: tuple[TrackerName, ...] = ()
    project: str | None = None
    run_name: str | None = None

    @property
    def reporting(self) -> Reporting:
        """The trackers."""
        return Reporting(self.report_to, self.project, self.run_name or self.dir.resolve().name)

    def __post_init__(self) -> None:
        if not self.stages:
            raise InputError("run.stages: expected at least one stage, got none")
        if self.rounds < 1:
            raise InputError(f"run.rounds: expected at least 1, got {self.rounds}")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A run: `python -m vigor_jax.train --config F [--section.key value]`.

    Attributes:
      run: where, and which stages.
      model: the checkpoint to begin with.
      mesh: how the devices are arranged for training.
      inference_mesh: how they are for sampling and scoring: by default each holds all the weights.
      distributed: how processes find each other.
      train_reward: fine-tuning of the reward model.
      train_preference_reward: training of a reward model on preferences.
      sample: candidates of unlabeled images.
      score: which reward streams judge them.
      detection: the detector, if it does.
      reward_model: how the reward model judges, if it does.
      claims: what captions say of numbers, places, relations and attributes, if the detector's boxes judge it.
      clip_attributes: the CLIP that says whether attributes are right, if it does.
      clip: the verifier, a CLIP, if it does.
      preference_reward: how the reward model of preferences judges, if it does.
      select: which candidate is taken, and what is left of it.
      pair: preferences, of candidates or of next sentences.
      sft: supervised fine-tuning; on the run's own targets unless `data` names others.
      dpo: learning from preferences; from those that the stage pair made unless `data` names others.
      ppo: PPO with a reward for each token, from the streams that `score` names.
      export: the checkpoint to take home.
      evaluate: what the models before and after are asked.
    """

    run: RunConfig
    model: ModelConfig
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    inference_mesh: MeshConfig = dataclasses.field(default_factory=lambda: MeshConfig(data=-1, fsdp=1))
    distributed: DistributedConfig = dataclasses.field(default_factory=DistributedConfig)
    train_reward: TrainRewardConfig = dataclasses.field(default_factory=TrainRewardConfig)
    train_preference_reward: PreferenceRewardConfig = dataclasses.field(default_factory=PreferenceRewardConfig)
    sample: SampleConfig = dataclasses.field(default_factory=SampleConfig)
    score: ScoreConfig = dataclasses.field(default_factory=ScoreConfig)
    detection: DetectionConfig = dataclasses.field(default_factory=DetectionConfig)
    reward_model: RewardModelConfig = dataclasses.field(default_factory=RewardModelConfig)
    claims: ClaimsConfig = dataclasses.field(default_factory=ClaimsConfig)
    clip_attributes: ClipAttributesConfig = dataclasses.field(default_factory=ClipAttributesConfig)
    clip: ClipStreamConfig = dataclasses.field(default_factory=ClipStreamConfig)
    preference_reward: PreferenceRewardStreamConfig = dataclasses.field(default_factory=PreferenceRewardStreamConfig)
    select: SelectConfig = dataclasses.field(default_factory=SelectConfig)
    pair: PairConfig = dataclasses.field(default_factory=PairConfig)
    sft: SftConfig = dataclasses.field(default_factory=SftConfig)
    dpo: DpoConfig = dataclasses.field(default_factory=DpoConfig)
    ppo: PpoConfig = dataclasses.field(default_factory=PpoConfig)
    export: ExportConfig = dataclasses.field(default_factory=ExportConfig)
    evaluate: EvaluateConfig = dataclasses.field(default_factory=EvaluateConfig)


def with_pinned_models(config: TrainConfig) -> TrainConfig:
    """The config with the commit of each model that is named on the Hub, so that all stages, all rounds and whoever
    reads `config.yaml` mean the same one. Those that only judge count where responses are scored.

    Raises:
      InputError: one cannot be fetched and is not in the cache.
    """
    model, reward_model, detection = config.model, config.score.reward_model, config.detection
    judges = not {"score", "pair", "ppo"}.isdisjoint(config.run.stages)
    if judges:
        second = detection.second and _with_pinned_weights(detection.second)
        detection = dataclasses.replace(_with_pinned_weights(detection), second=second)
    streams = {as_config(stream).path for stream in config.score.streams} if judges else set()
    verifier, crops = (
        pinned(section.model) if section.model and name in streams else section.model
        for name, section in (("clip", config.clip), ("clip_attributes", config.clip_attributes))
    )
    preference_reward = config.preference_reward
    if "preference_reward" in streams:
        above, below = (model and pinned(model) for model in (preference_reward.model, preference_reward.base))
        preference_reward = dataclasses.replace(preference_reward, model=above, base=below)
    tower, adapter = (name and pinned(name) for name in (model.vision_tower, model.adapter))
    return dataclasses.replace(
        config,
        model=dataclasses.replace(model, path=pinned(model.path), vision_tower=tower, adapter=adapter),
        score=dataclasses.replace(config.score, reward_model=reward_model and pinned(reward_model)),
        detection=detection,
        clip_attributes=dataclasses.replace(config.clip_attributes, model=crops),
        clip=dataclasses.replace(config.clip, model=verifier),
        preference_reward=preference_reward,
    )


def _with_pinned_weights(detector: Detector) -> Detector:
    """The other backend reads nothing from the Hub."""
    if not detector.model or detector.backend != "transformers":
        return detector
    return dataclasses.replace(detector, model=pinned(detector.model))
