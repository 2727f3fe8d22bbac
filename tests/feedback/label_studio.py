"""A real Label Studio: its own environment, SQLite in a temporary folder, a port of this machine."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PYTHON = Path(os.environ.get("VIGOR_LABEL_STUDIO") or ROOT / ".venv-label-studio" / "bin" / "python")
EMAIL, PASSWORD, TOKEN = "a@example.org", "secret123", "0123456789abcdef0123456789abcdef01234567"

# The SDK is in the server's environment; all that this one has comes first.
_PROGRAM = """
import runpy, sys
sys.path.append(sys.argv.pop(1))
runpy.run_module("vigor_jax.annotate", run_name="__main__", alter_sys=True)
"""


class Server:
    """Of a folder, which has all its data; may be stopped and started again. The first start takes minutes of a CPU."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        own = {
            "HOME": str(self.folder),
            "LABEL_STUDIO_BASE_DATA_DIR": str(self.folder / "data"),
            "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED": "true",
            "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(self.folder.resolve()),
            "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
            "COLLECT_ANALYTICS": "false",
            "LATEST_VERSION_CHECK": "false",
            "SENTRY_DSN": "",
            "FRONTEND_SENTRY_DSN": "",
        }
        others = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
        command = [PYTHON.parent / "label-studio", "start", "--no-browser", "--internal-host", "127.0.0.1"]
        command += ["--port", str(self._port), "--username", EMAIL, "--password", PASSWORD, "--user-token", TOKEN]
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(command, env=others | own, stdout=log, stderr=log, cwd=self.folder)
        for _ in range(900):
            assert self._process.poll() is None, (self.folder / "server.log").read_text()[-3000:]
            try:
                with urllib.request.urlopen(f"{self.address}/health", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(1)
        raise AssertionError((self.folder / "server.log").read_text()[-3000:])

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def python(self, program: str, *arguments: str) -> str:
        """What a program prints that has the SDK's client as `client`."""
        start = "import json, sys\nfrom label_studio_sdk import LabelStudio\n"
        start += f"client = LabelStudio(base_url={self.address!r}, api_key={TOKEN!r})\n"
        done = subprocess.run(
            [PYTHON, "-c", start + program, *arguments],
            capture_output=True, text=True, check=False, cwd=self.folder,
            env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout


def command(*arguments: str | Path) -> list[str]:
    """How `python -m vigor_jax.annotate` is called where the SDK is not installed next to it."""
    packages = PYTHON.parents[1] / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    return [sys.executable, "-c", _PROGRAM, str(packages), *map(str, arguments)]


def environment(token: str = TOKEN) -> dict[str, str]:
    return dict(os.environ) | {"LABEL_STUDIO_API_KEY": token, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}


def annotate(*arguments: str | Path, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, env=environment(token), timeout=300, check=False
    )
