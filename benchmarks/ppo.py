"""An iteration of PPO: ours, ours with one response a row, and a loop of transformers + PEFT, in one run.

    python -m benchmarks.ppo                                     about 100M parameters, float32, CPU
    python -m benchmarks.ppo --size tiny --images 1 --repeats 1  a trial: its figures mean nothing

An iteration: 5 responses to each image (576 image tokens) are drawn, as long as real captions; policy and reference
give log-probabilities and the value head its values; 4 epochs of AdamW over LoRA (the seven projections) and the value
head follow, one update an epoch. The rewards of tokens are given. Both of ours are the code of `stages/ppo.py`; the
second gets each response as a question with its own image. The peer (`benchmarks/ppo_peer.py`) draws with the fastest
of the given caches, with the adapter merged into the weights or not, each measured once.

Before anything is measured, all sides do an iteration of two epochs on the responses that ours has drawn, from the same
weights: their log-probabilities and the losses of both updates must be the same but for rounding. That compiles, too;
how long it takes is printed. The runs alternate. Speed is response tokens a second, of wall clock and of CPU time.
"""

import argparse
import dataclasses
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch

from benchmarks.common import build_peer, describe_machine, our_config, print_table, sizes
from benchmarks.ppo_peer import Peer, take_adapter
from benchmarks.ppo_work import PARTS, PROMPT, Clock, Ours, Settings, make_checkpoint, make_pictures, weights_of
from vigor_jax.models.clip import normalize

SHARED, SEPARATE, PEER = "vigor_jax", "one response a row", "transformers + PEFT"
# Most that sides may differ by after the same work: log-probabilities in the mean, losses each.
LOGPS_ERROR, LOSS_ERROR = 1e-4, 1e-4
CHECKED_EPOCHS = 2  # the second loss is that after an update


