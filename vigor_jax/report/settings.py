"""What a run was made with, in the words of the page: model, prompts, sampling, rewards, selection, training, date."""

import datetime
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vigor_jax.json_fields import Fields
from vigor_jax.percent import percent

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}(?= \d{2}:\d{2})", re.ASCII)


def _adapter(stage: str) -> tuple[str, ...]:
    return tuple(f"{stage}.lora.{name}" for name in ("rank", "alpha", "target", "also", "rslora"))


# Label → keys of the config that say it. A key that is there says its value; two and more say their names, too.
_SETTINGS = {
    "Model": ("model.path",),
    "Images": ("sample.images",),
    "Prompt": ("sample.prompts",),
    "Temperature": ("sample.sampling.temperature",),
    "Sampling": (
        "sample.sampling.num_candidates",
        "sample.sampling.top_p",
        "sample.sampling.top_k",
        "sample.sampling.max_new_tokens",
        "sample.sampling.seed",
    ),
    "Rewards": ("score.streams",),
    "Detector": ("detection.model", "detection.addresses", "detection.box_threshold", "detection.text_threshold"),
    "Second detector": (
        "detection.second.model",
        "detection.second.addresses",
        "detection.second.box_threshold",
        "detection.second.text_threshold",
    ),
    "Reward model": ("score.reward_model", "reward_model.per"),
    "Adapter of the reward model": _adapter("train_reward"),
    "Reward model of preferences": ("preference_reward.model", "preference_reward.captions"),
    "Adapter of the reward model of preferences": _adapter("train_preference_reward"),
    "CLIP of attributes": (
        "clip_attributes.model",
        "clip_attributes.template",
        "clip_attributes.margin",
        "clip_attributes.least_right",
        "clip_attributes.most_wrong",
        "clip_attributes.least_rival",
    ),
    "Verifier": (
        "clip.model",
        "clip.baselines",
        "clip.entities",
        "clip.per",
        "clip.scale",
        "clip.margin",
        "clip.margin_unit",
        "clip.margin_sign",
    ),
    "Selection": (
        "select.strategy",
        "select.min_words",
        "select.refine",
        "select.claims",
        "select.continuations",
        "select.repetitions",
        "select.boxes",
        "select.fusion.rule",
        "select.fusion.weights",
        "select.fusion.normalize",
        "select.fusion.per",
    ),
    "Fine-tuning": ("sft.data", "sft.epochs", "sft.batch_size", "sft.learning_rate", "sft.seed"),
    "Adapter of the fine-tuning": _adapter("sft"),
    "Pairs": ("pair.kind", "pair.match_lengths"),
    "Pairs of responses": (
        "pair.chosen",
        "pair.rejected",
        "pair.margin",
        "pair.per_image",
        "pair.all_ranked",
    ),
    "Pairs of sentences": (
        "pair.wrong",
        "pair.per_step",
        "pair.max_sentences",
        "pair.sampling.num_candidates",
        "pair.sampling.temperature",
        "pair.sampling.max_new_tokens",
        "pair.sampling.seed",
    ),
    "Preferences": (
        "dpo.data",
        "dpo.form",
        "dpo.loss",
        "dpo.beta",
        "dpo.label_smoothing",
        "dpo.length_normalized",
        "dpo.changed_weight",
        "dpo.pair_factor",
        "dpo.sft_factor",
        "dpo.image_factor",
        "dpo.image_term",
        "dpo.anchor_factor",
        "dpo.epochs",
        "dpo.batch_size",
        "dpo.learning_rate",
        "dpo.seed",
    ),
    "Adapter of the preferences": _adapter("dpo"),
    "PPO": (
        "ppo.data",
        "ppo.images",
        "ppo.prompts",
        "ppo.limit",
        "ppo.epochs",
        "ppo.batch_size",
        "ppo.minibatch",
        "ppo.ppo_epochs",
        "ppo.learning_rate",
        "ppo.clip_range",
        "ppo.baseline",
        "ppo.kl",
        "ppo.kl_in",
        "ppo.kl_factor",
        "ppo.kl_target",
        "ppo.missing_eos",
        "ppo.seed",
    ),
    "Responses of PPO": (
        "ppo.sampling.num_candidates",
        "ppo.sampling.max_new_tokens",
        "ppo.sampling.seed",
    ),
    "Rewards of tokens": (
        "ppo.token_rewards.reward_at",
        "ppo.token_rewards.mentions",
        "ppo.token_rewards.positive",
        "ppo.token_rewards.negative",
        "ppo.token_rewards.repetition",
        "ppo.token_rewards.weights",
        "ppo.token_rewards.normalize",
    ),
    "Adapter of PPO": _adapter("ppo"),
    "Captions of the evaluation": ("evaluate.captions.temperature", "evaluate.captions.max_new_tokens"),
}
# What plays a part only where a stage or a stream does.
_STAGES = {
    "Images": ("sample", "pair"),
    "Prompt": ("sample", "pair"),
    "Temperature": ("sample",),
    "Sampling": ("sample",),
    "Rewards": ("score", "pair", "ppo"),
    "Adapter of the reward model": ("train_reward",),
    "Adapter of the reward model of preferences": ("train_preference_reward",),
    "Selection": ("select",),
    "Fine-tuning": ("sft",),
    "Adapter of the fine-tuning": ("sft",),
    "Pairs": ("pair",),
    "Pairs of responses": ("pair",),
    "Pairs of sentences": ("pair",),
    "Preferences": ("dpo",),
    "Adapter of the preferences": ("dpo",),
    "PPO": ("ppo",),
    "Responses of PPO": ("ppo",),
    "Rewards of tokens": ("ppo",),
    "Adapter of PPO": ("ppo",),
    "Captions of the evaluation": ("evaluate",),
}
_KINDS = {"Pairs of responses": "responses", "Pairs of sentences": "sentences"}  # of `pair.kind`
LABELS = (*_SETTINGS, "Export", "Date")
_STREAMS = {
    "Detector": "detector",
    "Second detector": "detector",
    "Reward model": "reward_model",
    "CLIP of attributes": "clip_attributes",
    "Verifier": "clip",
    "Reward model of preferences": "preference_reward",
}


