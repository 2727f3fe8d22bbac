"""The sizes of a low-rank adapter."""

import dataclasses
import math

from vigor_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """A low-rank adapter; the defaults are FiSAO's.

    Attributes:
      rank: columns of A and rows of B.
      alpha: what B · A is multiplied by, before it is divided by the rank.
      target: linear layers that get an adapter, each a beginning of dotted module paths or a regular expression for
        whole ones; "language_model" means its seven projections.
      also: parts that are trained in full next to the adapter, by the same rule, such as multi_modal_projector.
      rslora: divide by the square root of the rank (Kalajdzievski 2023).
    """

    rank: int = 128
    alpha: float = 256.0
    target: tuple[str, ...] = ("language_model",)
    also: tuple[str, ...] = ()
    rslora: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InputError(f"lora.rank: expected at least 1, got {self.rank}")
        if not (self.alpha > 0 and math.isfinite(self.alpha)):
            raise InputError(f"lora.alpha: expected more than 0, got {self.alpha}")
        if not self.target:
            raise InputError("lora.target: expected at least one name of linear layers, such as language_model")

    @property
    def scale(self) -> float:
        """What the adapter's product is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)
