"""What a policy is asked from Python, and what it says: arguments paired up, results as rows of a table."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np

from vigor_jax.data.images.given import GivenImage, ImageLike, image_files
from vigor_jax.errors import InputError, nearest
from vigor_jax.inference.sampling_config import SamplingConfig
from vigor_jax.records import ImageFile


class SamplingOptions(TypedDict, total=False):
    """The fields of `SamplingConfig`, as keywords."""

    temperature: float
    top_k: int
    top_p: float
    max_new_tokens: int
    num_candidates: int
    seed: int
    batch_size: int
    prompt_bucket: int
    repetition_stop: int


@dataclasses.dataclass(frozen=True)
class Response:
    """One candidate; a list of these is a table (`pandas.DataFrame(responses)`).

    Attributes:
      index: position of the image among those given, from 0.
      image: its path as it was given; `sha256:...` of an image in memory; "" without an image.
      prompt: what was asked.
      candidate: index among the candidates for this image and prompt, from 0.
      text: the response, without what ended it.
      token_ids: with the tokens that ended it.
      logprobs: of each token, under the model as it is: neither tempered nor truncated.
      mean_logprob: their mean.
      finish_reason: "stop", "repetition", or "length" when the limit ended it.
    """

    index: int
    image: str
    prompt: str
    candidate: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    mean_logprob: float
    finish_reason: str


@dataclasses.dataclass(frozen=True)
class ResponseLogprobs:
    """How likely a given response is, token by token; a list of these is a table (`pandas.DataFrame(...)`).

    Attributes:
      index: position of the image among those given, from 0.
      image: as in `Response`.
      prompt: what was asked.
      text: the response, decoded where it was given as tokens.
      token_ids: its tokens, with the ones that end it where it was given as text.
      logprobs: of each token, given the image, the prompt and the tokens before it.
      sum_logprob: their sum: log p of the response.
      mean_logprob: their mean.
    """

    index: int
    image: str
    prompt: str
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    sum_logprob: float
    mean_logprob: float


@dataclasses.dataclass(frozen=True)
class Query:
    """An image, or none, and what is asked about it.

    Attributes:
      index: position of the image among those given, or of the prompt where there are no images.
      given: the image.
      prompt: the words.
    """

    index: int
    given: GivenImage | None
    prompt: str

    @property
    def image(self) -> ImageFile | None:
        return self.given and self.given.file

    @property
    def name(self) -> str:
        """The image's name as it was given."""
        return self.given.name if self.given else ""

    @property
    def image_id(self) -> str:
        """What random choices depend on, however a path is written."""
        return str(self.given.file) if self.given else ""


def sampling_config(options: Mapping[str, Any]) -> SamplingConfig:
    """Settings from keywords; one candidate unless `num_candidates` says otherwise.

    Raises:
      InputError: an option is unknown, or its value cannot be used.
    """
    kinds: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(SamplingConfig)}
    for name, value in options.items():
        if name not in kinds:
            raise InputError(f"unknown sampling option {name!r}; {nearest(name, kinds, noun='option')}")
        numbers = (int, np.integer) if kinds[name] is int else (int, float, np.integer, np.floating)
        if isinstance(value, bool) or not isinstance(value, numbers):
            wanted = "a whole number" if kinds[name] is int else "a number"
            raise InputError(f"sampling.{name}: expected {wanted}, got {value!r}")
    return SamplingConfig(**{"num_candidates": 1, **{name: kinds[name](value) for name, value in options.items()}})


