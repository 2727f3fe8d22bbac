"""What judging claims adds to the scoring stage of a demo run: streams [detector], and [detector, claims].

    python -m benchmarks.claims                                  60 scenes, 5 captions each
    python -m benchmarks.claims --reward-model                   both sides with the reward model, as the demo has it
    python -m benchmarks.claims --kinds number,place,relation    claims for which the detector is asked nothing more
    python -m benchmarks.claims --images 2 --repeats 1           a trial: its figures mean nothing

The demo's policy describes drawn scenes once. Then the stage judges these captions, with one side's streams and with
the other's in turn, by one sidecar with the demo's detector, which serves all the time: its start and imports are not
counted, and what is compiled is kept. Time is wall clock, and CPU seconds of this process and the sidecar, for the
cores may be shared. Captions a second are of one thread: sentences and phrases, and all that the stream `claims` does.
"""

import argparse
import dataclasses
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import psutil

from benchmarks.common import describe_machine, print_table
from detector_bridge.local import LocalConfig, LocalDetector
from vigor_jax.config import Stage, TrainConfig
from vigor_jax.data.images.store import open_images
from vigor_jax.data.records.store import read_parts
from vigor_jax.demo.config import demo_config
from vigor_jax.demo.dataset import CHECKPOINTS, COLOR_WORDS, draw_split, write_colors
from vigor_jax.demo.variants import replaced
from vigor_jax.parallel.compilation_cache import keep_compiled
from vigor_jax.pipeline.run import Run
from vigor_jax.records import CLAIM_KINDS, Candidate, ScoreItem, Verdict
from vigor_jax.rewards.claims.stream import ClaimStream
from vigor_jax.rewards.phrases import make_phrases
from vigor_jax.rewards.sentences import split_sentences
from vigor_jax.stages.judging import score_items

WITHOUT, WITH = "without claims", "with claims"


class Seconds(NamedTuple):
    """What a run of the stage took.

    Attributes:
        wall: By the clock.
        ours: CPU seconds of this process, all threads.
        sidecar: Those of the sidecar.
    """

    wall: float
    ours: float
    sidecar: float

    @property
    def cpu(self) -> float:
        """CPU seconds of both."""
        return self.ours + self.sidecar


def make_config(folder: Path, images: int) -> TrainConfig:
    """The demo's, with its first scenes, which are drawn into a folder, and the checkpoints that it ships."""
    for _ in draw_split(folder / "images", "unlabeled", images, seed=0):
        pass
    write_colors(folder)
    return replaced(
        demo_config(),
        {
            "model.path": CHECKPOINTS / "policy",
            "sample.images": str(folder / "images" / "unlabeled"),
            "detection.model": CHECKPOINTS / "detector",
            "detection.phrases.tagger": CHECKPOINTS / "tagger",
            "claims.words.attributes": folder / COLOR_WORDS,
            "score.reward_model": CHECKPOINTS / "policy",  # as fast as one that has learned to judge
        },
    )


def run(config: TrainConfig, run_dir: Path, stage: Stage) -> None:
    """One stage in a run directory."""
    Run(dataclasses.replace(config, run=dataclasses.replace(config.run, dir=run_dir, stages=(stage,)))).go()


def time_stage(config: TrainConfig, candidates: Path, run_dir: Path, sidecar: psutil.Process) -> Seconds:
    """Judges candidates in a run directory that is made for it."""
    shutil.rmtree(run_dir, ignore_errors=True)
    shutil.copytree(candidates, run_dir / "candidates")
    before, ours, start = sidecar.cpu_times(), time.process_time(), time.perf_counter()
    run(config, run_dir, "score")
    wall, ours, after = time.perf_counter() - start, time.process_time() - ours, sidecar.cpu_times()
    return Seconds(wall, ours, after.user + after.system - before.user - before.system)


def speed(count: int, side: Callable[[], object]) -> float:
    """Captions a second of CPU time."""
    start = time.process_time()
    side()
    return count / (time.process_time() - start)


def read_items(config: TrainConfig, run_dir: Path) -> list[ScoreItem]:
    """The captions of a run with the detector's verdicts."""
    assert config.sample.images is not None
    verdicts = read_parts(run_dir / "verdicts" / "detector", Verdict)
    items = score_items(read_parts(run_dir / "candidates", Candidate), open_images(config.sample.images))
    return [item._replace(verdicts={"detector": tuple(next(verdicts) for _ in item.texts)}) for item in items]


def analyze(config: TrainConfig, items: Sequence[ScoreItem]) -> tuple[float, float]:
    """Captions a second: sentences and phrases; the stream of claims."""
    texts = [text for item in items for text in item.texts]
    phrases = make_phrases(config.detection.phrases)
    stream = ClaimStream(config.claims, config.detection.phrases)
    return (
        speed(len(texts), lambda: [phrases(text, split_sentences(text)) for text in texts]),
        speed(len(texts), lambda: list(stream.judge(items))),
    )


def phrases_asked(items: Sequence[ScoreItem]) -> tuple[float, float]:
    """Phrases an image that the detector is asked for: those that captions name, and those with attributes."""
    named = attributed = 0
    for item in items:
        verdicts = item.verdicts["detector"]
        named += len({signal.label for verdict in verdicts for signal in verdict.signals})
        attributed += len({score.phrase for verdict in verdicts for score in verdict.attributes})
    return named / len(items), attributed / len(items)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--reward-model", action="store_true", help="the stream `reward_model` judges on both sides")
    parser.add_argument("--kinds", default=",".join(CLAIM_KINDS), help="of claims; by default all")
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    print(describe_machine())
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        config = replaced(make_config(folder, options.images), {"claims.kinds": tuple(options.kinds.split(","))})
        keep_compiled(folder / "compiled")
        run(config, folder / "sampled", "sample")
        assert config.detection.model is not None
        with LocalDetector(LocalConfig(config.detection.model, options=config.detection.options)) as local:
            served = replaced(config, {"detection.model": None, "detection.addresses": (local.address,)})
            also = ("reward_model",) if options.reward_model else ()
            streams = {WITH: ("detector", "claims", *also), WITHOUT: ("detector", *also)}
            sides = {name: replaced(served, {"score.streams": own}) for name, own in streams.items()}
            sidecar, found = psutil.Process(local.pid), {name: list[Seconds]() for name in sides}
            for repeat in range(options.repeats + 1):  # the first one warms up
                for name in sorted(sides, reverse=bool(repeat % 2)):
                    seconds = time_stage(sides[name], folder / "sampled" / "candidates", folder / name, sidecar)
                    found[name] += [seconds] if repeat else []
        items = read_items(config, folder / WITH)
        speeds = [analyze(config, items) for _ in range(options.repeats)]
    named, attributed = phrases_asked(items)
    print(
        f"{len(items)} images, {sum(len(item.texts) for item in items)} captions; streams {', '.join(streams[WITH])}; "
        f"phrases an image: {named:.1f}, and {attributed:.1f} with attributes"
    )
    for part in ("wall", "cpu", "ours", "sidecar"):
        seconds_of = {name: [getattr(each, part) for each in runs] for name, runs in found.items()}
        print_table(f"the stage score, seconds, {part}", seconds_of)
    phrases, claims = map(list, zip(*speeds, strict=True))
    print_table("captions/s", {"the stream `claims`": claims, "sentences and phrases": phrases})


if __name__ == "__main__":
    main()
