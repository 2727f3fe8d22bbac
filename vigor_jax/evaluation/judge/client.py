"""Sends one question to a judge: any endpoint that speaks OpenAI's chat completions, through the client `openai`."""

import asyncio
import base64
import hashlib
import json
import mimetypes
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from vigor_jax.errors import InputError
from vigor_jax.evaluation.judge.cache import Reply, ReplyKey
from vigor_jax.records import ImageFile

# The key or the model is wrong. Not 403: some endpoints say it about a single question.
_REFUSALS = (401, 404)
_IMAGE_TYPES = ("image/jpeg", "image/png", "image/webp", "image/gif")
# Seconds. The client honors a Retry-After of up to two minutes.
_LONGEST_WAIT = 120.0


@dataclass(frozen=True)
class JudgeConfig:
    """Which judge, and how it is asked.

    Attributes:
        base_url: Of the endpoint ("http://localhost:8000/v1"); None: OPENAI_BASE_URL of the environment, or OpenAI's.
        model: Name of the judge there.
        api_key_env: Variable of the environment that holds the key.
        temperature: None leaves it to the endpoint; some models take no other than their own.
        max_tokens: Most tokens of a reply; None leaves it to the endpoint.
        extra_body: Further fields of the request, such as {"max_completion_tokens": 1024} for models that refuse
            `max_tokens`.
        concurrency: Requests under way at a time.
        timeout: Seconds that the endpoint may be silent.
        max_retries: How often the client repeats a request after a rate limit, a server's error, a lost connection or
            a time-out. It waits as long as Retry-After says, up to two minutes, else longer each time.
        max_attempts: How many replies are asked for until one can be read.
        price_per_million_prompt_tokens: In any currency; None where unknown, and then there is no cost.
        price_per_million_completion_tokens: The same, of the judge's own tokens.
        ask: False only says how many requests there are, about how many tokens they take, and what that costs.

    Raises:
        InputError: A value is out of range.
    """

    base_url: str | None
    model: str
    api_key_env: str = "OPENAI_API_KEY"
    temperature: float | None = 0.0
    max_tokens: int | None = 1024
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    concurrency: int = 8
    timeout: float = 120.0
    max_retries: int = 6
    max_attempts: int = 3
    price_per_million_prompt_tokens: float | None = None
    price_per_million_completion_tokens: float | None = None
    ask: bool = True

    def __post_init__(self) -> None:
        if self.base_url is not None and not self.base_url.startswith(("http://", "https://")):
            raise InputError(f"judge: expected a base_url that starts with http:// or https://, got {self.base_url!r}")
        if not self.model:
            raise InputError("judge: expected the name of a model, got an empty one")
        for name, least in (("concurrency", 1), ("max_retries", 0), ("max_attempts", 1), ("max_tokens", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"judge: expected {name} of {least} or more, got {value}")
        if not self.timeout > 0:
            raise InputError(f"judge: expected a timeout above 0 seconds, got {self.timeout}")


@dataclass(frozen=True)
class JudgeRequest:
    """One thing to judge.

    Attributes:
        benchmark: "mmhal".
        question_id: Of the question in its benchmark.
        prompt: All that the judge reads.
        systems: Whose answers are judged, in the order shown.
        images: Files that the judge sees: JPEG, PNG, WebP or GIF.
    """

    benchmark: str
    question_id: str
    prompt: str
    systems: tuple[str, ...] = ()
    images: tuple[ImageFile, ...] = ()

    def key(self, config: JudgeConfig) -> ReplyKey:
        """Under which its replies are kept; the endpoint's address, the prices and how patient we are do not matter.

        Raises:
            InputError: An image cannot be read.
        """
        shaping = {
            "prompt": self.prompt,
            "images": [hashlib.sha256(_read_image(path)).hexdigest() for path in self.images],
            "temperature": None if config.temperature is None else float(config.temperature),
            "max_tokens": config.max_tokens,
            "extra_body": dict(config.extra_body),
        }
        digest = hashlib.sha256(json.dumps(shaping, sort_keys=True).encode("ascii")).hexdigest()
        return ReplyKey(self.benchmark, self.question_id, self.systems, digest, config.model)


class RequestFailedError(Exception):
    """No reply came, after all retries.

    Attributes:
        refused: The endpoint refuses the key or the model, whatever the question.
        unreachable: There was no connection, or it broke.
    """

    def __init__(self, reason: str, *, refused: bool = False, unreachable: bool = False) -> None:
        super().__init__(" ".join(reason.split())[:200])
        self.refused, self.unreachable = refused, unreachable


class NoCompletionError(Exception):
    """What came with status 200 is no chat completion, but a proxy's page or a body cut short."""


def read_key(config: JudgeConfig) -> str:
    """The key of the endpoint.

    Raises:
        InputError: It is not in the environment, or none.
    """
    api_key = os.environ.get(config.api_key_env, "").strip()
    if not api_key or not api_key.isascii() or not api_key.isprintable():
        raise InputError(
            f"judge: expected a key in the environment variable {config.api_key_env}, found "
            f"{'characters that no key has' if api_key else 'none'}; set it (to anything, where the endpoint "
            "wants none)"
        )
    return api_key


class ChatClient:
    """The client `openai`; an asynchronous context manager.

    Raises:
        InputError: The package or the key is missing.
    """

    def __init__(self, config: JudgeConfig) -> None:
        try:
            import openai
        except ImportError as error:
            raise InputError(
                f"judge: the package openai cannot be imported ({error}); pip install vigor-jax[judge]"
            ) from error
        api_key = read_key(config)
        self._config, self._openai = config, openai
        self._client = openai.AsyncOpenAI(
            base_url=config.base_url, api_key=api_key, timeout=config.timeout, max_retries=config.max_retries
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()

    async def reply(self, request: JudgeRequest) -> Reply:
        """Asks once, with the client's retries.

        Raises:
            RequestFailedError: No answer with status 200 came.
            NoCompletionError: It did, but its body is something else.
        """
        config, openai = self._config, self._openai
        fields: dict[str, Any] = {"temperature": config.temperature, "max_tokens": config.max_tokens}
        fields = {name: value for name, value in fields.items() if value is not None}
        # `timeout` of the client is for silence; this is for an endpoint that drips.
        deadline = (config.max_retries + 1) * (config.timeout + _LONGEST_WAIT)
        try:
            async with asyncio.timeout(deadline):
                # Raw, for the parsed one takes a page of HTML for a completion.
                response = await self._client.chat.completions.with_raw_response.create(
                    model=config.model,
                    messages=[{"role": "user", "content": _content(request)}],
                    extra_body=dict(config.extra_body) or None,
                    **fields,
                )
        except (TimeoutError, openai.APITimeoutError) as error:
            raise RequestFailedError(f"no reply within {config.timeout:g} s") from error
        except openai.APIStatusError as error:
            raise RequestFailedError(
                f"status {error.status_code}, {error.message}", refused=error.status_code in _REFUSALS
            ) from error
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            raise RequestFailedError(
                f"no connection ({str(cause) or type(cause).__name__})", unreachable=True
            ) from error
        except openai.OpenAIError as error:
            raise RequestFailedError(str(error)) from error
        return _parse_completion(response.text)


def _read_image(path: ImageFile) -> bytes:
    if mimetypes.guess_type(path.name)[0] not in _IMAGE_TYPES:
        raise InputError(f"{path}: expected a JPEG, PNG, WebP or GIF file to show to the judge; convert it")
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path}: expected an image to show to the judge, cannot read it ({error.strerror})"
        ) from error


