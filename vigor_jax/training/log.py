"""What a training stage says while it runs: a line of JSON a step, TensorBoard, trackers and a progress bar."""

import contextlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tensorboard.summary import Writer
from tqdm import tqdm

from vigor_jax.errors import InputError
from vigor_jax.training.trackers import NOWHERE, Reporting, Trackers, recall


class TrainingLog:
    """Writes `DIR/NAME.jsonl` and TensorBoard events next to it; for one process of the run.

    On resumption the lines of steps after the restored one are removed, so the file is at any time what an
    uninterrupted run would have written (but for `seconds`).
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        *,
        start: int,
        total: int,
        every: int,
        peak_flops: float | None,
        reporting: Reporting = NOWHERE,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Opens the files.

        Args:
          directory: is made if need be.
          name: of the stage.
          start: steps done.
          total: steps in all.
          every: TensorBoard and the trackers get every this many steps.
          peak_flops: FLOP/s of all devices together, None where unknown.
          reporting: the trackers, if any.
          settings: of the run, for the trackers; JSON values.
        """
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{name}.jsonl"
        logged = last_step(path)
        runs = recall(reporting, name, directory, start=start, logged=logged)  # before the lines of `logged` are gone
        keep_steps(path, start)
        self._name, self._every, self._peak_flops = name, every, peak_flops
        self._lines = path.open("a", encoding="utf-8")
        self._events = Writer(str(directory))  # TensorBoard itself drops the steps that a resumed run does again
        self._trackers = Trackers(reporting, name, directory, runs, settings or {})
        self._bar = tqdm(total=total, initial=start, desc=name, unit="step", dynamic_ncols=True)
        self._last = time.perf_counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        self._trackers.close()
        self._events.close()
        self._lines.close()

    def write(self, step: int, metrics: Mapping[str, float], *, num_tokens: int, flops: float) -> None:
        """Logs one finished step.

        Args:
          step: steps done, this one included.
          metrics: by name, `loss` among them.
          num_tokens: tokens of the batch without padding.
          flops: operations that the step needed.
        """
        now = time.perf_counter()
        seconds, self._last = now - self._last, now  # the first step's include compiling
        line = {"step": step, **metrics, "num_tokens": num_tokens, "seconds": round(seconds, 4)}
        self._lines.write(json.dumps(line) + "\n")
        self._lines.flush()

        speed = {"tokens_per_second": num_tokens / seconds}
        shown = {"loss": f"{metrics['loss']:.4f}", "tokens/s": f"{speed['tokens_per_second']:.0f}"}
        if self._peak_flops:
            speed["mfu"] = flops / seconds / self._peak_flops
            shown["mfu"] = f"{speed['mfu']:.1%}"
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update()
        if step % self._every == 0:
            points = {f"{self._name}/{name}": value for name, value in {**metrics, **speed}.items()}
            for name, value in points.items():
                self._events.add_scalar(name, value, step=step)
            self._trackers.log(step, points)

    def sync(self) -> None:
        """Brings the lines to disk; before a checkpoint that counts on them."""
        self._lines.flush()
        os.fsync(self._lines.fileno())
        self._events.flush()


def last_step(path: Path) -> int:
    """The last step of which there is a whole line of JSON; 0 if there is none."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    for line in reversed(lines):
        with contextlib.suppress(ValueError, LookupError, TypeError, RecursionError):
            return int(json.loads(line)["step"])
    return 0


def keep_steps(path: Path, last: int) -> None:
    """Keeps the JSON lines of steps 1 to `last`: the rest is done again. A line that a kill cut short is the end."""
    if not path.exists():
        return
    kept = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True), 1):
        try:
            if not line.endswith("\n") or json.loads(line)["step"] > last:
                break
        except (ValueError, LookupError, TypeError, RecursionError):
            raise InputError(f"{path}:{number}: expected the metrics of a step as JSON; remove that line") from None
        kept.append(line)
    new = path.with_suffix(".tmp")
    new.write_text("".join(kept), encoding="utf-8")
    new.replace(path)
