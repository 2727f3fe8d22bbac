"""One side of one part of `benchmarks/7b.py`, in a process that has the GPU for itself.

    python -m benchmarks.one_gpu sft peer --size tiny --result side.json

Weights are drawn where they are used. A side may be tried in several settings, one after the other; after each
measurement the result file is written again, so that whatever ends this process leaves what it had measured.
"""

import argparse
import contextlib
import dataclasses
import gc
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from jax.sharding import Mesh

from benchmarks import caption, ppo_work, reward, sft
from benchmarks.common import build_peer, our_config, peer_config
from vigor_jax.data.batches.tree_batches import collate, padded_sizes
from vigor_jax.inference.sampling_config import SamplingConfig
from vigor_jax.models.attention import PALLAS_BLOCK
from vigor_jax.models.layers import stacks_inference
from vigor_jax.models.llava import Llava, LlavaConfig
from vigor_jax.models.vlm import abstract_model, param_paths
from vigor_jax.parallel.config import MeshConfig
from vigor_jax.parallel.sharding import make_mesh, param_shardings
from vigor_jax.training.flops import peak_flops, train_flops

# A setting: what makes it ready, as a context that holds it and gives what runs it once → how much that was.
Run: TypeAlias = Callable[[], float]
Tries: TypeAlias = dict[str, Callable[[], contextlib.AbstractContextManager[Run]]]

