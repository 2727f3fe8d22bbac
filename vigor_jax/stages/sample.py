"""Samples candidates: images and prompts in, `candidates/` out (ViGoR, section 3.1)."""

import dataclasses
import hashlib
import itertools
import json
import logging
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from tqdm import tqdm

from vigor_jax import fingerprint
from vigor_jax.data.images.store import Images, open_images
from vigor_jax.data.records.store import join, part_count, part_metadata, parts_done, read_batches, write_part
from vigor_jax.errors import InputError
from vigor_jax.hf.load import Checkpoint
from vigor_jax.inference.decoder import Batch, Decoder
from vigor_jax.inference.policy import Policy
from vigor_jax.inference.sampler import Completion, Request, prefill_size
from vigor_jax.inference.sampling_config import SamplingConfig
from vigor_jax.models.int8 import quantize_decoder
from vigor_jax.parallel.processes import is_first
from vigor_jax.parallel.sharding import round_up_batch
from vigor_jax.records import Candidate
from vigor_jax.stages.programs import Cost, Program, Target, Work, array, bytes_held, for_inference
from vigor_jax.stages.sample_config import SampleConfig
from vigor_jax.stages.stage import OnPart, Progress, Result, RunContext, Stage
from vigor_jax.training.flops import forward_flops

logger = logging.getLogger(__name__)

Ahead: TypeAlias = Callable[[RunContext, Progress], AbstractContextManager[OnPart]]

_NAMES_AT_A_TIME = 4096
USEFUL_STEPS = 0.9  # share of a slot's steps that add a token, with responses as long as captions (tests/inference)


