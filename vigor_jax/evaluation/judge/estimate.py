"""What it will cost to ask a judge, before it is asked."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from vigor_jax.errors import InputError
from vigor_jax.evaluation.judge.client import JudgeConfig, JudgeRequest

# English text, by the tokenizers of today.
_CHARACTERS_A_TOKEN = 4


@dataclass(frozen=True)
class Estimate:
    """About what some requests cost, if each is answered at once.

    Attributes:
        requests: How many there are.
        prompt_tokens: Of their words, four characters each; images come on top.
        completion_tokens: At most that many, by `JudgeConfig.max_tokens`; None where this is open.
        images: How many are sent along.
        cost: By the prices of `JudgeConfig`, at most; None where these are unknown.
    """

    requests: int
    prompt_tokens: int
    completion_tokens: int | None
    images: int
    cost: float | None

    @classmethod
    def of(cls, requests: Iterable[JudgeRequest], config: JudgeConfig) -> Self:
        """Of requests to a judge."""
        requests = list(requests)
        prompt = sum(-(-len(each.prompt) // _CHARACTERS_A_TOKEN) for each in requests)
        completion = None if config.max_tokens is None else len(requests) * config.max_tokens
        prices = config.price_per_million_prompt_tokens, config.price_per_million_completion_tokens
        cost = None
        if prices[0] is not None and prices[1] is not None and completion is not None:
            cost = (prompt * prices[0] + completion * prices[1]) / 1e6
        return cls(len(requests), prompt, completion, sum(len(each.images) for each in requests), cost)

    def __add__(self, other: "Estimate") -> "Estimate":
        def total(one: float | None, two: float | None) -> float | None:
            return None if one is None or two is None else one + two

        completion = total(self.completion_tokens, other.completion_tokens)
        return Estimate(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            None if completion is None else int(completion),
            self.images + other.images,
            total(self.cost, other.cost),
        )

    def __str__(self) -> str:
        replies = "" if self.completion_tokens is None else f", at most {self.completion_tokens:,} tokens of replies"
        images = f", {self.images:,} images" if self.images else ""
        cost = "" if self.cost is None else f", at most {self.cost:.2f} by the given prices"
        return f"{self.requests:,} requests, about {self.prompt_tokens:,} tokens of prompts{images}{replies}{cost}"


class NotAskedError(InputError):
    """A judge is not to be asked, and there is something to ask.

    Attributes:
        estimate: What that would cost.
    """

    def __init__(self, what: str, model: str, estimate: Estimate) -> None:
        super().__init__(f"{what}: {model} is not asked (judge.ask is false); it would be {estimate}")
        self.estimate = estimate
