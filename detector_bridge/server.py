"""The sidecar: serves a detector over gRPC.

python -m detector_bridge.server --model grounding-dino-tiny --listen 127.0.0.1:50051
"""

import argparse
import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# gRPC's C core would print its own failures next to our one line.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from PIL import Image
from pythonjsonlogger.json import JsonFormatter

from detector_bridge import hub
from detector_bridge.addresses import Security, TokenInterceptor, check_address
from detector_bridge.backends import Backend
from detector_bridge.batching import BatchConfig, Batcher
from detector_bridge.command import Parser, run
from detector_bridge.errors import InputError
from detector_bridge.metrics import Metrics
from detector_bridge.service import DetectorService, Limits, Thresholds
from detector_bridge.wire import SERVICE

log = logging.getLogger("detector_bridge")

# Parameters of mallopt in glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8

# A request is its image and its phrases; this much is left for the latter.
_MESSAGE_SLACK = 4 << 20


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    batch, limits, thresholds = BatchConfig(), Limits(), Thresholds()
    parser = Parser(prog="python -m detector_bridge.server", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add(
        "--backend",
        choices=("transformers", "groundingdino"),
        default="transformers",
        help="transformers (default): GroundingDINO, MM-Grounding-DINO, OWLv2, OWL-ViT or OmDet-Turbo; groundingdino: "
        "GroundingDINO by its authors' package",
    )
    add(
        "--model",
        required=True,
        help="directory, or ORG/NAME or ORG/NAME@REVISION on the Hub (transformers); directory with a .pth "
        "(groundingdino)",
    )
    add("--listen", default="127.0.0.1:50051", help="HOST:PORT (port 0: a free one) or unix:PATH; default %(default)s")
    add("--devices", default="auto", help="cpu, cuda:0, or several, comma-separated; auto: all GPUs, else the CPU")
    add("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto", help="auto: bfloat16 on a GPU")
    add("--short-side", type=int, help="resize to this short side, in pixels; default: the model's (800)")
    add("--long-side", type=int, help="but no longer than this; default: the model's (1333)")
    add("--box-threshold", type=float, default=thresholds.box, help="used where a request brings none; %(default)s")
    add(
        "--text-threshold",
        type=float,
        default=thresholds.text,
        help="the same; only for models that score tokens, which are the two GroundingDINOs; %(default)s",
    )
    add("--batch-size", type=int, help=f"most pictures in a batch; default {batch.size} on a GPU, 1 on a CPU")
    add("--batch-wait-ms", type=float, default=batch.wait_ms, help="how long one waits for others; default %(default)s")
    add("--queue", type=int, default=batch.queue, help="most requests held at once; default %(default)s")
    add("--threads", type=int, default=os.cpu_count() or 1, help="that decode images; default: one a core")
    add("--max-image-bytes", type=int, default=limits.image_bytes, help="default %(default)s")
    add("--max-pixels", type=int, default=limits.pixels, help="default %(default)s")
    add("--max-phrases", type=int, default=limits.phrases, help="in one request; default %(default)s")
    add("--tls-cert", type=Path, help="certificate chain, PEM")
    add("--tls-key", type=Path, help="its key, PEM")
    add("--tls-client-ca", type=Path, help="who signs clients' certificates, PEM: turns mTLS on")
    add("--token-file", type=Path, help="file with a token that every call must bring")
    add("--metrics-port", type=int, help="Prometheus metrics at http://127.0.0.1:PORT/metrics")
    add("--metrics-address", default="127.0.0.1", help="where that listens; default %(default)s")
    add("--grace", type=float, default=30.0, help="seconds to finish requests after SIGTERM; default %(default)s")
    add("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    add("--exit-with", type=int, metavar="PID", help="end when this process, the parent, ends")
    found = parser.parse_args(given)
    for name in ("batch_size", "queue", "threads", "max_image_bytes", "max_pixels", "max_phrases"):
        if getattr(found, name) is not None and getattr(found, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} is {getattr(found, name)}; expected at least 1")
    for name in ("box_threshold", "text_threshold"):
        if not 0 <= getattr(found, name) <= 1:
            raise InputError(f"--{name.replace('_', '-')} is {getattr(found, name)}; expected a number from 0 to 1")
    return found


def find_model(name: str | Path, backend: str) -> Path:
    """Where a model is, after fetching what the cache of the Hub lacks of it (backend `transformers`).

    Raises:
      InputError: it is neither here nor to be had.
    """
    if hub.is_id(name) and backend != "transformers":
        raise InputError(
            f"--model {name} does not exist here, and --backend {backend} reads nothing from the Hub; give a local "
            "directory with a .pth, or use --backend transformers"
        )
    model = hub.local_directory(name)
    if not model.exists():
        served = "a detector as transformers saves it, or ORG/NAME on the Hub"
        wanted = served if backend == "transformers" else "a GroundingDINO's .pth"
        raise InputError(f"--model {name} does not exist; give a local directory with {wanted}")
    if backend == "transformers":  # another layout's weights may lie in the cache, too
        hub.fetch_weights(model)
    return model


def load_backends(options: argparse.Namespace) -> list[Backend]:
    """One replica a device; settles the batch size where none is given.

    Raises:
      InputError: no such device, or a model that cannot be loaded.
    """
    model = find_model(options.model, options.backend)
    # Its import takes seconds: not before the arguments are known to be good.
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()

    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    devices = (gpus or ["cpu"]) if options.devices == "auto" else options.devices.split(",")
    for device in devices:
        if device != "cpu" and device not in gpus:
            raise InputError(
                f"--devices {device}: there is no such device; this machine has {', '.join(['cpu', *gpus])}"
            )

    if options.batch_size is None:  # on a CPU a larger batch only leaves the caches
        options.batch_size = BatchConfig().size if set(devices) != {"cpu"} else 1

    def load(device: str) -> Backend:
        dtype = ("float32" if device == "cpu" else "bfloat16") if options.dtype == "auto" else options.dtype
        settings = {
            "short_side": options.short_side,
            "long_side": options.long_side,
            "rows_at_once": options.batch_size,
        }
        if options.backend == "transformers":
            from detector_bridge.backends.transformers import TransformersBackend

            return TransformersBackend.load(model, device=device, dtype=dtype, **settings)
        from detector_bridge.backends.groundingdino import GroundingDinoBackend

        return GroundingDinoBackend.load(model, device=device, dtype=dtype, **settings)

    return [load(device) for device in devices]


async def serve(options: argparse.Namespace) -> None:
    """Serves until SIGTERM or SIGINT, then finishes what was begun."""
    security = Security(options.tls_cert, options.tls_key, options.tls_client_ca, options.token_file)
    check_address(options.listen, security)
    credentials, token = security.credentials(), security.token()

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    limits = Limits(options.max_image_bytes, options.max_pixels, options.max_phrases)
    server = grpc.aio.server(
        interceptors=[TokenInterceptor(token)] if token else [],
        options=[
            ("grpc.max_receive_message_length", limits.image_bytes + _MESSAGE_SLACK),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),  # or a second server on the port would silently take half of the calls
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
            ("grpc.keepalive_permit_without_calls", 1),
        ],
    )
    # Taken before the model is loaded: a port in use should not cost a minute. Nobody is answered before `start`.
    port = _bind(server, options.listen, credentials)

    metrics = Metrics()
    backends = await loop.run_in_executor(None, load_backends, options)
    threads = ThreadPoolExecutor(options.threads, "decode")
    batcher = Batcher(backends, BatchConfig(options.batch_size, options.batch_wait_ms, options.queue), metrics)
    service = DetectorService(
        backends,
        batcher,
        queue=options.queue,
        limits=limits,
        thresholds=Thresholds(options.box_threshold, options.text_threshold),
        metrics=metrics,
        threads=threads,
    )
    status = health.aio.HealthServicer()
    service.register(server)
    health_pb2_grpc.add_HealthServicer_to_server(status, server)
    reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    if options.metrics_port is not None:
        try:
            metrics.publish(options.metrics_address, options.metrics_port)
        except OSError as error:
            raise InputError(
                f"--metrics-port {options.metrics_port} cannot be listened on ({error.strerror}); give another"
            ) from None
    await server.start()
    for name in ("", SERVICE):
        await status.set(name, health_pb2.HealthCheckResponse.SERVING)
    address = options.listen if options.listen.startswith("unix:") else options.listen.rpartition(":")[0] + f":{port}"
    devices = ", ".join(backend.device for backend in backends)
    served = f"{hub.short_name(backends[0].model)} ({options.backend}, {devices}, {backends[0].dtype})"
    print(f"serving {served} on {address}", flush=True)

    await stop.wait()
    log.info("draining")
    service.drain()
    await status.enter_graceful_shutdown()
    await server.stop(options.grace)
    await batcher.close()
    threads.shutdown()
    log.info("ended")


def _bind(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None) -> int:
    # A socket for this user alone; a new file, not one left by a server that was killed.
    previous = os.umask(0o077)
    try:
        port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    except RuntimeError:
        port = 0
    finally:
        os.umask(previous)
    if not port and credentials and not _can_use(credentials):
        raise InputError("gRPC cannot use what --tls-cert and --tls-key hold: give an RSA or ECDSA certificate")
    if not port:
        raise InputError(f"--listen {address} cannot be listened on: is it in use, or no address of this machine?")
    return port


def _can_use(credentials: grpc.ServerCredentials) -> bool:
    """Whether any address at all can be listened on with these."""
    with tempfile.TemporaryDirectory(prefix="tls-", dir="/tmp" if os.path.isdir("/tmp") else None) as folder:
        try:
            return bool(grpc.aio.server().add_secure_port(f"unix:{folder}/s", credentials))
        except RuntimeError:
            return False


def exit_with(parent: int) -> None:
    """Ends this process, from a thread, soon after its parent has ended, however it ended."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(0)

    threading.Thread(target=watch, daemon=True, name="exit-with").start()


def keep_memory() -> None:
    """Has the C library keep the model's large buffers for the next request, in one heap for all threads.

    By default it gives them back to the system and gets them again, page by page: up to a fifth of the model's time on
    a CPU. What is kept is the peak of one batch.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt  # glibc's
        for option, value in ((M_ARENA_MAX, 1), (M_MMAP_THRESHOLD, 1 << 30), (M_TRIM_THRESHOLD, (1 << 31) - 1)):
            mallopt(option, value)


def main() -> None:
    options = arguments()
    keep_memory()
    if options.exit_with:
        exit_with(options.exit_with)
    handler = logging.StreamHandler(sys.stderr)
    names = {"asctime": "time", "levelname": "level", "name": "logger"}
    handler.setFormatter(JsonFormatter("%(asctime)s %(levelname)s %(name)s %(message)s", rename_fields=names))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    log.setLevel(options.log_level.upper())
    Image.MAX_IMAGE_PIXELS = None  # ours is --max-pixels, and nothing else in this process opens images
    asyncio.run(serve(options))


if __name__ == "__main__":
    run(main)