def check_batch_size(batch_size: Any) -> int:
    """A number of rows.

    Raises:
      InputError: it is none.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer) or batch_size < 1:
        raise InputError(f"batch_size: expected a whole number of at least 1, got {batch_size!r}"[:200])
    return int(batch_size)


def queries(images: ImageLike | Sequence[ImageLike] | None, prompts: str | Iterable[str]) -> list[Query]:
    """Images with prompts: one prompt for all images or one each; one image that is no list stands for all prompts.

    Raises:
      InputError: there are none, their numbers differ, or one is of a wrong type.
    """
    if not isinstance(prompts, Iterable) or isinstance(prompts, bytes | bytearray | Mapping):
        raise InputError(f"prompts: expected a string, or a list of one for each image, got {type(prompts).__name__}")
    words = [prompts] if isinstance(prompts, str) else list(prompts)
    for number, prompt in enumerate(words):
        if not isinstance(prompt, str):
            raise InputError(f"prompts[{number}]: expected a string, got {type(prompt).__name__}")
    if not words:
        raise InputError("prompts: expected at least one, got an empty list")
    if images is None:
        return [Query(number, None, prompt) for number, prompt in enumerate(words)]
    files = image_files(images)
    is_one = not isinstance(images, Sequence) or isinstance(images, str | bytes | bytearray)
    if is_one:
        return [Query(0, files[0], prompt) for prompt in words]
    if isinstance(prompts, str):
        words *= len(files)
    if len(words) != len(files):
        raise InputError(
            f"prompts: expected one for each image, or one for all, got {len(words)} for {len(files)} images"
        )
    return [Query(number, *pair) for number, pair in enumerate(zip(files, words, strict=True))]


def check_responses(responses: Any) -> list[Any]:
    """Responses as a list: each a string, token ids, or a `Response`.

    Raises:
      InputError: there are none, or one is of a wrong type.
    """
    if isinstance(responses, str | Response) or _are_ids(responses):
        responses = [responses]
    if not isinstance(responses, Iterable):
        raise InputError(f"responses: expected strings, token ids or Response, got {type(responses).__name__}")
    found = list(responses)
    if not found:
        raise InputError("responses: expected at least one, got an empty list")
    for number, response in enumerate(found):
        if not isinstance(response, str | Response) and not _are_ids(response):
            raise InputError(
                f"responses[{number}]: expected a string, token ids or a Response, got {type(response).__name__}"
            )
    return found


def pair(
    images: ImageLike | Sequence[ImageLike] | None, prompts: str | Iterable[str] | None, responses: Sequence[Any]
) -> list[Query]:
    """What each response answers: a `Response` says itself which image and prompt, the others are in their order.

    Raises:
      InputError: the numbers differ, or a `Response` is about another image or prompt.
    """
    sampled = [response for response in responses if isinstance(response, Response)]
    if not sampled:
        if prompts is None:
            raise InputError(
                "prompts: expected what the responses answer, got None; only the results of generate know theirs"
            )
        found = queries(images, prompts)
        if len(found) == 1 and not isinstance(images, list | tuple):
            found *= len(responses)
        if len(found) != len(responses):
            raise InputError(f"expected one response for each image and prompt, got {len(responses)} for {len(found)}")
        return found
    if len(sampled) != len(responses):
        raise InputError("responses: expected all of them to come from generate, or none; got some")
    files = [] if images is None else image_files(images)
    if isinstance(prompts, str):  # of all, also where the responses are to several prompts without images
        asked = {response.index: {prompts} for response in sampled}
    else:
        asked = {}
        for query in [] if prompts is None else queries(images, prompts):
            asked.setdefault(query.index, set()).add(query.prompt)
    found = []
    for number, response in enumerate(sampled):
        if prompts is not None and response.prompt not in (given := asked.get(response.index, set())):
            one = " or ".join(map(repr, sorted(given))) or "none"
            raise InputError(f"responses[{number}] answers {response.prompt!r}, and the prompt given is {one}")
        image = files[response.index] if response.index < len(files) else None
        if not (image.is_called(response.image) if image else not response.image):
            raise InputError(
                f"responses[{number}] is about image {response.index}, {response.image or 'none'}, and the one given "
                f"is {image.name if image else 'none'}; give the images that it was generated from"
            )
        found.append(Query(response.index, image, response.prompt))
    return found


def _are_ids(response: Any) -> bool:
    if isinstance(response, np.ndarray):
        return response.ndim == 1 and np.issubdtype(response.dtype, np.integer)
    return (
        isinstance(response, list | tuple)
        and bool(response)
        and all(isinstance(token_id, int | np.integer) and not isinstance(token_id, bool) for token_id in response)
    )