def describe_settings(config: Any, directory: Path) -> dict[str, list[str]]:
    """Label → lines, as far as a run says them.

    Args:
      config: its `config.yaml`, which may be of another version.
      directory: of the run; `log.txt` in it tells the date, or else the age of `config.yaml`.
    """
    stages, streams = _get(config, "run.stages"), _get(config, "score.streams")
    found: dict[str, list[str]] = {}
    for label, keys in _SETTINGS.items():
        if label in _STAGES and isinstance(stages, list) and not set(_STAGES[label]).intersection(map(str, stages)):
            continue
        if label in _KINDS and _get(config, "pair.kind") != _KINDS[label]:
            continue
        if label in _STREAMS and _STREAMS[label] not in (streams or ()):
            continue
        values = {
            key.rsplit(".", 1)[1]: value for key in keys if (value := _get(config, key)) not in (None, [], {}, "")
        }
        if len(keys) == 1:
            lines = [line for value in values.values() for line in _lines(value)]
        else:
            lines = [f"{name.replace('_', ' ')}: {', '.join(_lines(value))}" for name, value in values.items()]
        found |= {label: lines} if lines else {}
    dates = _dates(directory)
    found |= {"Export": lines} if (lines := _export(directory / "export" / "vigor_jax.json")) else {}
    return found | ({"Date": [" – ".join(dates)]} if dates else {})


def _export(record: Path) -> list[str]:
    """What the run's export is, as its record says.

    Raises:
      InputError: the record is damaged.
    """
    if not record.is_file():
        return []
    fields = Fields.read(record)
    lines = [f"{key}: {value}" for key in ("layout", "dtype") if (value := fields.text(key, None, null=True))]
    kept = fields.number("update_kept", None, least=-10, most=10)
    return lines + ([] if kept is None else [f"{percent(kept)}% of the adapter’s update survived the rounding"])


def _lines(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [f"{name} {each}" for name, each in value.items()]
    if isinstance(value, list):
        return [_stream(each) if isinstance(each, Mapping) else str(each) for each in value]
    return [{True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)]


def _stream(given: Mapping[str, Any]) -> str:
    """A stream with options: `my.py:Stream (threshold 0.5, names a, b)`."""
    options = given.get("options")
    words = (
        [f"{name.replace('_', ' ')} {', '.join(_lines(each))}" for name, each in options.items()]
        if isinstance(options, Mapping)
        else []
    )
    return f"{given.get('path', '')} ({', '.join(words)})" if words else str(given.get("path", ""))


def _get(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = config.get(name) if isinstance(config, Mapping) else None
    return config


def _dates(directory: Path) -> list[str]:
    """The first and the last day on which the run did something, once if they are one."""
    log, config = directory / "log.txt", directory / "config.yaml"
    if log.exists():
        with log.open(encoding="utf-8", errors="replace") as file:
            days = [match[0] for line in file if (match := _DATE.match(line))]
        if days:
            return list(dict.fromkeys((min(days), max(days))))
    if not config.exists():
        return []
    return [datetime.datetime.fromtimestamp(config.stat().st_mtime).date().isoformat()]
