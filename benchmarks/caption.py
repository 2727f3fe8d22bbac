"""Sampling speed: five candidates an image, ours and transformers' `generate`, the same weights, in one run.

    python -m benchmarks.caption                              about 100M parameters, float32, CPU
    python -m benchmarks.caption --real-lengths --at-once 4   captions end where real ones do
    python -m benchmarks.caption --size 7b --dtype bfloat16   on one big GPU, random weights

Both sides answer the same images and prompt (576 image tokens and 45 of text) with candidates of the same lengths, EOS
suppressed, at temperature 0.7. The peer is in `eval` and `inference_mode` with SDPA; of the batch sizes and caches
given for it, each is measured once and the fastest is compared. The runs alternate, and the median is printed.
With `--real-lengths` each candidate ends at a length drawn from `sft.CAPTION_LENGTHS`, and only tokens up to there
count: ours continues with another candidate as soon as one has ended, the peer with other images when all candidates
of its batch have.
On a machine shared with others, `--one-core` pins both sides to one core and counts the process's own CPU seconds.
"""

import argparse
import dataclasses
import itertools
import os
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
import torch
from flax import nnx

from benchmarks.common import build_peer, describe_machine, port, print_table, sizes
from benchmarks.sft import CAPTION_LENGTHS
from vigor_jax.inference.sampler import Ending, Request, Sampler
from vigor_jax.inference.sampling_config import SamplingConfig
from vigor_jax.inference.schedule import Candidate
from vigor_jax.models.clip import ClipConfig, normalize
from vigor_jax.models.llava import Llava, LlavaConfig
from vigor_jax.parallel.config import MeshConfig
from vigor_jax.parallel.sharding import make_mesh

NUM_WORDS = 45
VOCAB_SIZE = 32000


class NoEnd:
    """A tokenizer of which no token ends a candidate, and that spends no time on text."""

    eos_id, pad_id, vocab_size = -1, -1, VOCAB_SIZE

    def decode(self, token_ids: np.ndarray) -> str:
        return ""

    def instruction_ids(self, texts: Sequence[str]) -> None:
        return None


def make_requests(config: LlavaConfig, count: int) -> list[Request]:
    """Random images and one random prompt."""
    rng = np.random.default_rng(0)
    edge = config.vision.image_size
    words = rng.integers(3, VOCAB_SIZE, NUM_WORDS).tolist()
    ids = [1, *words[:35], *[config.image_token_id] * config.num_image_tokens, *words[36:]]
    pixels = rng.integers(0, 256, (count, edge, edge, 3), dtype=np.uint8)
    return [Request(str(i), ids, image, "prompt") for i, image in enumerate(pixels)]


def make_lengths(sampling: SamplingConfig, count: int, *, real: bool) -> np.ndarray:
    """Tokens of the candidates of each image: int [count, C]."""
    shape = count, sampling.num_candidates
    drawn = np.random.default_rng(1).choice(CAPTION_LENGTHS if real else [sampling.max_new_tokens], shape)
    return np.minimum(drawn, sampling.max_new_tokens)


class Ours(Sampler):
    """The package's own sampler, whose candidates of image number i end at `lengths[i]`."""

    lengths: np.ndarray

    def _ending(self, candidate: Candidate) -> Ending | None:
        end = int(self.lengths[int(candidate.group.request.image_id), candidate.index])
        return Ending(end, "length") if len(candidate.token_ids) >= end else None


def make_ours(
    model: Llava, sampling: SamplingConfig, requests: list[Request], lengths: np.ndarray
) -> Callable[[], int]:
    """The number of tokens it makes."""
    sampler = Ours(model, NoEnd(), sampling, make_mesh(MeshConfig(data=-1, fsdp=1)))
    sampler.lengths = lengths
    return lambda: sum(len(c.token_ids) for completions in sampler.generate(requests) for c in completions)


@dataclasses.dataclass(frozen=True, eq=False)
class Peer:
    """`generate(num_return_sequences=...)`, `batch_size` images at a time."""

    model: torch.nn.Module
    sampling: SamplingConfig
    token_ids: torch.Tensor
    pixel_values: torch.Tensor
    lengths: torch.Tensor
    batch_size: int
    cache: str | None

    @torch.inference_mode()
    def __call__(self) -> int:
        for images, lengths in zip(
            self.pixel_values.split(self.batch_size), self.lengths.split(self.batch_size), strict=True
        ):
            token_ids = self.token_ids.expand(len(images), -1)
            ends = (token_ids.shape[1] + lengths).flatten()
            output = self.model.generate(
                input_ids=token_ids,
                attention_mask=torch.ones_like(token_ids),
                pixel_values=images,
                do_sample=True,
                temperature=self.sampling.temperature,
                top_k=0,
                top_p=1.0,
                num_return_sequences=self.sampling.num_candidates,
                max_new_tokens=self.sampling.max_new_tokens,
                min_new_tokens=self.sampling.max_new_tokens,
                cache_implementation=self.cache,
                pad_token_id=0,
                stopping_criteria=[lambda ids, scores, ends=ends: ids.shape[1] >= ends],
            )
            assert output.shape[1] == ends.max()
        return int(self.lengths.sum())

    def __str__(self) -> str:
        return f"transformers, {self.batch_size} images at a time, {self.cache or 'dynamic'} cache"


