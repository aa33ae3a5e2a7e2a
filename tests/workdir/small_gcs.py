"""A store with Google Cloud Storage's protocol, as far as TensorStore speaks it; conditions of puts are heeded."""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator


class Server(http.server.ThreadingHTTPServer):
    """Objects of the one bucket ``bucket``, by name: bytes and generation; ``fail`` is asked before each answer.

    Attributes:
      fail: an HTTP status to answer a request with, or 0; given its method and the object's name.
      requests: (method, name) of all requests that were answered.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.generation = 1000
        self.lock = threading.Lock()
        self.requests: list[tuple[str, str]] = []

    def fail(self, method: str, name: str) -> int:
        return 0


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    range = ""
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_DELETE(self) -> None:
        self._answer("DELETE")

    def _answer(self, method: str) -> None:
        url = urllib.parse.urlsplit(self.path)
        asked = {key: of[0] for key, of in urllib.parse.parse_qs(url.query).items()}
        bucket, _, name = url.path.partition("/b/")[2].partition("/o")
        name = urllib.parse.unquote(name.lstrip("/")) or asked.get("name", "")
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.server.lock:
            if status := self.server.fail(method, name):
                return self._send(status, b"{}")
            if bucket != "bucket":
                return self._send(404, b"{}")
            self.server.requests.append((method, name))
            self._send(*self._of(method, name, asked, data))

    def _of(self, method: str, name: str, asked: dict[str, str], data: bytes) -> tuple[int, bytes, int]:
        objects = self.server.objects
        there = objects.get(name)
        generation = there[1] if there else 0
        if "ifGenerationMatch" in asked and int(asked["ifGenerationMatch"]) != generation:
            return 412, b"{}", 0
        if method == "POST":
            self.server.generation += 1
            objects[name] = data, self.server.generation
            return 200, json.dumps({"name": name, "generation": str(self.server.generation)}).encode(), 0
        if method == "GET" and not name:
            after, before = asked.get("startOffset", ""), asked.get("endOffset", "\U0010ffff")
            items = [{"name": one} for one in sorted(objects) if after <= one < before]
            return 200, json.dumps({"items": items}).encode(), 0
        if there is None:
            return 404, b"{}", 0
        if method == "DELETE":
            del objects[name]
            return 204, b"", 0
        if asked.get("ifGenerationNotMatch") == str(generation):
            return 304, b"", generation
        if match := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or ""):
            start, end = int(match[1]), min(int(match[2]) + 1, len(there[0]))
            if start >= end:
                return 416, b"", 0
            self.range = f"bytes {start}-{end - 1}/{len(there[0])}"
            return 206, there[0][start:end], generation
        return 200, there[0], generation

    def _send(self, status: int, data: bytes, generation: int = 0) -> None:
        self.send_response(status)
        if generation:
            self.send_header("x-goog-generation", str(generation))
        if status == 206:
            self.send_header("Content-Range", self.range)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