class Compilation:
    """Seconds that JAX traced and compiled for, so far."""

    def __init__(self) -> None:
        self.seconds = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._add)

    def _add(self, event: str, duration_secs: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            self.seconds += duration_secs

    @contextmanager
    def of(self, name: str, into: dict[str, float]) -> Iterator[None]:
        before = self.seconds
        yield
        into[name] = into.get(name, 0.0) + self.seconds - before


def choose_rollout(peer: Peer, caches: list[str]) -> dict[str, float]:
    """Leaves the peer in the setting that draws responses fastest; seconds of each."""
    tried, best = {}, None
    for cache, merges in itertools.product(caches, (False, True)):
        peer.cache, peer.merges = None if cache == "dynamic" else cache, merges
        start = time.perf_counter()
        peer.rollout()
        name = f"{cache} cache, adapter {'merged' if merges else 'apart'}"
        tried[name] = time.perf_counter() - start
        print(f"{PEER}, {name}: responses in {tried[name]:.1f} s", flush=True)
        if tried[name] == min(tried.values()):
            best = peer.cache, merges
    assert best is not None
    peer.cache, peer.merges = best
    return tried


def check_same_work(sides: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """An iteration of all sides on the same responses from the same weights; how far they are apart."""
    epochs = min(settings.epochs, CHECKED_EPOCHS)
    rollouts, arrays = sides[SHARED](Clock(), None, epochs)
    said = [completion for some in rollouts.completions for completion in some]
    lengths = settings.lengths.ravel()
    logps = {SHARED: arrays.old_logps[arrays.mask]}
    tokens = {SHARED: int(arrays.mask.sum())}
    rewards = arrays.rewards[arrays.mask]
    for name, side in sides.items():
        if name == SEPARATE:
            other, found = side(Clock(), [[completion] for completion in said], epochs)
            logps[name], tokens[name] = found.old_logps[found.mask], int(found.mask.sum())
            assert (found.rewards[found.mask] == rewards).all()
        elif name == PEER:
            other, found = side(Clock(), [completion.token_ids for completion in said], epochs)
            logps[name], tokens[name] = found["logps"][other.is_token].numpy(), int(other.is_token.sum())
    assert set(tokens.values()) == {int(lengths.sum())}, tokens
    losses = {name: (side.losses if name == PEER else side.learner.losses) for name, side in sides.items()}
    apart = {name: float(np.abs(each - logps[SHARED]).mean()) for name, each in logps.items() if name != SHARED}
    losses_apart = {
        name: float(np.abs(np.subtract(each, losses[SHARED])).max()) for name, each in losses.items() if name != SHARED
    }
    print(f"losses of the updates: { {name: [round(x, 6) for x in each] for name, each in losses.items()} }")
    for name in apart:
        print(f"{name}: log-probabilities {apart[name]:.1e} apart in the mean, losses at most {losses_apart[name]:.1e}")
        if apart[name] > LOGPS_ERROR or losses_apart[name] > LOSS_ERROR:
            sys.exit(f"{name} does not do the same work as {SHARED}: more than {LOGPS_ERROR} or {LOSS_ERROR} apart")
    return {"tokens": tokens[SHARED], "losses": losses, "logps_apart": apart, "losses_apart": losses_apart}


def measure(sides: dict[str, Any], repeats: int) -> dict[str, list[Clock]]:
    clocks: dict[str, list[Clock]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            clock = Clock()
            side(clock)
            clocks[name].append(clock)
            print(f"{name}: { {part: round(seconds, 1) for part, seconds in clock.wall.items()} } s", flush=True)
    return clocks


def summary(clocks: dict[str, list[Clock]], tokens: int) -> dict[str, Any]:
    """Speeds by clock, part and side, which are printed; with ratios of ours to the others, run by run."""
    found: dict[str, Any] = {}
    for kind, part in itertools.product(("wall", "cpu"), ("iteration", *PARTS)):
        of_part = (part,) if part in PARTS else PARTS
        speeds = {
            name: [tokens / sum(getattr(clock, kind)[each] for each in of_part) for clock in runs]
            for name, runs in clocks.items()
        }
        if kind == "wall" or part == "iteration":
            print_table(f"{part}: response tokens/s, {'wall clock' if kind == 'wall' else 'CPU seconds'}", speeds)
        ratios = {
            name: statistics.median(a / b for a, b in zip(speeds[SHARED], runs, strict=True))
            for name, runs in speeds.items()
            if name != SHARED
        }
        found.setdefault(kind, {})[part] = {"tokens_per_second": speeds, "ratios": ratios}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sizes(), default="100m")
    parser.add_argument("--image-size", type=int, default=336, help="pixels; an image has (pixels / 14)² tokens")
    parser.add_argument("--images", type=int, default=1, help="an iteration, and an update")
    parser.add_argument("--at-once", type=int, default=1, help="images with their responses computed at a time")
    parser.add_argument("--candidates", type=int, default=5)
    parser.add_argument("--most-tokens", type=int, default=198, help="of a response")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--bucket", type=int, default=64)
    parser.add_argument("--remat", default="none", choices=("none", "dots", "full"), help="full: the peer, too")
    parser.add_argument("--peer-cache", nargs="+", choices=("dynamic", "static"), default=["static"])
    parser.add_argument("--peer-attention", choices=("sdpa", "eager"), default="sdpa")
    parser.add_argument("--sides", nargs="+", choices=("separate", "peer"), default=["separate", "peer"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--one-core", action="store_true", help="for a machine shared with others: look at CPU seconds")
    parser.add_argument("--json", type=Path, help="gets all figures")
    options = parser.parse_args()
    if options.images % options.at_once:
        parser.error(f"--at-once {options.at_once} does not divide --images {options.images}")
    if options.one_core:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before JAX makes its threads
        torch.set_num_threads(1)
    settings = Settings(
        images=options.images,
        candidates=options.candidates,
        minibatch=options.images,
        at_once=options.at_once,
        epochs=options.epochs,
        rank=options.rank,
        learning_rate=options.learning_rate,
        most_tokens=options.most_tokens,
        bucket=options.bucket,
        remat=options.remat,
    )

    model = build_peer(options.size, image_size=options.image_size)
    checkpoint = make_checkpoint(our_config(model.config), weights_of(model))
    compilation, compiled = Compilation(), dict[str, float]()
    sides: dict[str, Any] = {}
    for name in (SHARED, SEPARATE) if "separate" in options.sides else (SHARED,):
        sides[name] = Ours(checkpoint, settings, "float32", separate=name == SEPARATE)
    policy = sides[SHARED].policy
    prompt_ids = list(policy.prompt_ids(PROMPT))
    num_params = sum(weight.numel() for weight in model.parameters())
    print(
        f"{describe_machine()}; {num_params / 1e6:.0f}M parameters, LoRA of rank {settings.rank}, float32, "
        f"{settings.images} images, {settings.candidates} responses each, prompts of {len(prompt_ids)} tokens, "
        f"responses of {settings.lengths.mean():.0f} ({settings.lengths.min()}-{settings.lengths.max()}), "
        f"{settings.epochs} epochs; {torch.get_num_threads()} threads of torch",
        flush=True,
    )
    tried = {}
    if "peer" in options.sides:
        pixels = np.stack([policy.pixels(each) for each in make_pictures(settings.images, options.image_size)])
        pixel_values = np.array(normalize(pixels, checkpoint.config.vision)).transpose(0, 3, 1, 2)
        peer = Peer(model, settings, prompt_ids, torch.tensor(pixel_values), options.peer_attention)
        adapter = sides[SHARED].learner.policy_params
        take_adapter(
            peer.model,
            {path.split(".")[-2]: np.asarray(weight) for path, weight in adapter.items() if path.endswith(".lora_a")},
        )
        tried = choose_rollout(peer, options.peer_cache)
        sides[PEER] = peer

    with compilation.of("all", compiled):
        same = check_same_work(sides, settings)
        if SEPARATE in sides:
            sides[SEPARATE].rollout()  # compiles the sampler
    print(f"tracing and compiling took {compiled['all']:.1f} s", flush=True)
    before = compilation.seconds
    clocks = measure(sides, options.repeats)
    print(f"compiling within what was measured: {compilation.seconds - before:.1f} s")
    found = summary(clocks, same["tokens"])
    if options.json:
        results = {
            "machine": describe_machine(),
            "settings": dataclasses.asdict(settings) | {"size": options.size, "image_size": options.image_size},
            "compile_seconds": compiled["all"],
            "peer_rollouts": tried,
            "same_work": same,
            **found,
        }
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
