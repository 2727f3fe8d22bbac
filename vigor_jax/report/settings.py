"""What a run was made with, in the words of the page: model, prompts, sampling, rewards, selection, training, date."""

import datetime
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}(?= \d{2}:\d{2})", re.ASCII)

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
    "Reward model": ("score.reward_model", "reward_model.per"),
    "Selection": (
        "select.strategy",
        "select.min_words",
        "select.refine",
        "select.continuations",
        "select.repetitions",
        "select.fusion.rule",
        "select.fusion.weights",
        "select.fusion.normalize",
        "select.fusion.per",
    ),
    "Fine-tuning": ("sft.data", "sft.epochs", "sft.batch_size", "sft.learning_rate", "sft.seed"),
    "Captions of the evaluation": ("evaluate.captions.temperature", "evaluate.captions.max_new_tokens"),
}
# What plays a part only where a stage or a stream does.
_STAGES = {
    "Images": "sample",
    "Prompt": "sample",
    "Temperature": "sample",
    "Sampling": "sample",
    "Rewards": "score",
    "Selection": "select",
    "Fine-tuning": "sft",
    "Captions of the evaluation": "evaluate",
}
LABELS = (*_SETTINGS, "Date")
_STREAMS = {"Detector": "detector", "Reward model": "reward_model"}


def describe_settings(config: Any, directory: Path) -> dict[str, list[str]]:
    """Label → lines, as far as a run says them.

    Args:
      config: its `config.yaml`, which may be of another version.
      directory: of the run; `log.txt` in it tells the date, or else the age of `config.yaml`.
    """
    stages, streams = _get(config, "run.stages"), _get(config, "score.streams")
    found: dict[str, list[str]] = {}
    for label, keys in _SETTINGS.items():
        if label in _STAGES and isinstance(stages, list) and _STAGES[label] not in stages:
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
    return found | ({"Date": [" – ".join(dates)]} if dates else {})


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
