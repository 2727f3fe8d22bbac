"""An update of DPO: ours, ours with one response a row, and a loop of transformers + PEFT, in one run.

    python -m benchmarks.dpo                                      about 100M parameters, float32, CPU
    python -m benchmarks.dpo --rank 0 --sides separate peer       all weights but the tower's, in place of an adapter
    python -m benchmarks.dpo --size tiny --images 1 --repeats 1   a trial: its figures mean nothing

An update: a better and a worse response, as long as real captions, to each image (576 image tokens); AdamW over LoRA
(the seven projections). With `--responses`, more of them to an image, and every two of them are a pair. Both of ours
are the code of `stages/dpo.py`; the second gets each response as a row with image and prompt once more. The peers
(`benchmarks/dpo_peer.py`) get the better and the worse responses as rows of one batch, as TRL's DPOTrainer does. What
the reference says is computed before, on all sides but "as TRL": with images, TRL 1.16 computes it in every update.

Before anything is measured, all sides do two updates from the same weights: log-probabilities of the reference and the
losses of both must be the same but for rounding. That compiles, too; how long it takes is printed. The runs alternate.
Speed is pairs a second, of wall clock and of CPU time. What the form can save at most, in tokens, is printed, too.
"""

import argparse
import copy
import dataclasses
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import build_peer, describe_machine, our_config, print_table, sizes
from benchmarks.dpo_peer import Peer
from benchmarks.dpo_work import EndedWords, Ours, Settings, make_preferences
from benchmarks.ppo import Compilation
from benchmarks.ppo_work import Clock, make_checkpoint, weights_of
from vigor_jax.models.clip import normalize

SHARED, SEPARATE, PEER, TRL = "vigor_jax", "one response a row", "transformers + PEFT", "as TRL"
# Most that sides may differ by after the same work: a response's log-probability, and the losses.
LOGPS_ERROR, LOSS_ERROR = 1e-2, 1e-4
CHECKED = 2  # the second loss is that after an update


def make_sides(settings: Settings, options: argparse.Namespace) -> dict[str, Any]:
    model = build_peer(options.size, image_size=options.image_size)
    checkpoint = make_checkpoint(our_config(model.config), weights_of(model))
    checkpoint = dataclasses.replace(checkpoint, tokenizer=EndedWords())
    rows = make_preferences(settings, options.image_size)
    sides: dict[str, Any] = {SHARED: Ours(checkpoint, settings, rows, separate=False)}
    ours = sides[SHARED]
    if "separate" in options.sides:
        sides[SEPARATE] = Ours(checkpoint, settings, rows, separate=True)
    pixel_values = torch.tensor(np.array(normalize(ours.pixels, checkpoint.config.vision)).transpose(0, 3, 1, 2))
    adapter = {path.split(".")[-2]: each for path, each in ours.adapter.items() if path.endswith(".lora_a")}
    for name, wanted in ((PEER, "peer"), (TRL, "trl")):
        if wanted in options.sides:
            own = copy.deepcopy(model)
            sides[name] = Peer(own, settings, ours.encoded, pixel_values, adapter, like_trl=name == TRL)
    return sides


def check_same_work(sides: dict[str, Any]) -> dict[str, Any]:
    """Updates of all sides from the same weights; how far they are apart."""
    losses: dict[str, list[float]] = {name: [] for name in sides}
    for name, side in sides.items():
        for _ in range(CHECKED):
            side()
            losses[name].append(side.loss)
    print(f"losses of the updates: { {name: [round(x, 6) for x in each] for name, each in losses.items()} }")
    expected = sides[SHARED].ref_logps
    apart = {name: float(np.abs(np.asarray(side.ref_logps) - expected).max()) for name, side in sides.items()}
    losses_apart = {name: float(np.abs(np.subtract(each, losses[SHARED])).max()) for name, each in losses.items()}
    for name in sides:
        if apart[name] > LOGPS_ERROR or losses_apart[name] > LOSS_ERROR:
            sys.exit(
                f"{name} does not do the same work as {SHARED}: log-probabilities {apart[name]:.1e} apart, losses "
                f"{losses_apart[name]:.1e}"
            )
    learned = abs(losses[SHARED][1] - losses[SHARED][0])
    print(
        f"log-probabilities of responses at most {max(apart.values()):.1e} apart, losses "
        f"{max(losses_apart.values()):.1e}; the first update changed the loss by {learned:.1e}"
    )
    return {"losses": losses, "logps_apart": apart, "losses_apart": losses_apart}