DTYPE = "bfloat16"
LONGEST_ERROR = 500
# As configs/fisao_7b.yaml, but for the images of an iteration, 64 there.
FISAO = ppo_work.Settings(
    images=16, candidates=4, minibatch=8, at_once=8, rank=128, learning_rate=5e-7, bucket=128, remat="full"
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured; lists are tried one after the other.

    Attributes:
      image_size: in pixels.
      batch_size: of fine-tuning, in examples.
      updates: of a measurement.
      pack: examples that share a row of ours.
      bucket: rows of ours with one example are padded to multiples of it, packed ones to what their kernel takes.
      peer_parts: parts that the peer computes a batch in, how it compiles, and whether it makes a padding mask.
      images: captioned at a time by ours.
      candidates: an image.
      new_tokens: of every candidate.
      peer_caption: images that the peer captions at a time, and its cache.
      reward_images: judged in a measurement.
      at_once: images judged at a time.
      sentences: of a candidate.
      detector_images: of a measurement.
      short_side: of the detector's images, in pixels.
      ppo: an iteration of PPO.
    """

    image_size: int = 336
    batch_size: int = 32
    updates: int = 2
    pack: tuple[int, ...] = (2, 1)
    bucket: int = 64
    peer_parts: tuple[tuple[int, str, bool], ...] = (
        (2, "", False), (2, "layers", False), (4, "layers", False), (2, "", True), (4, "", False), (2, "whole", False),
    )  # fmt: skip
    images: int = 25
    candidates: int = 5
    new_tokens: int = 128
    peer_caption: tuple[tuple[int, str], ...] = ((25, "dynamic"), (25, "static"), (13, "dynamic"), (5, "dynamic"))
    reward_images: int = 24
    at_once: tuple[int, ...] = (4, 8)
    sentences: int = 6
    detector_images: int = 96
    short_side: int = 800
    ppo: ppo_work.Settings = FISAO


SETTINGS = {
    "tiny": Settings(
        image_size=56, batch_size=4, updates=1, peer_parts=((2, "", False), (1, "", True)), images=2,
        new_tokens=8, peer_caption=((2, "dynamic"),), reward_images=2, at_once=(2,), sentences=2, detector_images=2,
        short_side=64, ppo=ppo_work.Settings(images=2, candidates=2, minibatch=1, at_once=1, rank=4, most_tokens=8),
    ),
    "100m": Settings(
        batch_size=4, updates=1, peer_parts=((1, "", False), (1, "layers", False)), images=4,
        new_tokens=64, peer_caption=((4, "dynamic"), (1, "static")), reward_images=2, at_once=(1,), detector_images=4,
        short_side=320, ppo=ppo_work.Settings(images=2, candidates=4, minibatch=1, at_once=1),
    ),
    "7b": Settings(),
}  # fmt: skip


@partial(jax.jit, static_argnums=(1, 2, 3))
def _weight(key: jax.Array, shape: tuple[int, ...], dtype: Any, ones: bool) -> jax.Array:
    return jnp.ones(shape, dtype) if ones else 0.02 * jax.random.normal(key, shape, dtype)


def draw(config: LlavaConfig, dtype: Any, mesh: Mesh, *, scan: bool) -> Llava:
    """Our model with random weights, each made on the device."""
    graphdef, state = nnx.split(abstract_model(config, dtype=dtype, scan=scan))
    places = param_paths(param_shardings(state, mesh))
    key = jax.random.key(0, impl="rbg")  # compiles and draws sooner than the default
    for index, (path, variable) in enumerate(param_paths(state).items()):
        shape = variable.get_value()
        weight = _weight(jax.random.fold_in(key, index), shape.shape, shape.dtype, path.endswith(".scale"))
        variable.set_value(jax.device_put(weight, places[path].get_value()))
    return nnx.merge(graphdef, state)


def draw_peer(size: str, dtype: torch.dtype, image_size: int) -> Any:
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        return build_peer(size, dtype, image_size)


@contextlib.contextmanager
def ours_sft(config: LlavaConfig, settings: Settings, batch: sft.Batch, each: int) -> Iterator[Run]:
    if settings.batch_size % each:
        raise ValueError(f"--pack {each} does not divide a batch of {settings.batch_size}")
    model = draw(config, jnp.float32, make_mesh(MeshConfig()), scan=True)
    bucket = PALLAS_BLOCK if each > 1 else settings.bucket
    side = sft.Ours(model, settings.batch_size, DTYPE, "full", bucket, each)
    del model
    yield lambda: _trained(side([batch] * settings.updates), batch.num_tokens * settings.updates)


@contextlib.contextmanager
def peer_sft(size: str, settings: Settings, batch: sft.Batch, parts: int, compiled: str, masked: bool) -> Iterator[Run]:
    model = draw_peer(size, torch.float32, settings.image_size)
    device, config = next(model.parameters()).device.type, our_config(model.config)
    # Compiled for one shape rather than for any.
    multiple = settings.bucket if compiled else 1
    side = sft.Peer(model, config, device, DTYPE, "full", parts=parts, masked=masked, multiple=multiple)
    for module in {"": [], "layers": model.model.language_model.layers, "whole": [model]}[compiled]:
        module.compile()
    try:
        yield lambda: _trained(side([batch] * settings.updates), batch.num_tokens * settings.updates)
    finally:
        torch.compiler.reset()  # or what is compiled may hold the weights


def _trained(loss: float, tokens: int) -> int:
    if not math.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss}")
    return tokens


def lengths(settings: Settings, sampling: SamplingConfig) -> np.ndarray:
    """All candidates are as long as they may be."""
    return caption.make_lengths(sampling, settings.images, real=False)


@contextlib.contextmanager
def ours_caption(config: LlavaConfig, settings: Settings, sampling: SamplingConfig) -> Iterator[Run]:
    mesh = make_mesh(MeshConfig(data=-1, fsdp=1))
    model = draw(config, jnp.dtype(DTYPE), mesh, scan=stacks_inference())
    requests = caption.make_requests(config, settings.images)
    yield caption.make_ours(model, sampling, requests, lengths(settings, sampling))


@contextlib.contextmanager
def peer_caption(size: str, settings: Settings, sampling: SamplingConfig, at_once: int, cache: str) -> Iterator[Run]:
    model = draw_peer(size, getattr(torch, DTYPE), settings.image_size).eval()
    requests = caption.make_requests(our_config(model.config), settings.images)
    inputs = caption.peer_inputs(model, requests, lengths(settings, sampling))
    try:
        yield caption.Peer(model, sampling, *inputs, at_once, None if cache == "dynamic" else cache)
    finally:
        torch.compiler.reset()


@contextlib.contextmanager
def ours_reward(config: LlavaConfig, settings: Settings, at_once: int) -> Iterator[Run]:
    images = reward.make_images(config, settings.reward_images, settings.candidates, settings.sentences)
    model = draw(config, jnp.dtype(DTYPE), make_mesh(MeshConfig(data=-1, fsdp=1)), scan=stacks_inference())
    scoring: Any = reward.Scoring(model, images, SimpleNamespace(answer_tokens=3))  # type: ignore[arg-type]
    del model
    sizes = padded_sizes([image.together for image in images], settings.bucket)

    def run() -> float:
        for start in range(0, len(images), at_once):
            part = images[start : start + at_once]
            pixels = np.stack([image.pixels for image in part])
            answers = scoring.whole(scoring.weights, collate([image.together for image in part], *sizes, 0, pixels))
            if not np.isfinite(jax.device_get(answers).scores).all():
                raise FloatingPointError("the reward model's scores are not finite")
        return len(images) * settings.candidates * settings.sentences

    yield run


@contextlib.contextmanager
def ours_ppo(config: LlavaConfig, settings: Settings) -> Iterator[Run]:
    """Whole iterations: the weights are on the device twice, for sampling and for training."""
    checkpoint = ppo_work.make_checkpoint(config, ppo_work.drawn_weights(config))
    side = ppo_work.Ours(checkpoint, settings.ppo, DTYPE)

    def run() -> float:
        clock = ppo_work.Clock()
        side(clock)
        print({part: round(seconds, 2) for part, seconds in clock.wall.items()}, flush=True)
        return settings.ppo.images

    yield run


@contextlib.contextmanager
def ours_detector(size: str, settings: Settings) -> Iterator[Run]:
    """GroundingDINO behind gRPC; below the sizes of a GPU a toy."""
    # Needs the detector's own packages.
    from benchmarks import detector

    images = [detector.make_image(seed) for seed in range(settings.detector_images)]
    phrases = [detector.make_captions(seed) for seed in range(settings.detector_images)]
    on_gpu = torch.cuda.is_available()
    options = ("--devices", "cuda:0" if on_gpu else "cpu", "--dtype", DTYPE if on_gpu else "float32")
    with tempfile.TemporaryDirectory() as scratch:
        if size == "tiny":
            detector.write_transformers(Path(scratch))
        else:
            detector.write_swin_t(Path(scratch), settings.short_side)
        options += ("--batch-size", "8" if on_gpu else "1", "--batch-wait-ms", "50")
        with (
            detector.LocalDetector(detector.LocalConfig(Path(scratch), options=options)) as local,
            detector.BlockingClient(detector.ClientConfig((local.address,))) as client,
        ):

            def run() -> float:
                detector.through_the_sidecar(client, images, phrases, time.perf_counter)
                return len(images)

            yield run


def tries_of(part: str, side: str, size: str, settings: Settings) -> tuple[Tries, dict[str, Any]]:
    """The settings to try, the most promising and safest first, and figures that the speeds are reckoned with."""
    config = our_config(peer_config(size, settings.image_size))
    sampling = SamplingConfig(
        max_new_tokens=settings.new_tokens, num_candidates=settings.candidates, batch_size=settings.images
    )
    if part == "sft":
        (batch,) = sft.make_batches(config, settings.batch_size, 1, real=True, text_only=0.0)
        rows, modules = settings.batch_size, frozenset(("multi_modal_projector", "language_model"))
        flops = train_flops(config, modules, rows=rows, tokens=batch.num_tokens, images=rows)
        about = {
            "tokens_per_example": batch.num_tokens / rows,
            "flops_per_token": flops / batch.num_tokens,
            "peak_flops": peak_flops(_device_name()),
        }
        if side == "ours":
            names = {each: f"{each} example{'s' * (each > 1)} a row" for each in settings.pack}
            return {names[each]: partial(ours_sft, config, settings, batch, each) for each in names}, about
        return {
            f"sdpa {'with a padding mask' if masked else 'causal'}, {rows // parts} rows at a time, "
            f"{f'torch.compile: {compiled}' if compiled else 'eager'}": partial(
                peer_sft, size, settings, batch, parts, compiled, masked
            )
            for parts, compiled, masked in settings.peer_parts
        }, about
    if part == "caption":
        about = {"mean_caption_tokens": float(np.mean(sft.CAPTION_LENGTHS)), "new_tokens": settings.new_tokens}
        if side == "ours":
            return {f"{settings.images} images at a time": partial(ours_caption, config, settings, sampling)}, about
        return {
            f"generate, {at_once} images at a time, {cache} cache": partial(
                peer_caption, size, settings, sampling, at_once, cache
            )
            for at_once, cache in settings.peer_caption
        }, about
    if part == "reward":
        return {f"{n} images at a time": partial(ours_reward, config, settings, n) for n in settings.at_once}, {}
    if part == "ppo":
        lengths = settings.ppo.lengths
        about = {"candidates": settings.ppo.candidates, "mean_response_tokens": float(lengths.mean())}
        return {f"{settings.ppo.images} images an iteration": partial(ours_ppo, config, settings)}, about
    return {"sidecar, one request an image": partial(ours_detector, size, settings)}, {}


def measure(tries: Tries, repeats: int, until: float, save: Callable[[dict[str, Any]], None]) -> None:
    """Runs each setting once to compile and then `repeats` times; an error of one leaves the others.

    A setting is not begun when less time is left, until `time.monotonic()`'s `until`, than half of what the longest so
    far took.
    """
    tried: dict[str, Any] = {name: {"skipped": "no time was left for it"} for name in tries}
    longest = 0.0
    for name, prepare in tries.items():
        start = time.perf_counter()
        if time.monotonic() + longest / 2 > until:
            break
        tried[name] = {"error": "ended from outside before the first measurement"}
        save(tried)
        try:
            with prepare() as run:
                run()
                print(f"{name}: ready after {time.perf_counter() - start:.1f} s", flush=True)
                runs: list[float] = []
                for _ in range(repeats):
                    before = time.perf_counter()
                    amount = run()
                    runs.append(amount / (time.perf_counter() - before))
                    tried[name] = {"runs": runs}
                    save(tried)
        except Exception as error:  # out of memory, for one: the next setting may need less
            tried[name] = tried[name] | {"error": f"{type(error).__name__}: {str(error)[:LONGEST_ERROR]}"}
        run = None  # type: ignore[assignment]  # holds the weights
        gc.collect()
        torch.cuda.empty_cache()
        longest = max(longest, time.perf_counter() - start)
        tried[name]["seconds"] = round(time.perf_counter() - start, 2)
        print(f"{name}: {tried[name]}", flush=True)
        save(tried)


def _device_name() -> str:
    """Of the side's own framework: the other one is not to take memory here."""
    on_torch = jax.default_backend() == "cpu" and torch.cuda.is_available()
    return torch.cuda.get_device_name() if on_torch else jax.devices()[0].device_kind


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("sft", "caption", "reward", "ppo", "detector"))
    parser.add_argument("side", choices=("ours", "peer"))
    parser.add_argument("--size", choices=tuple(SETTINGS), default="7b")
    parser.add_argument("--pack", type=int, nargs="+", help="instead of the size's own")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--until", type=float, default=math.inf, help="by time.monotonic(), the same in all processes")
    parser.add_argument("--result", type=Path, required=True)
    options = parser.parse_args()
    settings = SETTINGS[options.size]
    if options.size == "7b" and _device_name() == "cpu":
        sys.exit(
            "no GPU: a 7B wants one, and jax[cuda13] or jax[cuda12] next to a torch with CUDA; --size tiny does not"
        )
    if options.pack:
        settings = dataclasses.replace(settings, pack=tuple(options.pack))

    tries, about = tries_of(options.part, options.side, options.size, settings)
    about |= {"device": _device_name(), "settings": dataclasses.asdict(settings)}

    def save(tried: dict[str, Any]) -> None:
        scratch = options.result.with_suffix(".tmp")
        scratch.write_text(json.dumps({"about": about, "tried": tried}))
        scratch.replace(options.result)

    measure(tries, options.repeats, options.until, save)


if __name__ == "__main__":
    main()
