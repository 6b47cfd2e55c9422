"""The application: what all parts of the service share, and the parts mounted on it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

import anyio.to_thread
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse

from cs336.service.database import open_database
from cs336.service.docs_page import add_docs
from cs336.service.limits import BoundedRequests, RateLimited
from cs336.service.logs import RequestLog, open_log
from cs336.service.state import Service, Settings

_THREADS = 12  # of endpoints that wait for the database; more only wait for each other


@dataclass(frozen=True, kw_only=True)
class Part:
    """A group of endpoints to mount.

    Attributes:
        router: its endpoints, which find what they share with `cs336.service.state.service_of`.
        lifespan: service -> a context that is open while the server runs, for a scheduler or workers; it is entered
            after the database is open, in the order of the parts, and left before it closes. None: nothing to do.
        state: what its endpoints read from `request.app.state`, by name.
    """

    router: APIRouter
    lifespan: Callable[[Service], AbstractAsyncContextManager[None]] | None = None
    state: Mapping[str, Any] = field(default_factory=dict)


class Refusal(Exception):
    """An answer that is no success, with the body `{"message": ...}`."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def create_app(settings: Settings, parts: Sequence[Part]) -> FastAPI:
    """The ASGI application; uvicorn runs it.

    `app.state.service` is there at once, so the database is opened here.

    Raises:
        UserError: the database cannot be opened.
    """
    service = Service(settings, open_database(settings.database_url))

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = _THREADS
        async with contextlib.AsyncExitStack() as running:
            running.callback(service.database.close)
            for part in parts:
                if part.lifespan is not None:
                    await running.enter_async_context(part.lifespan(service))
            yield

    app = FastAPI(
        title="cs336 scaling",
        summary="The training API of CS336's scaling assignment.",
        version="1",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's own page loads its scripts from elsewhere
        redoc_url=None,
    )
    add_docs(app)
    app.state.service = service
    for part in parts:
        app.include_router(part.router)
        for name, value in part.state.items():
            setattr(app.state, name, value)
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(RateLimited, _rate_limited)
    app.add_exception_handler(Exception, _failed)
    # The last one added is the outermost: the log sees refused bodies too.
    app.add_middleware(BoundedRequests, max_body_bytes=settings.max_body_bytes)
    app.add_middleware(RequestLog, log=open_log(settings.log_file))
    return app


async def _refused(request: Request, refusal: Exception) -> JSONResponse:
    assert isinstance(refusal, Refusal)
    return JSONResponse({"message": str(refusal)}, refusal.status)


async def _rate_limited(request: Request, limited: Exception) -> JSONResponse:
    assert isinstance(limited, RateLimited)
    return JSONResponse({"message": str(limited)}, 429, {"Retry-After": str(limited.retry_after_seconds)})


async def _failed(request: Request, error: Exception) -> JSONResponse:
    request_id = request.state.request_id
    return JSONResponse(
        {"message": f"the server failed; its log has more under {request_id}"}, 500, {"X-Request-ID": request_id}
    )
