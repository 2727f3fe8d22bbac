"""What a command takes before it works: imports, checks, tracing, compiling; each start in a separate process.

    python -m benchmarks.start                                     all of them, five times in turn
    python -m benchmarks.start --repeats 1 --starts help pope      some of them

CPU seconds, of all threads, and seconds by the clock:

- help: `train --help`, until it ends;
- pope: `evaluate pope` on three files of 3,000 saved answers, until it ends;
- caption: `caption` on one picture with the demo's policy, until it ends: with an empty folder for compiled programs,
  and again;
- train: fine-tuning of the demo's policy, until its first update is logged: with an empty folder for compiled programs;
  it is killed (SIGKILL) when it has a checkpoint, and the same command is started again.
"""

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import psutil

from benchmarks.common import describe_machine, print_table
from vigor_jax.demo import language
from vigor_jax.demo.dataset import CHECKPOINTS, draw_split

ROOT = Path(__file__).parents[1]
BATCH, SAVE_EVERY, UPDATES = 4, 2, 40
KINDS, QUESTIONS = ("random", "popular", "adversarial"), 3000


class Taken(NamedTuple):
    """CPU seconds of a process, and seconds by the clock."""

    cpu: float
    wall: float


def start(arguments: Sequence[object], errors: BinaryIO) -> tuple[subprocess.Popen[bytes], float]:
    """Starts `python -m vigor_jax.COMMAND ...`; the time when."""
    command, *rest = map(str, arguments)
    settings = {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
    others = {name: value for name, value in os.environ.items() if "COMPILATION_CACHE" not in name}
    begun = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", f"vigor_jax.{command}", *rest],
        cwd=ROOT,
        env=others | settings,
        stdout=subprocess.DEVNULL,
        stderr=errors,
    )
    return process, begun


def until_end(*arguments: object) -> Taken:
    """What a command takes that must succeed."""
    with tempfile.TemporaryFile() as errors:
        process, begun = start(arguments, errors)
        _, status, usage = os.wait4(process.pid, 0)
        taken = Taken(usage.ru_utime + usage.ru_stime, time.perf_counter() - begun)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise failed(process, errors)
    return taken


def until_update(log: Path, checkpoint: Path, *arguments: object) -> Taken:
    """What a command takes until it has logged an update; it is killed when it has a checkpoint, too."""
    before = log.read_text() if log.exists() else ""
    with tempfile.TemporaryFile() as errors:
        process, begun = start(arguments, errors)

        def wait(happened: Callable[[], bool]) -> None:
            while not happened():
                if process.poll() is not None:
                    raise failed(process, errors)
                time.sleep(0.02)

        try:
            # Lines of updates after the checkpoint are removed first: until then what is there was there before.
            wait(lambda: log.exists() and not before.startswith(log.read_text()))
            times = psutil.Process(process.pid).cpu_times()
            taken = Taken(times.user + times.system, time.perf_counter() - begun)
            wait(checkpoint.exists)
        finally:
            process.kill()
            process.wait()
    return taken


def failed(process: subprocess.Popen[bytes], errors: BinaryIO) -> RuntimeError:
    errors.seek(0)
    said = errors.read().decode(errors="replace")[-2000:]
    return RuntimeError(f"{process.args} ended with exit code {process.returncode}:\n{said}")


def write_data(folder: Path) -> None:
    """One picture, conversations to learn, and questions with answers."""
    scenes = draw_split(folder / "images", "unlabeled", BATCH * UPDATES, seed=0)
    said = [
        {"from": "human", "value": f"<image>\n{language.PROMPTS[0]}"},
        {"from": "gpt", "value": "a red circle . " * 12},  # all of one length: one program
    ]
    records = [{"id": name, "image": name, "conversations": said} for name, _ in scenes]
    (folder / "data.json").write_text(json.dumps(records))
    (folder / "picture").mkdir()
    shutil.copy(folder / "images" / records[0]["image"], folder / "picture" / "0.png")
    for kind in KINDS:
        numbers = range(QUESTIONS)
        asked = [
            {"question_id": i, "image": f"{i // 6}.jpg", "text": f"Is there a dog {i} in the image?", "label": label}
            for i, label in zip(numbers, itertools.cycle(("yes", "no")), strict=False)
        ]
        said = [{"question_id": i, "answer": ("Yes, there is.", "No.", "no")[i % 3]} for i in numbers]
        for name, lines in ((f"{kind}.json", asked), (f"{kind}.answers.jsonl", said)):
            (folder / name).write_text("\n".join(map(json.dumps, lines)) + "\n")


def show_help(folder: Path) -> dict[str, Taken]:
    return {"train --help": until_end("train", "--help")}


def pope(folder: Path) -> dict[str, Taken]:
    out = folder / "pope"
    shutil.rmtree(out, ignore_errors=True)
    questions, answers = ([folder / f"{kind}{end}" for kind in KINDS] for end in (".json", ".answers.jsonl"))
    taken = until_end("evaluate", "pope", "--questions", *questions, "--answers", *answers, "--out", out)
    return {"evaluate pope": taken}


def caption(folder: Path) -> dict[str, Taken]:
    work = folder / "caption"
    shutil.rmtree(work, ignore_errors=True)
    options = ["--model", CHECKPOINTS / "policy", "--images", folder / "picture", "--compiled", work / "compiled"]
    options += ["--sampling.max_new_tokens", 32]
    first = until_end("caption", *options, "--out", work / "first.jsonl")
    return {"second start": until_end("caption", *options, "--out", work / "second.jsonl"), "first start": first}


def train(folder: Path) -> dict[str, Taken]:
    work = folder / "train"
    shutil.rmtree(work, ignore_errors=True)
    options = ["--run.stages", "sft", "--run.dir", work / "run", "--run.compiled", work / "compiled"]
    options += ["--model.path", CHECKPOINTS / "policy", "--model.dtype", "float32", "--mesh.fsdp", 1]
    options += ["--sft.data", folder / "data.json", "--sft.images", folder / "images", "--sft.batch_size", BATCH]
    options += ["--sft.max_length", 512, "--sft.save_every", SAVE_EVERY]
    log, checkpoints = work / "run" / "metrics" / "sft.jsonl", work / "run" / "checkpoints" / "sft"
    first = until_update(log, checkpoints / str(SAVE_EVERY), "train", *options)
    second = until_update(log, checkpoints / str(SAVE_EVERY), "train", *options)
    return {"second start": second, "first start": first}  # a ratio is that of the first row to another


STARTS = {"help": show_help, "pope": pope, "caption": caption, "train": train}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=list(STARTS))
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    runs: dict[str, dict[str, list[Taken]]] = {name: {} for name in options.starts}
    with tempfile.TemporaryDirectory() as scratch:
        write_data(Path(scratch))
        for _ in range(options.repeats):
            for name, found in runs.items():
                for what, taken in STARTS[name](Path(scratch)).items():
                    found.setdefault(what, []).append(taken)
    print(describe_machine())
    for name, found in runs.items():
        print_table(f"{name}, CPU seconds", {what: [each.cpu for each in all_] for what, all_ in found.items()})
        print_table(f"{name}, seconds", {what: [each.wall for each in all_] for what, all_ in found.items()})


if __name__ == "__main__":
    main()
