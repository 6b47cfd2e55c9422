"""What all endpoints share: settings, database, the limits' buckets, and who asks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from starlette.requests import Request

from cs336.service.database import Database
from cs336.service.keys import Key, find_key
from cs336.service.limits import RateLimited, RateLimiter

FLOPS_BUDGET = 2_000_000_000_000_000_000  # nominal FLOPs of a key: the handout's 2e18


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a server is set up.

    Attributes:
        database_url: as `cs336.service.database.open_database` takes it.
        flops_budget: nominal FLOPs that a key may be charged by the 2025 API.
        requests_per_second: of one key, in the long run.
        burst: requests of one key at once.
        failures_per_second: requests without a good key of one address, in the long run.
        failure_burst: such requests at once.
        max_body_bytes: of a request.
        log_file: of one JSON line a request; None is standard error.
    """

    database_url: str
    flops_budget: int = FLOPS_BUDGET
    requests_per_second: float = 200.0
    burst: float = 400.0
    failures_per_second: float = 10.0
    failure_burst: float = 100.0
    max_body_bytes: int = 65_536
    log_file: Path | None = None


class Service:
    """Settings, database and buckets of one running server; endpoints find it with `service_of`."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self.settings = settings
        self.database = database
        self._by_key = RateLimiter(per_second=settings.requests_per_second, burst=settings.burst)
        self._failures = RateLimiter(per_second=settings.failures_per_second, burst=settings.failure_burst)

    def authenticate(
        self, request: Request, connection: sa.Connection, secret: str | None, *, lock: bool = False
    ) -> Key | None:
        """The key that a request came with, or None if it has no good one; the log then knows whose it is.

        It is locked as `find_key` says.

        Raises:
            RateLimited: too many requests of this key, or too many failures of this address.
        """
        key = find_key(connection, secret, lock=lock) if secret else None
        if key is not None:
            request.state.who = key.name
            wait = self._by_key.take(key.id)
        else:
            wait = self._failures.take(request.client.host if request.client else None)
        if wait:
            raise RateLimited(wait)
        return key


def service_of(request: Request) -> Service:
    """The service that a request came to."""
    return request.app.state.service
