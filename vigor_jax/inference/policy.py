"""The policy: an opened checkpoint that writes responses to images, and says how likely given ones are."""

import dataclasses
import gc
import itertools
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from typing import Any, TypeVar, Unpack

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Float

from vigor_jax.data.images.given import ImageLike
from vigor_jax.data.images.preprocessing import load_image, preprocess
from vigor_jax.data.text.conversation import (
    IMAGE_PLACEHOLDER,
    Turn,
    check_template,
    encode_example,
    encode_prompt,
    find_template,
)
from vigor_jax.errors import InputError
from vigor_jax.hf.load import Checkpoint, load_model
from vigor_jax.inference.logprobs import collate_responses, per_token_logps
from vigor_jax.inference.responses import (
    Query,
    Response,
    ResponseLogprobs,
    SamplingOptions,
    check_batch_size,
    check_responses,
    pair,
    queries,
    sampling_config,
)
from vigor_jax.inference.sampler import IMAGE_READERS, Completion, Request, Sampler, check_request, pixels_of
from vigor_jax.inference.sampling_config import SamplingConfig
from vigor_jax.models.int8 import quantize_decoder
from vigor_jax.models.layers import stacks_inference
from vigor_jax.models.vlm import Vlm, param_paths
from vigor_jax.parallel.sharding import local_rows, round_up_batch, shard_rows
from vigor_jax.records import ImageFile

# Prompts whose tokens are kept: a run asks few, a benchmark asks many once.
_PROMPTS_KEPT = 1024

T = TypeVar("T")


class _once(cached_property[T]):  # noqa: N801, as `cached_property`
    """A `cached_property` of a `Policy` that is computed once, however many threads want it first."""

    def __get__(self, policy: Any, owner: type[Any] | None = None) -> Any:
        if policy is None:
            return self
        with policy._lock:
            return super().__get__(policy, owner)


