"""A local endpoint that speaks chat completions, and fails on demand in the ways in which endpoints fail."""

import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Say:
    """A completion; `usage` None leaves the field out."""

    text: str | None
    usage: tuple[int, int] | None = (100, 10)
    delay: float = 0.0
    refusal: str | None = None


@dataclass(frozen=True)
class Body:
    """Any body with any status."""

    text: str
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    kind: str = "application/json"


@dataclass(frozen=True)
class Reset:
    """Breaks the connection (RST), in the middle of the body or before the status."""

    in_body: bool


@dataclass(frozen=True)
class Hang:
    """Nothing for this many seconds; with `drip`, a space of the body every so often instead."""

    seconds: float
    drip: float | None = None


Answer = Say | Body | Reset | Hang


class ChatServer:
    """Answers `respond(content of the message, how often it came before)`; a context manager.

    Attributes:
        counts: How often each text was asked.
        bodies: All requests.
        times: When each came, with its text.
        most_at_once: Requests under way at a time.
    """

    def __init__(self, respond: Callable[[str, int], Answer]) -> None:
        self.respond = respond
        self.counts: Counter[str] = Counter()
        self.bodies: list[dict] = []
        self.times: list[tuple[str, float]] = []
        self.most_at_once = self._under_way = 0
        self._lock, self._closed = threading.Lock(), threading.Event()

    def __enter__(self):
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                outer._handle(self)

            def log_message(self, *args):
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False
            request_queue_size = 128

            def handle_error(self, request, client_address):
                pass  # clients that are gone

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._closed.set()
        self._server.shutdown()
        self._server.server_close()

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        content = body["messages"][0]["content"]
        text = content if isinstance(content, str) else content[0]["text"]
        with self._lock:
            before = self.counts[text]
            self.counts[text] += 1
            self.bodies.append({**body, "path": handler.path, "authorization": handler.headers["Authorization"]})
            self.times.append((text, time.monotonic()))
            self._under_way += 1
            self.most_at_once = max(self.most_at_once, self._under_way)
        try:
            self._send(handler, body, self.respond(text, before))
        finally:
            with self._lock:
                self._under_way -= 1

    def _send(self, handler: BaseHTTPRequestHandler, body: dict, answer: Answer) -> None:
        if isinstance(answer, Reset):
            if answer.in_body:
                self._start(handler, 200, 1000)
                handler.wfile.write(b'{"id": "x", "choices": [{"message": {"content": "Rat')
                handler.wfile.flush()
                time.sleep(0.02)
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.connection.shutdown(socket.SHUT_RD)
            handler.connection.close()
            handler.close_connection = True
        elif isinstance(answer, Hang):
            if answer.drip is None:
                self._closed.wait(answer.seconds)
                handler.close_connection = True
                return
            self._start(handler, 200, 10_000)
            end = time.monotonic() + answer.seconds
            while time.monotonic() < end and not self._closed.wait(answer.drip):
                handler.wfile.write(b" ")
                handler.wfile.flush()
            handler.close_connection = True
        elif isinstance(answer, Body):
            data = answer.text.encode()
            self._start(handler, answer.status, len(data), answer.kind, answer.headers)
            handler.wfile.write(data)
        else:
            self._closed.wait(answer.delay)
            message = {"role": "assistant", "content": answer.text, "refusal": answer.refusal}
            completion = {
                "id": "c",
                "object": "chat.completion",
                "created": 1,
                "model": body["model"] + "-0613",
                "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            }
            if answer.usage:
                prompt, reply = answer.usage
                completion["usage"] = {
                    "prompt_tokens": prompt, "completion_tokens": reply, "total_tokens": prompt + reply,
                }  # fmt: skip
            data = json.dumps(completion).encode()
            self._start(handler, 200, len(data))
            handler.wfile.write(data)

    def _start(self, handler, status, length, kind="application/json", headers=None):
        handler.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(length), **(headers or {})}.items():
            handler.send_header(name, value)
        handler.end_headers()
