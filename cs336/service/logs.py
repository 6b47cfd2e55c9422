"""One JSON line a request: id, who, what, status, latency, and a bounded preview of question and answer.

Secrets stay out: the query's `api_key` is masked wherever it stands, and headers are not logged.
"""

from __future__ import annotations

import datetime
import json
import logging
import logging.handlers
import re
import sys
import time
import urllib.parse
import uuid
from pathlib import Path

from starlette.types import ASGIApp, Message, Receive, Scope, Send

PREVIEW_CHARACTERS = 8_192
PREVIEW_TOKENS = 512  # words and single signs
LOG_FILE_BYTES, LOG_FILES = 64 << 20, 4  # a log file's size before it is put aside, and how many are kept so

_TOKEN = re.compile(r"\w+|[^\w\s]")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MASK = "***"


def open_log(file: Path | None) -> logging.Logger:
    """A logger of its own, whose lines go to a file that never grows without bound; None is standard error."""
    log = logging.Logger("cs336.service", logging.INFO)
    if file is None:
        log.addHandler(logging.StreamHandler(sys.stderr))
    else:
        file.parent.mkdir(parents=True, exist_ok=True)
        log.addHandler(
            logging.handlers.RotatingFileHandler(file, maxBytes=LOG_FILE_BYTES, backupCount=LOG_FILES, encoding="utf-8")
        )
    return log


def preview(text: str) -> str:
    """The beginning of a text: at most 512 tokens and 8,192 characters; a cut one ends with an ellipsis."""
    if len(text) <= PREVIEW_TOKENS:  # as nearly all: a token is a character at least
        return text
    end = min(len(text), PREVIEW_CHARACTERS - 1) if len(text) > PREVIEW_CHARACTERS else len(text)
    for count, token in enumerate(_TOKEN.finditer(text, 0, end), 1):
        if count > PREVIEW_TOKENS:
            end = token.start()
            break
    return text if end == len(text) else text[:end].rstrip() + "…"


class RequestLog:
    """ASGI middleware that writes the line, and puts the request's id into `X-Request-ID` of the answer.

    An id that comes with the request, of at most 64 letters, digits and . _ -, is taken over. What an endpoint sets
    as `request.state.who` is the line's `who`.
    """

    def __init__(self, app: ASGIApp, *, log: logging.Logger) -> None:
        self._app = app
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        state = scope.setdefault("state", {})
        request_id = state["request_id"] = _request_id(scope)
        status = 500  # of an endpoint that failed before its answer began
        question, answer = bytearray(), bytearray()

        async def receive_and_note() -> Message:
            message = await receive()
            _note(question, message)
            return message

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            _note(answer, message)
            await send(message)

        try:
            await self._app(scope, receive_and_note, send_and_note)
        finally:
            query, secrets = _masked_query(scope["query_string"])
            line = {
                "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
                "request_id": request_id,
                "client": scope["client"][0] if scope.get("client") else None,
                "who": state.get("who"),
                "method": scope["method"],
                "path": preview(scope["path"]),
                "query": preview(query),
                "status": status,
                "latency_ms": round((time.perf_counter() - start) * 1e3, 3),
                "request": _shown(question, secrets),
                "response": _shown(answer, secrets),
            }
            self._log.info(json.dumps(line, ensure_ascii=False))


def _request_id(scope: Scope) -> str:
    given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _note(kept: bytearray, message: Message) -> None:
    space = 4 * PREVIEW_CHARACTERS - len(kept)  # a character of UTF-8 has at most 4 bytes
    if space > 0 and (body := message.get("body")):
        kept += body[:space]


def _masked_query(query: bytes) -> tuple[str, list[str]]:
    """The query as it came without the keys in it, and the keys."""
    shown, secrets = [], []
    for pair in query.decode("latin-1").split("&"):
        name, _, value = pair.partition("=")
        if value and urllib.parse.unquote_plus(name) == "api_key":
            secrets.append(urllib.parse.unquote_plus(value))
            pair = f"api_key={_MASK}"
        shown.append(pair)
    return "&".join(shown), secrets


def _shown(body: bytearray, secrets: list[str]) -> str:
    text = body.decode(errors="replace")
    for secret in secrets:
        text = text.replace(secret, _MASK).replace(json.dumps(secret)[1:-1], _MASK)
    return preview(text)
