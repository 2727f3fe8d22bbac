"""Detector calls for 5 captions an image: the union of their phrases in one request, or a call for each caption.

python -m benchmarks.detector                                                   # this CPU, Swin-T, 320 pixels
python -m benchmarks.detector --one-core     # a machine shared with others: one core, CPU seconds of client and sidecar
python -m benchmarks.detector --device cuda:0 --dtype bfloat16 --short-side 800 --batch-size 8 --images 64
"""

import argparse
import io
import os
import random
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeAlias

import numpy as np
import psutil
import torch
import transformers
from PIL import Image

from benchmarks.common import commit, print_table, processor
from detector_bridge.backends.transformers import TransformersBackend
from detector_bridge.client import BlockingClient, ClientConfig
from detector_bridge.images import decode
from detector_bridge.local import LocalConfig, LocalDetector
from detector_bridge.messages import Request
from detector_bridge.prompts import find_phrases, make_prompts
from tests.detector_bridge.tiny_detector import WORDS, write_transformers

Clock: TypeAlias = Callable[[], float]


def cpu_clock(sidecar: int) -> Clock:
    """CPU seconds of this process and the sidecar together."""
    process = psutil.Process(sidecar)

    def clock() -> float:
        times = process.cpu_times()
        return time.process_time() + times.user + times.system

    return clock


def write_swin_t(folder: Path, short_side: int) -> None:
    """The released model's architecture (172M parameters) with random weights and a small vocabulary."""
    write_transformers(folder, short_side=short_side, long_side=round(short_side * 5 / 3))
    for weights in folder.glob("model*.safetensors"):
        weights.unlink()
    torch.manual_seed(0)
    transformers.GroundingDinoForObjectDetection(transformers.GroundingDinoConfig()).save_pretrained(folder)


def make_image(seed: int) -> bytes:
    out = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC).save(out, "JPEG")
    return out.getvalue()


def make_captions(seed: int) -> list[list[str]]:
    """Phrases of 5 captions: 9 each, 5 of them in all, 21 different ones in the union, like 5 samples of LLaVA."""
    words = random.Random(seed).sample(WORDS, 21)
    return [words[:5] + words[5 + 4 * i : 9 + 4 * i] for i in range(4)] + [words[:5] + words[5:21:4]]


def union(captions: list[list[str]]) -> list[str]:
    return list(dict.fromkeys(phrase for caption in captions for phrase in caption))


def through_the_sidecar(
    client: BlockingClient, images: list[bytes], captions: list[list[list[str]]], clock: Clock
) -> float:
    started, answers = clock(), []
    pending: list[Future] = []
    for image, own in zip(images, captions, strict=True):
        pending.append(client.submit(Request(image, tuple(union(own)))))
        if len(pending) == 64:
            answers.append(pending.pop(0).result())
    answers += [future.result() for future in pending]
    assert all(len(answer.detections) == 21 for answer in answers)
    return len(images) / (clock() - started)


def bare_model(
    backend: TransformersBackend, images: list[bytes], captions: list[list[list[str]]], batch: int, clock: Clock
) -> float:
    """The same work without server and sockets, in the batches that the server makes."""
    started = clock()
    for first in range(0, len(images), batch):
        pixels = np.stack([backend.prepare(decode(image, 10**8)) for image in images[first : first + batch]])
        prompts = [
            make_prompts(union(own), backend.tokenize, backend.max_tokens)[0] for own in captions[first : first + batch]
        ]
        scores = backend.detect(pixels, [prompt.tokens for prompt in prompts], range(len(prompts)))
        for prompt, tokens, boxes in zip(prompts, scores.tokens, scores.boxes_xyxy, strict=True):
            find_phrases(prompt.spans, tokens, boxes, 0.25, 0.25)
    return len(images) / (clock() - started)


class Naive:
    """What the library's own example does: processor, model, post-processing, once for each caption."""

    def __init__(self, folder: Path, device: str, dtype: str, short_side: int) -> None:
        self._processor = transformers.AutoProcessor.from_pretrained(folder)
        self._size = {"shortest_edge": short_side, "longest_edge": round(short_side * 5 / 3)}
        self._model = transformers.GroundingDinoForObjectDetection.from_pretrained(folder).to(device).eval()
        self._device, self._dtype = torch.device(device), getattr(torch, dtype)

    def __call__(self, images: list[bytes], captions: list[list[list[str]]], clock: Clock) -> float:
        started = clock()
        half = self._dtype != torch.float32
        for content, own in zip(images, captions, strict=True):
            for caption in own:
                image = Image.open(io.BytesIO(content)).convert("RGB")
                inputs = self._processor(
                    images=image, text=". ".join(caption) + ".", size=self._size, return_tensors="pt"
                )
                inputs = inputs.to(self._device)
                with torch.inference_mode(), torch.autocast(self._device.type, self._dtype, enabled=half):
                    outputs = self._model(**inputs)
                self._processor.post_process_grounded_object_detection(
                    outputs, inputs.input_ids, threshold=0.25, text_threshold=0.25, target_sizes=[image.size[::-1]]
                )
        return len(images) / (clock() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--short-side", type=int, default=320)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--batch-size", type=int, nargs="+", default=[4], help="of the sidecar; several: a table each")
    parser.add_argument("--one-core", action="store_true", help="for a machine shared with others")
    options = parser.parse_args()
    if options.one_core:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # the sidecar inherits it
        torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    images = [make_image(seed) for seed in range(options.images)]
    captions = [make_captions(seed) for seed in range(options.images)]
    name = torch.cuda.get_device_name() if options.device != "cpu" else f"{processor()}, {os.cpu_count()} cores"
    print(f"{commit()}; {name}; torch {torch.__version__}, transformers {transformers.__version__}; {options}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_swin_t(folder, options.short_side)
        naive = Naive(folder, options.device, options.dtype, options.short_side)
        for batch in options.batch_size:
            server = ("--devices", options.device, "--dtype", options.dtype, "--batch-size", str(batch))
            backend = TransformersBackend.load(folder, device=options.device, dtype=options.dtype, rows_at_once=batch)
            with (
                LocalDetector(LocalConfig(folder, options=(*server, "--batch-wait-ms", "50"))) as local,
                BlockingClient(ClientConfig((local.address,))) as client,
            ):
                clock = cpu_clock(local.pid) if options.one_core else time.perf_counter
                runs: dict[str, list[float]] = {"sidecar, one request an image": [], "bare model, same batches": []}
                runs["transformers, a call a caption"] = []
                for repeat in range(options.repeats + 1):  # the first one warms up
                    found = (
                        through_the_sidecar(client, images, captions, clock),
                        bare_model(backend, images, captions, batch, clock),
                        naive(images, captions, clock),
                    )
                    if repeat:
                        for speeds, speed in zip(runs.values(), found, strict=True):
                            speeds.append(speed)
            print_table(f"images/s, batch {batch}", runs)


if __name__ == "__main__":
    main()
