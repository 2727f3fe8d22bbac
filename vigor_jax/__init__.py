"""ViGoR in JAX: vision-language models that say only what they see.

Everything in `__all__` is imported when it is first used; docs/api.md shows it at work.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vigor_jax.api.claims import Claims as Claims
    from vigor_jax.api.models import Detector as Detector
    from vigor_jax.api.models import Judgment as Judgment
    from vigor_jax.api.models import RewardModel as RewardModel
    from vigor_jax.api.models import load as load
    from vigor_jax.api.selection import Chosen as Chosen
    from vigor_jax.api.selection import Fused as Fused
    from vigor_jax.api.selection import Sentence as Sentence
    from vigor_jax.api.selection import choose as choose
    from vigor_jax.api.selection import fuse as fuse
    from vigor_jax.api.selection import phrases as phrases
    from vigor_jax.api.selection import refine as refine
    from vigor_jax.api.selection import sentences as sentences
    from vigor_jax.api.training import export as export
    from vigor_jax.api.training import run as run
    from vigor_jax.api.training import sft as sft
    from vigor_jax.config import TrainConfig as TrainConfig
    from vigor_jax.errors import InputError as InputError
    from vigor_jax.inference.policy import Policy as Policy
    from vigor_jax.inference.responses import Response as Response
    from vigor_jax.inference.responses import ResponseLogprobs as ResponseLogprobs
    from vigor_jax.parallel.config import MeshConfig as MeshConfig
    from vigor_jax.records import Signal as Signal
    from vigor_jax.rewards.mentions import Phrase as Phrase
    from vigor_jax.rewards.phrases import PhrasesConfig as PhrasesConfig
    from vigor_jax.rewards.refine import Refined as Refined

__version__ = "0.1.0"  # the only place: pyproject.toml reads it from here

_PLACES = {
    "vigor_jax.api.claims": ("Claims",),
    "vigor_jax.api.models": ("Detector", "Judgment", "RewardModel", "load"),
    "vigor_jax.api.selection": ("Chosen", "Fused", "Sentence", "choose", "fuse", "phrases", "refine", "sentences"),
    "vigor_jax.api.training": ("export", "run", "sft"),
    "vigor_jax.config": ("TrainConfig",),
    "vigor_jax.errors": ("InputError",),
    "vigor_jax.inference.policy": ("Policy",),
    "vigor_jax.inference.responses": ("Response", "ResponseLogprobs"),
    "vigor_jax.parallel.config": ("MeshConfig",),
    "vigor_jax.records": ("Signal",),
    "vigor_jax.rewards.mentions": ("Phrase",),
    "vigor_jax.rewards.phrases": ("PhrasesConfig",),
    "vigor_jax.rewards.refine": ("Refined",),
}  # fmt: skip
_PLACE = {name: place for place, names in _PLACES.items() for name in names}

__all__ = [
    "Chosen", "Claims", "Detector", "Fused", "InputError", "Judgment", "MeshConfig", "Phrase", "PhrasesConfig",
    "Policy", "Refined", "Response", "ResponseLogprobs", "RewardModel", "Sentence", "Signal", "TrainConfig", "choose",
    "export", "fuse", "load", "phrases", "refine", "run", "sentences", "sft",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _PLACE:
        raise AttributeError(f"module 'vigor_jax' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PLACE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
