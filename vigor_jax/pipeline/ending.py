"""What is said when a stage ends because memory is full: which stage it was, and which options make it smaller."""

from collections.abc import Iterator
from contextlib import contextmanager

from vigor_jax import memory
from vigor_jax.config import TrainConfig
from vigor_jax.errors import RunEndedError
from vigor_jax.stages.score_config import as_config

# Sections of streams that judge on the devices, which are called as the streams.
_JUDGES = ("reward_model", "preference_reward", "clip", "clip_attributes")


@contextmanager
def naming_the_stage(stage: str, config: TrainConfig) -> Iterator[None]:
    """A context in which a stage runs.

    Raises:
      RunEndedError: memory is full.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if (what := memory.describe(error)) is None:
            raise
        raise RunEndedError(f"stage {stage}: {what}; {_advice(stage, config)}") from error


def _advice(stage: str, config: TrainConfig) -> str:
    section = getattr(config, stage, None)
    if stage == "score":
        streams = {as_config(stream).path for stream in config.score.streams}
        judges = [name for name in _JUDGES if name in streams] or _JUDGES
        first = "lower " + " or ".join(f"{name}.batch_size" for name in judges)
    elif stage == "evaluate":
        first = "lower evaluate.captions.batch_size or evaluate.answers.batch_size"
    else:
        options = {"accumulate": "raise", "max_length": "lower", "sampling": "lower"}
        parts = {"sampling": "sampling.batch_size"}
        found = [f"{verb} {stage}.{parts.get(name, name)}" for name, verb in options.items() if hasattr(section, name)]
        first = " or ".join(found)
    more = "take more devices (python -m vigor_jax.plan says how much each program needs)"
    return f"{first}, or {more}" if first else more
