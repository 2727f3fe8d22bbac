"""A sidecar as a child of this process: started, waited for, started again when it dies, ended with its parent."""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from detector_bridge import hub
from detector_bridge.errors import DetectorError, InputError


@dataclass(frozen=True)
class LocalConfig:
    """The sidecar to start.

    Attributes:
      model: see `python -m detector_bridge.server --help`; one on the Hub is fetched here, before the sidecar starts.
      backend: "transformers" or "groundingdino".
      python: interpreter with that backend's packages; this one by default.
      options: further options of the server, such as ("--short-side", "480").
      start_timeout: seconds until it must serve.
      restarts: how often it may die within `restart_window` seconds before it counts as broken.
      restart_window: see `restarts`.
      log: file that its log is appended to; None: a temporary one.
    """

    model: str | Path
    backend: Literal["transformers", "groundingdino"] = "transformers"
    python: Path = Path(sys.executable)
    options: tuple[str, ...] = ()
    start_timeout: float = 300.0
    restarts: int = 10
    restart_window: float = 600.0
    log: Path | None = None


class LocalDetector:
    """A context manager; inside, `address` is where the sidecar serves, through all restarts.

        with LocalDetector(LocalConfig(model)) as sidecar:
            client = BlockingClient(ClientConfig((sidecar.address,)))

    It listens on a Unix socket in a directory that only this user can enter, and ends within a second after this
    process has ended, even by `kill -9`.

    Raises:
      InputError: on entering, when the sidecar finds fault with what it was given.
      DetectorError: on entering, when it does not serve in time, or dies otherwise.
    """

    def __init__(self, config: LocalConfig) -> None:
        self._config = config
        self._closing = False
        self._lock = threading.Lock()  # between starting a child and closing, or one could outlive the other
        self._deaths: list[float] = []

    def __enter__(self) -> Self:
        # Not below TMPDIR: a socket's path may have about a hundred characters.
        self._directory = Path(tempfile.mkdtemp(prefix="detector-", dir="/tmp" if os.path.isdir("/tmp") else None))
        self.address = f"unix:{self._directory / 'socket'}"
        self._log = self._config.log or self._directory / "log"
        try:
            self._model = self._config.model
            if hub.is_id(self._model) and self._config.backend == "transformers":
                self._model = hub.whole_model(self._model)  # it may take longer than `start_timeout`
            elif isinstance(self._model, Path):
                self._model = self._model.absolute()  # or the child could take it for a name on the Hub
            self._child = self._start()
            self._wait_until_serving()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        self._watcher = threading.Thread(target=self._watch, daemon=True, name="sidecar")
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._closing = True
        if child := getattr(self, "_child", None):
            child.terminate()
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        if watcher := getattr(self, "_watcher", None):
            watcher.join()
        shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def pid(self) -> int:
        """Of the process that serves at present."""
        return self._child.pid

    def _start(self) -> subprocess.Popen[bytes]:
        config = self._config
        command = [
            *(str(config.python), "-m", "detector_bridge.server"),
            *("--backend", config.backend, "--model", str(self._model), "--listen", self.address),
            *("--exit-with", str(os.getpid()), "--grace", "5", *config.options),
        ]
        # The other interpreter need not have this package installed, only what the backend needs.
        package = str(Path(__file__).resolve().parents[1])
        path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
        with open(self._log, "ab") as log:
            try:
                return subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | {"PYTHONPATH": path}
                )
            except OSError as error:
                raise InputError(f"{config.python} cannot be started ({error.strerror}): give a Python") from None

    def _wait_until_serving(self) -> None:
        deadline = time.monotonic() + self._config.start_timeout
        with grpc.insecure_channel(self.address, [("grpc.max_reconnect_backoff_ms", 500)]) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            while True:
                if self._child.poll() is not None:
                    raise self._death()
                try:
                    reply = stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
                    if reply.status == health_pb2.HealthCheckResponse.SERVING:
                        return
                except grpc.RpcError:
                    pass
                if time.monotonic() > deadline:
                    raise DetectorError(
                        f"the sidecar ({self._config.model}) does not serve after {self._config.start_timeout:g} s;"
                        f" its last words: {self._last_line()}"
                    )
                time.sleep(0.1)

    def _death(self) -> Exception:
        last = self._last_line()
        if self._child.returncode == 2:
            return InputError(f"sidecar: {last.removeprefix('error: ')}")
        return DetectorError(f"the sidecar ended with code {self._child.returncode}; its last words: {last}")

    def _last_line(self) -> str:
        with open(self._log, "rb") as log:
            log.seek(max(0, os.path.getsize(self._log) - 4096))
            lines = log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "none"

    def _watch(self) -> None:
        """Waits for the child, which also keeps it from becoming a zombie, and starts another when it died."""
        while True:
            self._child.wait()
            with self._lock:
                if self._closing or not self._restart():
                    return

    def _restart(self) -> bool:
        now = time.monotonic()
        self._deaths = [death for death in self._deaths if now - death < self._config.restart_window]
        if len(self._deaths) >= self._config.restarts:
            print(f"{self._death()}; it died too often and is not started again", file=sys.stderr, flush=True)
            return False
        self._deaths.append(now)
        print(f"{self._death()}; starting it again", file=sys.stderr, flush=True)
        self._child = self._start()
        return True
