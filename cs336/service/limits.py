"""Limits: requests per second of a key, failed keys per second of an address, bytes of bodies and queries.

The buckets live in this process's memory: a restart fills them.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_QUERY_BYTES = 8_192


class RateLimiter:
    """Token buckets: each name may spend `burst` at once, and `per_second` in the long run.

    Args:
        per_second: tokens that a bucket gains.
        burst: tokens that a bucket holds at most, and at first.
        max_names: buckets kept; the one unused for longest goes first. Nobody gains by being forgotten as long as
            fewer names than these ask within `burst / per_second` seconds.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        *,
        per_second: float,
        burst: float,
        max_names: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not (per_second > 0 and burst >= 1):
            raise ValueError(f"per_second={per_second}, burst={burst}: give a rate above 0 and a burst of 1 or more")
        self.per_second = per_second
        self.burst = burst
        self._max_names = max_names
        self._clock = clock
        self._buckets: OrderedDict[object, tuple[float, float]] = OrderedDict()  # tokens, when they were counted
        self._lock = threading.Lock()

    def take(self, name: object) -> float:
        """Spend one token of a bucket; returns 0, or if there is none the seconds until there is."""
        with self._lock:
            now = self._clock()
            tokens, counted_at = self._buckets.get(name, (self.burst, now))
            tokens = min(self.burst, tokens + (now - counted_at) * self.per_second)
            taken = tokens >= 1
            self._buckets[name] = (tokens - taken, now)
            self._buckets.move_to_end(name)
            if len(self._buckets) > self._max_names:
                self._buckets.popitem(last=False)
        return 0.0 if taken else (1 - tokens) / self.per_second


class RateLimited(Exception):
    """A request too many; answered by 429 with `Retry-After`."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"too many requests; try again in {seconds:.2f} s")
        self.retry_after_seconds = max(1, math.ceil(seconds))


class BoundedRequests:
    """ASGI middleware: 414 for longer queries, 413 for longer bodies, announced or streamed."""

    def __init__(self, app: ASGIApp, *, max_body_bytes: int, max_query_bytes: int = MAX_QUERY_BYTES) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._max_query_bytes = max_query_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if len(scope["query_string"]) > self._max_query_bytes:
            await _refuse(send, 414, f"the query is longer than {self._max_query_bytes:,} bytes")
            return
        too_long = f"the body is longer than {self._max_body_bytes:,} bytes"
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > self._max_body_bytes:
            await _refuse(send, 413, too_long)
            return
        # The body is taken up before the endpoint runs, so that a refusal never follows half an answer.
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._max_body_bytes:
                await _refuse(send, 413, too_long)
                return
        given = False

        async def receive_body() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        await self._app(scope, receive_body, send)


async def _refuse(send: Send, status: int, message: str) -> None:
    body = json.dumps({"message": message}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