def tokens_of(sides: dict[str, Any]) -> dict[str, Any]:
    """Tokens of the decoder in an update, without and with padding, and images; printed, with the most to be saved."""
    encoded = sides[SHARED].encoded
    shared = sum(len(each.prompt) + sum(map(len, each.responses)) - len(each.responses) for each in encoded)
    separate = sum(len(each.prompt) + len(response) - 1 for each in encoded for response in each.responses)
    pairs = sum(
        2 * len(each.prompt) + len(each.responses[b]) + len(each.responses[w]) - 2
        for each in encoded
        for b, w in each.pairs
    )
    found = {}
    for name, side in sides.items():
        own = {SHARED: shared, SEPARATE: separate}.get(name, pairs)
        found[name] = {"tokens": own, "padded": int(np.prod(side.token_ids.shape))}
        print(f"{name}: {own} tokens in {tuple(side.token_ids.shape)}, {own / shared:.2f} times those of {SHARED}")
    return found


def measure(sides: dict[str, Any], repeats: int) -> dict[str, list[Clock]]:
    clocks: dict[str, list[Clock]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            clock = Clock()
            with clock("update"):
                side()
            clocks[name].append(clock)
            print(f"{name}: {clock.wall['update']:.1f} s, {clock.cpu['update']:.1f} CPU seconds", flush=True)
    return clocks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sizes(), default="100m")
    parser.add_argument("--image-size", type=int, default=336, help="pixels; an image has (pixels / 14)² tokens")
    parser.add_argument("--images", type=int, default=2, help="an update")
    parser.add_argument("--responses", type=int, default=2, help="to an image; every two of them are a pair")
    parser.add_argument("--most-tokens", type=int, default=198, help="of a response")
    parser.add_argument("--rank", type=int, default=16, help="0: all weights but the tower's")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--bucket", type=int, default=64)
    parser.add_argument("--remat", default="none", choices=("none", "dots", "full"), help="full: the peer, too")
    sides_of = ("separate", "peer", "trl")
    parser.add_argument("--sides", nargs="+", choices=sides_of, default=list(sides_of))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--one-core", action="store_true", help="for a machine shared with others: look at CPU seconds")
    parser.add_argument("--json", type=Path, help="gets all figures")
    options = parser.parse_args()
    if options.responses < 2:
        parser.error(f"--responses {options.responses}: expected at least 2")
    if not options.rank and "trl" in options.sides:
        parser.error("--rank 0: TRL then holds a second model; give --sides separate peer")
    if options.one_core:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before JAX makes its threads
        torch.set_num_threads(1)
    settings = Settings(
        images=options.images,
        responses=options.responses,
        rank=options.rank,
        learning_rate=options.learning_rate,
        most_tokens=options.most_tokens,
        bucket=options.bucket,
        remat=options.remat,
    )
    compilation, compiled = Compilation(), dict[str, float]()
    with compilation.of("all", compiled):
        sides = make_sides(settings, options)
        trained = f"LoRA of rank {settings.rank}" if settings.rank else "all weights"
        lengths, prompt = settings.lengths, len(sides[SHARED].encoded[0].prompt)
        print(
            f"{describe_machine()}; {options.size}, {trained}, "
            f"float32, {settings.pairs} pairs of {settings.images} images an update, prompts of {prompt} tokens, "
            f"responses of {lengths.mean():.0f} words ({lengths.min()}-{lengths.max()}); {torch.get_num_threads()} "
            "threads of torch",
            flush=True,
        )
        same = check_same_work(sides)
    print(f"tracing and compiling took {compiled['all']:.1f} s", flush=True)
    tokens = tokens_of(sides)
    clocks = measure(sides, options.repeats)
    found: dict[str, Any] = {}
    for kind, words in (("wall", "wall clock"), ("cpu", "CPU seconds")):
        speeds = {
            name: [settings.pairs / getattr(each, kind)["update"] for each in runs] for name, runs in clocks.items()
        }
        print_table(f"pairs/s, {words}", speeds)
        ratios = {
            name: statistics.median(a / b for a, b in zip(speeds[SHARED], runs, strict=True))
            for name, runs in speeds.items()
            if name != SHARED
        }
        found[kind] = {"pairs_per_second": speeds, "ratios": ratios}
    if options.json:
        results = {
            "machine": describe_machine(),
            "settings": dataclasses.asdict(settings) | {"size": options.size, "image_size": options.image_size},
            "compile_seconds": compiled["all"],
            "same_work": same,
            "tokens": tokens,
            **found,
        }
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