def sample(
    config: SampleConfig,
    checkpoint: Checkpoint,
    records: str | Path,
    mesh: Mesh,
    *,
    dtype: Any,
    on_part: Callable[[int, int], None] = lambda index, count: None,
    made_with: str = "",
) -> None:
    """Writes the parts of `candidates/` that are not there; all processes sample each part together.

    Args:
      config: settings.
      checkpoint: the policy.
      records: gets `candidates/`; local or remote.
      mesh: all devices of all processes.
      dtype: type to compute in.
      on_part: called with (index, count) once a part is complete, those found there included.
      made_with: names the settings, for the parts' seals.

    Raises:
      InputError: no images, or one cannot be read.
    """
    images, size = images_of(config), config.images_per_part
    folder, count = join(records, "candidates"), -(-len(images) // size)
    done = parts_done(folder, count)
    todo = [index for index in range(count) if index not in done]
    done_images = sum(min(size, len(images) - index * size) for index in done)
    for index in sorted(done):
        on_part(index, count)
    if not todo:
        logger.info("sample: all %d parts are there", count)
        return
    policy = Policy(checkpoint, mesh, template=config.template, dtype=dtype, int8=config.int8)

    def names(index: int) -> Iterator[str]:
        return images.names(index * size, (index + 1) * size)

    def part(index: int) -> Iterator[tuple[str, str]]:
        """Image and prompt; of a hundred million images no process holds all names."""
        return ((image, choose_prompt(config.prompts, config.sampling.seed, image)) for image in names(index))

    def requests(index: int) -> Iterator[Request]:
        for image, prompt in part(index):
            yield policy.request(image, images.file(image), prompt)

    metadata = {"images": name_images(images)}
    is_writer = is_first()
    with tqdm(
        total=len(images), initial=done_images, unit="image", desc="sample", dynamic_ncols=True, disable=not is_writer
    ) as bar:
        for index in todo:
            candidates: list[Candidate] = []
            # Each part starts with empty rows, so that its log-probabilities do not depend on the parts before it.
            found = policy.sample(requests(index), config.sampling)
            for (_, prompt), completions in zip(part(index), found, strict=True):
                candidates += [_candidate(completion, prompt) for completion in completions]
                bar.update()
            if index % jax.process_count() == jax.process_index():
                write_part(folder, index, count, candidates, Candidate, metadata, made_with=made_with)
            on_part(index, count)


def images_of(config: SampleConfig) -> Images:
    """The images to sample.

    Raises:
      InputError: there are none.
    """
    if config.images is None:
        raise InputError("sample.images is not given; name the folder of images")
    return open_images(config.images, limit=config.limit)


def name_images(images: Collection[str]) -> str:
    """A set of images in few words, kept with its candidates."""
    digest, names, before = hashlib.sha256(b"["), iter(images), b""
    while some := list(itertools.islice(names, _NAMES_AT_A_TIME)):  # as if all were one JSON list
        digest.update(before + json.dumps(some)[1:-1].encode())
        before = b", "
    digest.update(b"]")
    return f"{len(images)} images, names {digest.hexdigest()[:12]}"


def check_images(images: Collection[str], records: str | Path, of: str = "candidates") -> str:
    """What differs between the images and those that `candidates/`, or another folder, are of, "" if nothing does."""
    folder = join(records, of)
    sampled_of = part_metadata(folder).get("images")
    if sampled_of is None or sampled_of == name_images(images):
        return ""
    count = part_count(folder) or 0
    batches = (read_batches(folder, i, count, columns=["image"]) for i in sorted(parts_done(folder, count)))
    sampled = {name for part in batches for batch in part for name in batch.column("image").to_pylist()}
    if gone := sorted(sampled.difference(images)):
        return f"{gone[0]} has {of} in {folder} and is gone from the images ({len(gone)} in all)"
    return f"{folder} is of {sampled_of}, and there are now {len(images)} images"


def choose_prompt(prompts: Sequence[str], seed: int, image: str) -> str:
    """One of the prompts, the same for an image in every run and on every host."""
    digest = hashlib.blake2b(f"{seed} {image}".encode(), digest_size=8).digest()
    return prompts[int.from_bytes(digest, "little") % len(prompts)]


def _candidate(completion: Completion, prompt: str) -> Candidate:
    return Candidate(
        image=completion.image_id,
        prompt=prompt,
        candidate=completion.candidate,
        text=completion.text,
        token_ids=completion.token_ids,
        mean_logprob=completion.mean_logprob,
        finish_reason=completion.finish_reason,
    )


class SampleStage(Stage):
    """Images → candidates.

    Args:
      config: settings.
      ahead: holds streams that judge parts while the next ones are sampled, and gives what takes (index, count) of a
        part that is complete.
    """

    name = "sample"

    def __init__(self, config: SampleConfig, ahead: Ahead) -> None:
        self._config, self._ahead = config, ahead

    def results(self, context: RunContext) -> list[Result]:
        # The images are told apart by the candidates' own metadata, which can say which are gone.
        settings = context.model_settings | fingerprint.of(self._config, self.name)
        return [Result(self.name, settings, (), (join(context.records, "candidates"),))]

    def changed(self, context: RunContext) -> str:
        return check_images(images_of(self._config), context.records)

    def run(self, context: RunContext, progress: Progress) -> None:
        with self._ahead(context, progress) as on_part:
            progress.begin(self.name)
            sample(
                self._config,
                context.checkpoint,
                context.records,
                context.inference_mesh,
                dtype=context.dtype,
                on_part=on_part,
                made_with=progress.mark(self.name),
            )

    def programs(self, target: Target) -> Iterator[Program]:
        abstract = for_inference(target.model, target.dtype, target.inference_mesh, target.adapter)
        if self._config.int8:
            abstract = quantize_decoder(abstract)
        return sampling_programs(self.name, self._config.sampling, abstract, target)

    def cost(self, work: Work, programs: Sequence[Cost]) -> tuple[int, float]:
        return sampling_cost(self._config.sampling, work.images, work, programs)


def sampling_programs(
    stage: str, sampling: SamplingConfig, abstract: Any, target: Target, *, held_by_others: int = 0
) -> Iterator[Program]:
    """Prefill and decoding.

    Args:
      stage: that samples.
      sampling: how.
      abstract: the model, with shapes in place of weights.
      target: what they are compiled for.
      held_by_others: bytes on each device that the stage holds besides.
    """
    model, mesh, sizes = target.model, target.inference_mesh, target.sizes
    sampling = dataclasses.replace(sampling, batch_size=round_up_batch(sampling.batch_size, mesh))
    rows, capacity = prefill_size(sampling.batch_size, mesh), min(sampling.max_new_tokens, sizes.response)
    length = -(-sizes.prompt // sampling.prompt_bucket) * sampling.prompt_bucket
    decoder = Decoder(abstract, sampling, np.ones(model.text.vocab_size, bool), 2, round_up_batch(1, mesh))
    edge = model.vision.image_size
    batch = Batch(
        token_ids=array(mesh, (rows, length), jnp.int32),
        lengths=array(mesh, (rows,), jnp.int32),
        seeds=array(mesh, (rows, 2), jnp.uint32),
        rows=array(mesh, (rows,), jnp.int32),
        pixels=array(mesh, (rows, edge, edge, 3), jnp.uint8),
    )

    def lowered(lower: Callable[..., Any], *given: Any) -> Callable[[], Any]:
        def under_mesh() -> Any:
            with jax.set_mesh(mesh):
                return lower(batch, *given)

        return under_mesh

    held = bytes_held(nnx.state(abstract))
    with jax.set_mesh(mesh):
        _, pages, latest, _ = decoder.shapes(batch, capacity)
    flops, others = forward_flops(model, rows=rows, tokens=rows * length, images=rows), held_by_others
    prefill = lowered(decoder.lower_prefill)
    others += bytes_held((pages, latest))
    yield Program(stage, "prefill", prefill, flops, held, rows, length, held_by_others=others)
    candidates = sampling.batch_size * sampling.num_candidates
    images_only = held - bytes_held(nnx.state(abstract.language_model))
    flops = forward_flops(model, rows=candidates, tokens=candidates * capacity, images=0)
    decode = lowered(decoder.lower_generate, capacity)
    others = held_by_others + images_only
    yield Program(stage, "decode", decode, flops, held, candidates, capacity, steps=capacity, held_by_others=others)


def sampling_cost(sampling: SamplingConfig, images: int, work: Work, programs: Sequence[Cost]) -> tuple[int, float]:
    """Calls of prefill, and seconds of all, for some images."""
    prefill, decode = programs[:2]
    calls = math.ceil(images / prefill.rows)
    decoding = images / (decode.rows / sampling.num_candidates) * decode.seconds * share_of_steps(sampling, work)
    return calls, calls * prefill.seconds + decoding


def share_of_steps(sampling: SamplingConfig, work: Work) -> float:
    """How long a candidate is in its slot on the average; 1 is as long as it can be."""
    return min(1.0, work.answer / USEFUL_STEPS / sampling.max_new_tokens)