def _content(request: JudgeRequest) -> str | list[dict[str, Any]]:
    # Half a surrogate pair, which JSON can hold, cannot be sent.
    text = request.prompt.encode("utf-8", "replace").decode("utf-8")
    if not request.images:
        return text
    content: list[dict[str, Any]] = [{"type": "text", "text": text}]
    for path in request.images:
        data = base64.b64encode(_read_image(path)).decode("ascii")
        url = f"data:{mimetypes.guess_type(path.name)[0]};base64,{data}"
        content.append({"type": "image_url", "image_url": {"url": url}})
    return content


def _parse_completion(body: str) -> Reply:
    try:
        completion = json.loads(body)
        choice = completion["choices"][0]
        # A judge may refuse: then there is no content, and the refusal is its reply.
        text = choice["message"].get("content") or choice["message"].get("refusal") or ""
        usage = completion.get("usage") or {}
        tokens = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
        finish_reason, served_model = choice.get("finish_reason"), completion.get("model")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise NoCompletionError(f"status 200, but no chat completion: {body[:80]!r}") from error
    if not isinstance(text, str):
        raise NoCompletionError(f"status 200, but a message that is no text: {body[:80]!r}")
    prompt_tokens, completion_tokens = (count if type(count) is int else None for count in tokens)
    return Reply(text, prompt_tokens, completion_tokens, finish_reason, served_model)
