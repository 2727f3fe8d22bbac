"""Selection: candidates a second on one core, both passes with their reading and writing, and the peak of memory.

    python -m benchmarks.selection --candidates 1000000

The candidates are made up: five an image, about seventy words each, eight signals from each of two streams, one in ten
of a thing that is not there. Selection runs in a separate process, so the peak is its alone, interpreter included;
the CPU seconds of all of its threads are counted, for the cores may be shared.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from vigor_jax.data.records.store import write_part
from vigor_jax.records import Candidate, Signal, Span, Verdict

STREAMS = ("detector", "reward_model")
CANDIDATES_PER_IMAGE = 5
SIGNALS = 8
_WORDS = ("a", "the", "red", "small", "wooden", "with", "near", "on", "table", "car", "tree", "man", "lamp", "window")


def make_text(draw: random.Random) -> tuple[str, list[Span]]:
    """As many sentences as signals, and where each is."""
    text, spans = "", []
    for _ in range(SIGNALS):
        words = draw.choices(_WORDS, k=draw.randint(6, 12))
        sentence = " ".join(["The", *words]) + "."
        start = len(text) + bool(text)
        text = f"{text} {sentence}" if text else sentence
        spans.append(Span(start, len(text)))
    return text, spans


def make_part(folder: Path, index: int, count: int, num_candidates: int) -> None:
    """Candidates and verdicts of one part; the texts come from a pool, the judgments do not."""
    pool = [make_text(random.Random(seed)) for seed in range(500)]

    def candidates() -> Iterator[Candidate]:
        draw = random.Random(index)
        for i in range(num_candidates):
            image, number = f"part{index}/{i // CANDIDATES_PER_IMAGE:08d}.jpg", i % CANDIDATES_PER_IMAGE
            tokens = tuple(draw.choices(range(32000), k=100))
            text = pool[(index + 7 * i) % len(pool)][0]
            yield Candidate(image, "Describe this image.", number, text, tokens, -draw.random(), "stop")

    def verdicts(stream: str) -> Iterator[Verdict]:
        draw = random.Random(f"{stream} {index}")
        for i in range(num_candidates):
            image, number = f"part{index}/{i // CANDIDATES_PER_IMAGE:08d}.jpg", i % CANDIDATES_PER_IMAGE
            signals = []
            for start, end in pool[(index + 7 * i) % len(pool)][1]:
                score = draw.random()
                absent = stream == STREAMS[0] and score < 0.1
                negative, positive = (float(absent), float(not absent)) if stream == STREAMS[0] else (1 - score, score)
                signals.append(Signal("thing", (Span(start + 4, end - 1),), negative, positive, score, absent))
            yield Verdict(image, number, stream, tuple(signals))

    write_part(folder / "candidates", index, count, candidates(), Candidate)
    for stream in STREAMS:
        write_part(folder / "verdicts" / stream, index, count, verdicts(stream), Verdict)


def measure(folder: Path) -> None:
    """Runs the stage and prints its CPU seconds and peak memory as a line of JSON."""
    from vigor_jax.stages.select_config import SelectConfig, select

    start, wall = time.process_time(), time.perf_counter()
    summary = select(SelectConfig(), folder, streams=STREAMS)
    assert summary is not None
    figures = {
        "candidates": summary.candidates,
        "cpu_seconds": time.process_time() - start,
        "wall_seconds": time.perf_counter() - wall,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(figures))


def run(folder: Path) -> dict[str, float]:
    """`measure` in a separate process."""
    command = [sys.executable, "-m", "benchmarks.selection", "--measure", str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=50_000)
    parser.add_argument("--parts", type=int, default=4)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        each = options.candidates // options.parts // CANDIDATES_PER_IMAGE * CANDIDATES_PER_IMAGE
        for index in range(options.parts):
            make_part(folder, index, options.parts, each)
        figures = run(folder)
    from benchmarks.common import describe_machine  # imports torch, which the measured process has no use for

    print(describe_machine())
    print("| candidates | candidates/s/core | CPU s | wall s | peak MiB |\n| --- | --- | --- | --- | --- |")
    speed = figures["candidates"] / figures["cpu_seconds"]
    print(
        f"| {figures['candidates']} | {speed:.0f} | {figures['cpu_seconds']:.1f} | {figures['wall_seconds']:.1f} | "
        f"{figures['peak_mib']:.0f} |"
    )


if __name__ == "__main__":
    main()
