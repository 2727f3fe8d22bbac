"""A Hugging Face Hub on this machine: a real HTTP server that speaks the part of its protocol that downloads use.

Models are folders. Large files are on another path, to which the Hub redirects, as it does to its storage.
"""

import contextlib
import hashlib
import json
import os
import re
import threading
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

LARGE = 20_000  # bytes; larger files are LFS


@dataclass
class Repository:
    """A model.

    Attributes:
      revisions: branch or tag → folder; its commit is a digest of its files.
      token: that lets in; None lets everybody in.
      gated: whether it says that it exists to those whom it does not let in.
    """

    revisions: dict[str, Path]
    token: str | None = None
    gated: bool = False

    def commit(self, revision: str) -> str | None:
        commits = {name: commit_of(folder) for name, folder in self.revisions.items()}
        return revision if revision in commits.values() else commits.get(revision)

    def folder(self, commit: str) -> Path:
        return next(folder for folder in self.revisions.values() if commit_of(folder) == commit)


@dataclass
class Hub:
    """What the server has, and what it was asked.

    Attributes:
      repositories: by ORG/NAME.
      asked: "METHOD /path [range]" of each request, in their order.
      sent: bytes of each file that were sent, by path in the repository.
      cut: file → bytes after which its next download is cut off.
      held: files whose download stops half-way, until the event is set.
      sizes: what it says of files instead of their true size.
      down: answer nothing but 503.
      url: of the Hub.
      storage_url: of its storage, which to clients is another host.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    sent: dict[str, int] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)
    held: dict[str, threading.Event] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    down: bool = False
    url: str = ""
    storage_url: str = ""

    def environment(self, cache: Path, **more: str) -> dict[str, str]:
        """That of a process which uses this Hub and no other, with its own cache."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HF_", "HUGGING_FACE", "TRANSFORMERS_"))
        }
        return kept | {"HF_ENDPOINT": self.url, "HF_HOME": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1"} | more

    @contextlib.contextmanager
    def holding(self, path: str) -> Iterator[None]:
        """Inside, downloads of a file stop half-way."""
        event = self.held[path] = threading.Event()
        try:
            yield
        finally:
            del self.held[path]
            event.set()

    def forget(self) -> None:
        """Forgets what it was asked and what it sent."""
        self.asked.clear()
        self.sent.clear()


def commit_of(folder: Path) -> str:
    total = hashlib.sha1()
    for path in files_of(folder):
        total.update(f"{path} {(folder / path).stat().st_size} {sha(folder / path)}".encode())
    return total.hexdigest()


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    """A Hub that serves until the context ends."""
    hub = Hub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    hub.storage_url = f"http://localhost:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self, *, body: bool) -> None:
        path = urllib.parse.unquote(self.path.partition("?")[0])
        wanted = self.headers.get("Range", "")
        self.hub.asked.append(f"{self.command} {path} {wanted}".strip())
        if self.hub.down:
            return self._refuse(503, None, "down for maintenance")
        if stored := re.fullmatch(r"/storage/([^/]+/[^/]+)/(\w+)/(.+)", path):
            return self._send_file(stored[3], self._repository(stored[1]).folder(stored[2]) / stored[3], {}, body=body)
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/(.+)", path)
        resolve = re.fullmatch(r"/([^/]+/[^/]+)/resolve/(\w+)/(.+)", path)
        assert api or resolve, path
        name, revision = (api[1], api[3]) if api else (resolve[1], resolve[2])
        if (commit := self._let_in(name, revision)) is None:
            return None
        folder = self._repository(name).folder(commit)
        if api:
            list_all = self._tree if api[2] == "tree" else self._info
            return self._send(
                200, json.dumps(list_all(name, commit, folder)).encode(), {"Content-Type": "application/json"}
            )
        return self._resolve(name, commit, resolve[3], folder / resolve[3], body=body)

    def _repository(self, name: str) -> Repository:
        return self.hub.repositories[name]

    def _let_in(self, name: str, revision: str) -> str | None:
        """The commit, if there is one and this user may have it."""
        repository = self.hub.repositories.get(name)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if repository is None:  # the Hub does not tell strangers whether there is none or it is private
            self._refuse(404 if token else 401, "RepoNotFound", "Repository not found")
        elif repository.gated and repository.token != token:
            self._refuse(403 if token else 401, "GatedRepo", f"Access to model {name} is restricted")
        elif repository.token is not None and repository.token != token:
            self._refuse(401, None if token else "RepoNotFound", "Invalid credentials in Authorization header")
        elif (commit := repository.commit(revision)) is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return commit
        return None

    def _info(self, name: str, commit: str, folder: Path) -> dict[str, Any]:
        sizes = {path: (folder / path).stat().st_size for path in files_of(folder)} | self.hub.sizes
        siblings = [{"rfilename": path, "size": size} for path, size in sizes.items()]
        return {
            "id": name,
            "modelId": name,
            "sha": commit,
            "private": False,
            "tags": [],
            "siblings": siblings,
        }

    def _tree(self, name: str, commit: str, folder: Path) -> list[dict[str, Any]]:
        found = []
        for path in files_of(folder):
            size = (folder / path).stat().st_size
            entry = {"type": "file", "path": path, "size": size, "oid": sha(folder / path)[:40]}
            if size > LARGE:
                entry["lfs"] = {"oid": sha(folder / path), "size": size, "pointerSize": 130}
            found.append(entry)
        return found

    def _resolve(self, name: str, commit: str, path: str, file: Path, *, body: bool) -> None:
        if not file.is_file():
            return self._refuse(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
        headers = {"X-Repo-Commit": commit, "ETag": f'"{sha(file)[:40]}"'}
        if file.stat().st_size > LARGE:
            linked = {"X-Linked-Size": str(file.stat().st_size), "X-Linked-ETag": f'"{sha(file)}"'}
            place = {"Location": f"{self.hub.storage_url}/storage/{name}/{commit}/{path}"}
            return self._send(302, b"", headers | linked | place)
        return self._send_file(path, file, headers, body=body)

    def _send_file(self, path: str, file: Path, headers: dict[str, str], *, body: bool) -> None:
        content = file.read_bytes()
        headers = {"ETag": f'"{sha(file)}"', "Accept-Ranges": "bytes"} | headers
        status = 200
        if found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start = int(found[1])
            status, headers = 206, headers | {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
            content = content[start:]
        if not body:
            return self._send(status, b"", headers | {"Content-Length": str(len(content))})
        cut = self.hub.cut.pop(path, None)
        event = self.hub.held.get(path)
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        first = content[: cut if cut is not None else len(content) // 2 if event else len(content)]
        with contextlib.suppress(ConnectionError):
            self.hub.sent[path] = self.hub.sent.get(path, 0) + len(first)
            self.wfile.write(first)
            self.wfile.flush()
            if cut is not None:
                self.close_connection = True
                self.connection.shutdown(2)
            elif event is not None:
                event.wait(120)
                self.hub.sent[path] += len(content) - len(first)
                self.wfile.write(content[len(first) :])
        return None

    def _refuse(self, status: int, code: str | None, message: str, more: dict[str, str] | None = None) -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {}) | (more or {})
        return self._send(status, b"", headers)

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(ConnectionError):
                self.wfile.write(content)


def wait_for(condition: Any, seconds: float = 60.0) -> None:
    """Waits until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
