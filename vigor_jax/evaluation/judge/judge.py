"""Lets a language model judge answers: asks many things at a time, keeps each reply as it comes, sums what it costs.

What has been answered is not asked again, in a later run either. A reply that cannot be read is asked for again a few
times, then counted and shown; nothing is made up in its place.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from tqdm import tqdm

from vigor_jax.errors import InputError
from vigor_jax.evaluation.judge.cache import Reply, ReplyCache, ReplyKey
from vigor_jax.evaluation.judge.client import (
    ChatClient,
    JudgeConfig,
    JudgeRequest,
    NoCompletionError,
    RequestFailedError,
)
from vigor_jax.evaluation.judge.estimate import Estimate, NotAskedError

T = TypeVar("T")

logger = logging.getLogger(__name__)


class MalformedReplyError(ValueError):
    """Raised by a parser: the reply does not say what was asked for."""


@dataclass(frozen=True)
class JudgeResult(Generic[T]):
    """What came of a request.

    Attributes:
        request: What was asked.
        value: What the parser made of the last reply; None: no reply could be read.
        replies: All that came, in order; those before the last could not be read.
    """

    request: JudgeRequest
    value: T | None
    replies: tuple[Reply, ...]


@dataclass(frozen=True)
class Usage:
    """Sums over replies, malformed ones included.

    Attributes:
        replies: How many there are.
        prompt_tokens: As the endpoint counts.
        completion_tokens: The same.
        unreported: Replies that came without these numbers, and are missing in the sums.
        cost: By the prices of `JudgeConfig`; None where these are unknown. A reply that was lost on its way may have
            been charged too, and is in no sum.
    """

    replies: int
    prompt_tokens: int
    completion_tokens: int
    unreported: int
    cost: float | None


@dataclass(frozen=True)
class Spending:
    """What results have cost.

    Attributes:
        asked: Replies that came now.
        cached: Replies that an earlier run has paid for.
    """

    asked: Usage
    cached: Usage


def spending(results: Iterable[JudgeResult[Any]], config: JudgeConfig) -> Spending:
    """Sums tokens and cost."""
    replies = [reply for result in results for reply in result.replies]
    asked, cached = ([reply for reply in replies if reply.cached is where] for where in (False, True))
    return Spending(_usage(asked, config), _usage(cached, config))


def _usage(replies: Sequence[Reply], config: JudgeConfig) -> Usage:
    prompt = sum(reply.prompt_tokens or 0 for reply in replies)
    completion = sum(reply.completion_tokens or 0 for reply in replies)
    unreported = sum(reply.prompt_tokens is None or reply.completion_tokens is None for reply in replies)
    prices = config.price_per_million_prompt_tokens, config.price_per_million_completion_tokens
    cost = None if prices[0] is None or prices[1] is None else (prompt * prices[0] + completion * prices[1]) / 1e6
    return Usage(len(replies), prompt, completion, unreported, cost)


class Judge:
    """A judge, and the file of its replies.

    Args:
        config: Which judge.
        cache: JSONL file; is made if need be. Several benchmarks and judges may share one.
    """

    def __init__(self, config: JudgeConfig, cache: Path) -> None:
        self.config = config
        self.cache = cache

    def ask_all(
        self, requests: Sequence[JudgeRequest], parse: Callable[[str], T], *, desc: str = "judge"
    ) -> list[JudgeResult[T]]:
        """Asks what has not been answered yet; not from within an event loop.

        Args:
            requests: No two the same.
            parse: Makes a value of a reply's text, or raises `MalformedReplyError`. Replies of the file go through it
                too.
            desc: In front of the progress bar and of errors.

        Returns:
            A result for each request, in order.

        Raises:
            NotAskedError: There is something to ask, and `config.ask` is off.
            InputError: `openai` or the key is missing, or an image or the file cannot be used. Or requests have
                failed after all retries; all others are answered and kept by then.
        """
        keyed = {request.key(self.config): request for request in requests}
        if len(keyed) < len(requests):
            raise InputError(f"{desc}: expected different requests, got {len(requests) - len(keyed)} of them twice")

        with ReplyCache(self.cache) as cache:

            def result(key: ReplyKey) -> JudgeResult[T] | None:
                """None while another reply is to be asked for."""
                replies = cache.replies[key]
                for number, reply in enumerate(replies, 1):
                    try:
                        return JudgeResult(keyed[key], parse(reply.text), tuple(replies[:number]))
                    except MalformedReplyError:
                        pass
                return (
                    JudgeResult(keyed[key], None, tuple(replies)) if len(replies) >= self.config.max_attempts else None
                )

            due = [key for key in keyed if result(key) is None]
            if due:
                estimate = Estimate.of((keyed[key] for key in due), self.config)
                if not self.config.ask:
                    raise NotAskedError(desc, self.config.model, estimate)
                logger.info("%s: asks %s: %s", desc, self.config.model, estimate)
                with tqdm(total=len(keyed), initial=len(keyed) - len(due), desc=desc, unit="request") as progress:
                    asking = _Asking(self.config, keyed, cache, lambda key: result(key) is not None, progress)
                    asyncio.run(asking.run(due))
            results = [found for key in keyed if (found := result(key))]
        if len(results) < len(keyed):
            self._fail(asking.failures, len(keyed) - len(results), len(keyed), desc)
        return results

    def _fail(self, failures: Sequence[str], missing: int, total: int, desc: str) -> None:
        reasons = Counter(failures)
        told = "; ".join(f"{count} × {reason}" for reason, count in reasons.most_common(3))
        told += "; and others" if len(reasons) > 3 else ""
        told += f"; {missing - len(failures)} not tried" if missing > len(failures) else ""
        raise InputError(
            f"{desc}: {missing} of {total} requests to {self.config.model} at "
            f"{self.config.base_url or 'the default address'} failed ({told}); {total - missing} are kept in "
            f"{self.cache}, run again to ask for the rest"
        )


class _Asking:
    """One round of questions, many under way at a time."""

    def __init__(
        self,
        config: JudgeConfig,
        requests: Mapping[ReplyKey, JudgeRequest],
        cache: ReplyCache,
        is_settled: Callable[[ReplyKey], bool],
        progress: Any,
    ) -> None:
        self._config, self._requests, self._cache = config, requests, cache
        self._is_settled, self._progress = is_settled, progress
        self._answered = self._unreachable = 0
        self._refused = False
        self.failures: list[str] = []

    async def run(self, keys: Iterable[ReplyKey]) -> None:
        waiting = iter(keys)

        async def work() -> None:
            for key in waiting:  # shared: each worker takes the next
                if self._is_hopeless():
                    return
                await self._settle(client, key)

        async with ChatClient(self._config) as client:
            await asyncio.gather(*(work() for _ in range(self._config.concurrency)))

    def _is_hopeless(self) -> bool:
        """The key or the model is wrong, or as many requests as are under way at a time have found nobody there."""
        return self._refused or (not self._answered and self._unreachable >= self._config.concurrency)

    async def _settle(self, client: ChatClient, key: ReplyKey) -> None:
        failure = ""
        for _ in range(self._config.max_attempts):
            try:
                reply = await client.reply(self._requests[key])
            except NoCompletionError as error:
                failure = str(error)
                continue
            except RequestFailedError as error:
                failure = str(error)
                self._refused |= error.refused
                self._unreachable += error.unreachable
                break
            self._answered += 1
            self._cache.append(key, reply, self._requests[key].prompt)
            if self._is_settled(key):
                self._progress.update()
                return
        self.failures.append(failure)