class Policy:
    """A checkpoint with all that it takes to use it; its weights are loaded when they are first needed.

    Args:
      checkpoint: the checkpoint.
      mesh: all devices of all processes.
      template: the conversation format that the model was trained with, a key of `TEMPLATES`; by default its family's.
      dtype: type to compute in; by default float32 if the checkpoint is stored so, else bfloat16.
      int8: hold the language model's weights in 8 bits, see `models.int8`.

    Attributes:
      checkpoint: as given.
      mesh: as given.
      template: the conversation format.
      template_name: its name.
      dtype: type to compute in.

    Raises:
      InputError: there is no such template, or the type needs another kind of device.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        mesh: Mesh,
        *,
        template: str | None = None,
        dtype: Any = None,
        int8: bool = False,
    ) -> None:
        check_template(template, "template")
        dtype = dtype or ("float32" if checkpoint.dtype == np.float32 else "bfloat16")
        check_dtype(dtype)
        self.checkpoint, self.mesh, self.dtype = checkpoint, mesh, dtype
        self.template_name = template or checkpoint.family.template
        self.template = find_template(self.template_name)
        self._int8 = int8
        self._lock = threading.RLock()  # around all that is made when it is first needed
        self._samplers: dict[SamplingConfig, Sampler] = {}  # what one has compiled, it need not compile again
        self._prompts: dict[tuple[str, bool], tuple[int, ...]] = {}
        self._sizes: dict[str, Any] = {
            "image_token_id": checkpoint.config.image_token_id,
            "num_image_tokens": checkpoint.config.num_image_tokens,
        }

    @_once
    def model(self) -> Vlm:
        """The model, its weights on the mesh."""
        gc.collect()  # reward models that nobody holds any longer hold their weights in cycles
        model = load_model(self.checkpoint, mesh=self.mesh, dtype=self.dtype, scan=stacks_inference())
        return quantize_decoder(model) if self._int8 else model

    # Weights

    def set_weights(self, values: Mapping[str, jax.Array]) -> None:
        """Gives some weights other values, as training that is under way does; what is compiled stays.

        Args:
          values: by dotted path in `model`, of the same shape, type and split as what they replace, which is freed.
        """
        weights = nnx.state(self.model)
        variables = param_paths(weights)
        for path, value in values.items():
            before = variables[path].get_value()
            assert (value.shape, value.dtype) == (before.shape, before.dtype), path
            variables[path].set_value(value)
        nnx.update(self.model, weights)
        with self._lock:
            self.__dict__.pop("_graphdef_and_weights", None)
            for sampler in self._samplers.values():
                sampler.set_weights(weights)

    # Prompts and responses as tokens

    def prompt_ids(self, prompt: str, *, with_image: bool = True, context: str = "") -> tuple[int, ...]:
        """Token ids that ask for a response, or for what continues `context`; see
        `data.text.conversation.encode_prompt`.

        Raises:
          InputError: the prompt places an image and there is none, or the template cannot ask without one.
        """
        tokenizer, template = self.checkpoint.tokenizer, self.template
        if context:  # mostly asked once
            return tuple(
                encode_prompt(tokenizer, template, prompt, with_image=with_image, context=context, **self._sizes)
            )
        asked = prompt, with_image
        with self._lock:
            if asked not in self._prompts:
                if len(self._prompts) >= _PROMPTS_KEPT:
                    self._prompts.clear()
                self._prompts[asked] = tuple(
                    encode_prompt(tokenizer, template, prompt, with_image=with_image, **self._sizes)
                )
            return self._prompts[asked]

    def response_ids(self, prompt: str, response: str, *, with_image: bool = True) -> tuple[int, ...]:
        """Token ids of a response as fine-tuning teaches it: with the space before it and what ends it.

        A sampled response has tokens that the text does not tell exactly; to score that, take its own.

        Raises:
          InputError: the response is empty.
        """
        question = prompt if not with_image or IMAGE_PLACEHOLDER in prompt else f"{IMAGE_PLACEHOLDER}\n{prompt}"
        turns = (Turn("human", question), Turn("gpt", response))
        start = len(self.prompt_ids(prompt, with_image=with_image))
        example = encode_example(
            self.checkpoint.tokenizer,
            self.template,
            turns,
            max_length=sys.maxsize,
            with_image=with_image,
            **self._sizes,
        )
        return tuple(example.token_ids[start:].tolist())

    def pixels(self, image: ImageFile | bytes) -> np.ndarray:
        """An image as the model takes it, uint8 [S, S, 3].

        Raises:
          InputError: it cannot be read.
        """
        return preprocess(load_image(image), self.checkpoint.preprocessing)

    def continuation(self, context: str, token_ids: Sequence[int]) -> str:
        """What the tokens that were drawn for a request with this context add to it, with the white space before it:
        `context + continuation` is what the model has written. Without a context a response has no space in front.
        """
        tokenizer = self.checkpoint.tokenizer
        before = tokenizer.encode(context)
        text = tokenizer.decode([*before, *token_ids])[len(tokenizer.decode(before)) :]
        text = text if self.template.stop is None else text.split(self.template.stop)[0]
        return text if context else text.lstrip()

    def request(self, image_id: str, image: ImageFile | None, prompt: str, *, context: str = "") -> Request:
        """What `sample` and `response_logps` take; the image is read when it is needed, None if there is none.

        Args:
          image_id: names the image; random choices depend on it.
          image: it.
          prompt: what is asked.
          context: how the answer begins, if it is to be continued.

        Raises:
          InputError: as `prompt_ids`.
        """
        ids = self.prompt_ids(prompt, with_image=image is not None, context=context)
        return Request(image_id, ids, None if image is None else partial(self.pixels, image), prompt)

    # From Python

    def generate(
        self,
        images: ImageLike | Sequence[ImageLike] | None,
        prompts: str | Iterable[str],
        **sampling: Unpack[SamplingOptions],
    ) -> list[Response]:
        """Responses to images: `num_candidates` (1 unless given) for each, in the order of the images.

        The same image, prompt and seed give the same response, whatever else is asked.

        Args:
          images: one or a list: paths, bytes of image files, PIL images, or uint8 arrays [height, width, 3]; None for
            prompts without images.
          prompts: one for all images, or one for each.
          **sampling: fields of `SamplingConfig`: `temperature`, `top_p`, `max_new_tokens`, `seed` and others.

        Raises:
          InputError: an argument cannot be used, or an image cannot be read.
          FloatingPointError: the model's scores are not finite.
        """
        config, asked = sampling_config(sampling), queries(images, prompts)
        requests = [self.request(query.image_id, query.image, query.prompt) for query in asked]
        return [
            Response(
                index=query.index,
                image=query.name,
                prompt=query.prompt,
                candidate=completion.candidate,
                text=completion.text,
                token_ids=completion.token_ids,
                logprobs=tuple(completion.logprobs.tolist()),
                mean_logprob=completion.mean_logprob,
                finish_reason=completion.finish_reason,
            )
            for query, found in zip(asked, self.sample(requests, config), strict=True)
            for completion in found
        ]

    def logprobs(
        self,
        images: ImageLike | Sequence[ImageLike] | None,
        prompts: str | Iterable[str] | None,
        responses: str | Response | Sequence[str] | Sequence[Response] | Sequence[int] | Sequence[Sequence[int]],
        *,
        batch_size: int = 8,
    ) -> list[ResponseLogprobs]:
        """How likely given responses are, token by token, in their order.

        Args:
          images: as `generate` takes them.
          prompts: the same; None if the responses come from `generate`.
          responses: one for each image and prompt: a string, which is taken as fine-tuning would teach it, with what
            ends it; or token ids, which are taken as they are. Those of `generate` know their image and prompt, so
            there may be several for an image.
          batch_size: responses a pass; changes nothing but the last digits.

        Raises:
          InputError: an argument cannot be used, or an image cannot be read.
          FloatingPointError: the model's scores are not finite.
        """
        batch_size = check_batch_size(batch_size)
        given = check_responses(responses)
        asked = pair(images, prompts, given)
        ids = [self._ids(response, query) for query, response in zip(asked, given, strict=True)]
        requests = [self.request(query.image_id, query.image, query.prompt) for query in asked]
        found = self.response_logps(zip(requests, ids, strict=True), batch_size=batch_size)
        return [
            ResponseLogprobs(
                index=query.index,
                image=query.name,
                prompt=query.prompt,
                text=self._text(response),
                token_ids=token_ids,
                logprobs=tuple(logps.tolist()),
                sum_logprob=float(logps.sum(dtype=np.float64)),
                mean_logprob=float(logps.mean(dtype=np.float64)),
            )
            for query, response, token_ids, logps in zip(asked, given, ids, found, strict=True)
        ]

    def _ids(self, response: Any, query: Query) -> tuple[int, ...]:
        if isinstance(response, str):
            return self.response_ids(query.prompt, response, with_image=query.image is not None)
        return tuple(map(int, response.token_ids if isinstance(response, Response) else response))

    def _text(self, response: Any) -> str:
        if isinstance(response, str | Response):
            return response if isinstance(response, str) else response.text
        text = self.checkpoint.tokenizer.decode(response)
        return (text if self.template.stop is None else text.split(self.template.stop)[0]).strip()

    # What the model does

    def sample(
        self,
        requests: Iterable[Request],
        sampling: SamplingConfig,
        *,
        seed: int | None = None,
        is_enough: Callable[[str], bool] | None = None,
    ) -> Iterator[list[Completion]]:
        """Candidates for each request, in the order of the requests; see `Sampler.generate`.

        Log-probabilities depend in their last digits on what stands in the other rows; each call begins with none.

        Args:
          requests: what is asked.
          sampling: how candidates are drawn.
          seed: instead of that of `sampling`.
          is_enough: whether a text may end here; see `Sampler.generate`.

        Raises:
          InputError: a prompt is too long or an image cannot be read.
          FloatingPointError: the model's scores are not finite.
        """
        compiled = dataclasses.replace(sampling, seed=0)  # the host alone needs the seed
        with self._lock:
            if compiled not in self._samplers:
                self._samplers[compiled] = Sampler(
                    self.model, self.checkpoint.tokenizer, compiled, self.mesh, self.template.stop
                )
            sampler = self._samplers[compiled]
        return sampler.generate(requests, seed=sampling.seed if seed is None else seed, is_enough=is_enough)

    def response_logps(
        self, pairs: Iterable[tuple[Request, Sequence[int]]], *, batch_size: int = 8, bucket: int = 64
    ) -> Iterator[Float[np.ndarray, "R"]]:
        """log p of every token of given responses, in their order: float32 [len(response)] each.

        Under the model as it is, as `Completion.logprobs`; one forward pass, see `per_token_logps`. With several
        processes, each gives the same and gets all the results, but reads the images of its own rows only.

        Args:
          pairs: requests, and the token ids of a response to each.
          batch_size: responses a pass, over all devices; the mesh may ask for a few more.
          bucket: lengths are padded to multiples of it, so that few are ever compiled.

        Raises:
          InputError: a response is empty, too long, or has an id that is no token's; or as `sample`.
          FloatingPointError: the model's scores are not finite.
        """
        num_rows = round_up_batch(batch_size, self.mesh)
        rows_here = frozenset(local_rows(num_rows, self.mesh))
        pairs = iter(pairs)
        with ThreadPoolExecutor(IMAGE_READERS, "read-image") as readers:
            while group := list(itertools.islice(pairs, num_rows)):
                requests = [request for request, _ in group]
                responses = [list(response) for _, response in group]
                for request, response in zip(requests, responses, strict=True):
                    self._check_response(request, response)
                pixels = self._read_images(requests, rows_here, num_rows, readers)
                words = [request.prompt for request in requests] + [""] * (num_rows - len(requests))
                instructions = None if pixels is None else self.checkpoint.tokenizer.instruction_ids(words)
                prompts = [request.prompt_ids for request in requests]
                batch = collate_responses(prompts, responses, pixels, instructions, num_rows=num_rows, bucket=bucket)
                with jax.set_mesh(self.mesh):
                    logps = np.asarray(self._logps(self._weights, shard_rows(batch, self.mesh)))
                for request, response, row in zip(requests, responses, logps, strict=False):
                    if not np.isfinite(row).all():
                        raise FloatingPointError(
                            f"{request.image_id}: the model's scores are not finite; are its weights sound?"
                        )
                    yield row[: len(response)]

    @_once
    def _graphdef_and_weights(self) -> tuple[nnx.GraphDef, nnx.State]:
        graphdef, weights = nnx.split(self.model)
        return graphdef, weights

    @property
    def _weights(self) -> nnx.State:
        return self._graphdef_and_weights[1]

    @_once
    def _logps(self) -> Any:
        graphdef = self._graphdef_and_weights[0]
        whole = NamedSharding(self.mesh, P())
        return jax.jit(lambda weights, batch: per_token_logps(nnx.merge(graphdef, weights), batch), out_shardings=whole)

    def _check_response(self, request: Request, response: Sequence[int]) -> None:
        config = self.checkpoint.config
        check_request(request, config)
        if not response:
            raise InputError(f"{request.image_id}: a response of no tokens; leave it out")
        length, positions = len(request.prompt_ids) + len(response), config.text.max_position_embeddings
        if length > positions:
            raise InputError(
                f"{request.image_id}: prompt and response have {length} tokens, expected at most the model's "
                f"{positions} positions; shorten the response"
            )
        if wrong := [token_id for token_id in response if not 0 <= token_id < config.text.vocab_size]:
            raise InputError(
                f"{request.image_id}: a response has the token id {wrong[0]}, expected 0 to "
                f"{config.text.vocab_size - 1}; take those of this model's tokenizer"
            )

    def _read_images(
        self, requests: Sequence[Request], rows_here: frozenset[int], num_rows: int, readers: ThreadPoolExecutor
    ) -> np.ndarray | None:
        """Images of this process's rows; the other rows stay black."""
        if all(request.pixels is None for request in requests):
            return None
        edge = self.checkpoint.config.vision.image_size
        pixels = np.zeros((num_rows, edge, edge, 3), np.uint8)
        rows = [row for row, request in enumerate(requests) if row in rows_here and request.pixels is not None]
        for row, image in zip(rows, readers.map(pixels_of, (requests[row] for row in rows)), strict=True):
            pixels[row] = image
        return pixels


def check_dtype(dtype: Any) -> None:
    """Raises InputError if a type needs another kind of device."""
    if dtype == "float16" and jax.default_backend() != "gpu":
        raise InputError(f"dtype float16 needs a GPU, and this is a {jax.default_backend()}; take bfloat16 or float32")