def peer_inputs(model: torch.nn.Module, requests: list[Request], lengths: np.ndarray) -> tuple[torch.Tensor, ...]:
    """The prompt that all of them share, their images, where the model is and in its type, and the lengths."""
    first = next(model.parameters())
    pixels = np.stack([request.pixels for request in requests])
    pixel_values = np.array(normalize(pixels, ClipConfig())).transpose(0, 3, 1, 2)
    ids, ends = (torch.tensor(values, device=first.device) for values in ([requests[0].prompt_ids], lengths))
    return ids, torch.tensor(pixel_values).to(first), ends


def speed(side: Callable[[], int], clock: Callable[[], float]) -> float:
    """Tokens a second."""
    start = clock()
    return side() / (clock() - start)


def fastest_peer(
    model: torch.nn.Module,
    sampling: SamplingConfig,
    requests: list[Request],
    lengths: np.ndarray,
    options: argparse.Namespace,
    clock: Callable[[], float],
) -> Peer:
    """Measures each of the given settings once, after a short warm-up."""
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    model = model.to(device).eval()
    inputs = peer_inputs(model, requests, lengths)
    found: dict[Peer, float] = {}
    for batch_size, cache in itertools.product(options.peer_batch_size, options.peer_cache):
        peer = Peer(model, sampling, *inputs, batch_size, None if cache == "dynamic" else cache)
        short = dataclasses.replace(sampling, max_new_tokens=4)
        dataclasses.replace(peer, sampling=short, lengths=peer.lengths.clamp(max=4))()
        found[peer] = speed(peer, clock)
        print(f"{peer}: {found[peer]:.1f} tokens/s", flush=True)
    return max(found, key=lambda peer: found[peer])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sizes(), default="100m")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--images", type=int, default=8, help="a measurement")
    parser.add_argument("--at-once", type=int, help="images at a time, of ours; by default all")
    parser.add_argument("--candidates", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=128, help="a candidate, or at most with --real-lengths")
    parser.add_argument("--real-lengths", action="store_true", help="captions end where real ones do")
    parser.add_argument("--top-p", type=float, default=1.0, help="ours only: what truncation costs")
    parser.add_argument("--peer-batch-size", type=int, nargs="+", default=[4, 8], help="images at a time")
    parser.add_argument("--peer-cache", nargs="+", choices=("dynamic", "static"), default=["dynamic", "static"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--skip-peer", action="store_true", help="where both do not fit next to each other")
    parser.add_argument("--one-core", action="store_true", help="for a machine shared with others")
    options = parser.parse_args()

    clock = time.perf_counter
    if options.one_core:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before JAX makes its threads
        torch.set_num_threads(1)
        clock = time.process_time

    sampling = SamplingConfig(
        max_new_tokens=options.new_tokens,
        num_candidates=options.candidates,
        batch_size=options.at_once or options.images,
        top_p=options.top_p,
    )
    model = build_peer(options.size, getattr(torch, options.dtype))
    llava = port(model, scan=False)
    requests = make_requests(llava.config, options.images)
    lengths = make_lengths(sampling, options.images, real=options.real_lengths)
    num_params = sum(weight.size for weight in jax.tree.leaves(nnx.state(llava)))
    print(
        f"{describe_machine()}; {num_params / 1e6:.0f}M parameters, {options.dtype}, {options.images} images, "
        f"{options.candidates} candidates each, prompts of {len(requests[0].prompt_ids)} tokens, "
        f"{lengths.mean():.0f} new ones ({lengths.min()}-{lengths.max()})"
        f"{', one core, CPU seconds' if options.one_core else ''}"
    )
    sides: dict[str, Callable[[], int]] = {"vigor_jax": make_ours(llava, sampling, requests, lengths)}
    del llava
    if not options.skip_peer:
        peer = fastest_peer(model, sampling, requests, lengths, options, clock)
        sides[str(peer)] = peer
    made = {side() for side in sides.values()}  # compiles
    assert made == {int(lengths.sum())}
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.repeats):
        for name, side in sides.items():
            speeds[name].append(speed(side, clock))
    print_table("new tokens/s", speeds)


if __name__ == "__main__":
    main()
