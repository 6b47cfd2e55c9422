"""A real HTTP server on loopback that serves files with ranges and ETags, and fails on demand."""

from __future__ import annotations

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple


class Fault(NamedTuple):
    """What one request gets instead of a proper answer.

    Attributes:
        status: an error status; 0: an answer that breaks off.
        num_bytes: of the body, before the connection is closed.
        retry_after: header of an error answer.
    """

    status: int = 0
    num_bytes: int = 0
    retry_after: str = ""


class Request(NamedTuple):
    method: str
    path: str
    range: str | None


class FileServer:
    """Serves `files`; `faults[path]` are used up one per GET request, first first.

    Attributes:
        files: body by path.
        types: MIME type by path; none by default.
        redirects: target by path.
        knows_ranges: False ignores Range headers, as some servers do.
        etags: False sends no validator at all.
        requests: all that were received.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[Fault]] = {}
        self.types: dict[str, str] = {}
        self.redirects: dict[str, str] = {}
        self.knows_ranges = True
        self.etags = True
        self.requests: list[Request] = []
        self.user_agents: set[str] = set()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server._answer(self, with_body=True)

            def do_HEAD(self) -> None:
                server._answer(self, with_body=False)

            def log_message(self, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *args: object) -> None:
                """Clients that hang up in the middle are what is being tested."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> FileServer:
        self._thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self._server.server_port}{path}"

    def etag(self, path: str) -> str:
        return '"' + hashlib.md5(self.files[path]).hexdigest() + '"'

    def ranges(self, path: str) -> list[str | None]:
        """The Range headers of all GET requests for a path."""
        return [request.range for request in self.requests if request[:2] == ("GET", path)]

    def _answer(self, handler: BaseHTTPRequestHandler, *, with_body: bool) -> None:
        path, wanted = handler.path, handler.headers.get("Range")
        self.requests.append(Request(handler.command, path, wanted))
        self.user_agents.add(handler.headers.get("User-Agent", ""))
        fault = self.faults[path].pop(0) if with_body and self.faults.get(path) else None
        if path in self.redirects:
            handler.send_response(302)
            handler.send_header("Location", self.redirects[path])
            handler.end_headers()
            return
        if (fault and fault.status) or path not in self.files:
            handler.send_response(fault.status if fault else 404)
            if fault and fault.retry_after:
                handler.send_header("Retry-After", fault.retry_after)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        body, etag, start = self.files[path], self.etag(path), 0
        same = handler.headers.get("If-Range") in (None, etag)
        if wanted and self.knows_ranges and same:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                handler.send_response(416)
                handler.send_header("Content-Range", f"bytes */{len(body)}")
                handler.end_headers()
                return
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            handler.send_response(200)
        if self.etags:
            handler.send_header("ETag", etag)
        if path in self.types:
            handler.send_header("Content-Type", self.types[path])
        handler.send_header("Content-Length", str(len(body) - start))
        handler.end_headers()
        if with_body:
            handler.wfile.write(body[start : start + fault.num_bytes] if fault else body[start:])
