"""Real sidecars in real processes, and pictures to send them."""

import contextlib
import io
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def sidecar(model: Path, *options: str, listen: str = "127.0.0.1:0") -> Iterator["Sidecar"]:
    """A server of the model; its address is the one that it printed."""
    command = [sys.executable, "-m", "detector_bridge.server", "--model", str(model), "--listen", listen, *options]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("serving "), process.communicate()[1]
        yield Sidecar(process, line.split(" on ")[-1].strip())
    finally:
        process.terminate()
        try:
            process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


class Sidecar:
    def __init__(self, process: subprocess.Popen, address: str) -> None:
        self.process, self.address = process, address


def failed_start(*options: str) -> str:
    """What a server that must not start says: one line, with exit code 2."""
    command = [sys.executable, "-m", "detector_bridge.server", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def picture(seed: int, width: int = 160, height: int = 120) -> Image.Image:
    """Noise at several scales: no two seeds look alike to a model."""
    random = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for cells in (2, 5, 16):
        coarse = Image.fromarray(random.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        total += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), float)
    return Image.fromarray((total / 3).astype(np.uint8))


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def wait_until(true, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
