"""A contest on this machine: the 2026 API, and behind it the scheduler and a pool of workers."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter

from cs336.service.api_2026 import users_router, workers_router
from cs336.service.app import Part
from cs336.service.job_data import open_data
from cs336.service.jobs import TOTAL_BUDGET_SECONDS, Jobs
from cs336.service.pool import LocalPool
from cs336.service.scheduler import PATIENCE_SECONDS, POLL_SECONDS, Scheduler
from cs336.service.state import Service


@dataclass(frozen=True, kw_only=True)
class Contest:
    """How a contest is set up.

    Attributes:
        address: where workers, on this machine, reach the service, such as `http://127.0.0.1:8000`.
        folder: of the runs and their logs.
        data: folder of the token arrays that jobs train on; without one the API takes jobs, and they wait.
        num_workers: jobs that run at once.
        devices: that they are spread over, such as ("cuda:0", "cuda:1").
        pool: what starts the workers.
        total_budget_seconds: of each user.
        poll_seconds: between two looks at the queue.
        patience_seconds: without news of a worker, after which its run is given up.
    """

    address: str
    folder: Path
    data: Path | None = None
    num_workers: int = 1
    devices: tuple[str, ...] = ("auto",)
    pool: type[LocalPool] = LocalPool
    total_budget_seconds: float = TOTAL_BUDGET_SECONDS
    poll_seconds: float = POLL_SECONDS
    patience_seconds: float = PATIENCE_SECONDS


def contest_part(contest: Contest) -> Part:
    """The contest as a part of the service's application.

    Raises:
        UserError: the text is missing or too short.
    """
    router = APIRouter()
    if contest.data is None:
        router.include_router(users_router(total_budget_seconds=contest.total_budget_seconds))
        return Part(router=router)
    num_train_tokens = len(open_data(contest.data).train) - 1  # the last one is only a target
    pool = contest.pool(
        contest.folder,
        data=contest.data,
        devices=contest.devices,
        threads=max(1, (os.cpu_count() or 1) // contest.num_workers),
    )
    router.include_router(
        users_router(total_budget_seconds=contest.total_budget_seconds, num_train_tokens=num_train_tokens)
    )
    router.include_router(workers_router(pool.internal_key()))

    @contextlib.asynccontextmanager
    async def running(service: Service) -> AsyncIterator[None]:
        scheduler = Scheduler(
            Jobs(service.database),
            pool,
            folder=contest.folder,
            num_workers=contest.num_workers,
            poll_seconds=contest.poll_seconds,
            patience_seconds=contest.patience_seconds,
            # Not before: another server's workers may still be told its address.
            on_turn=lambda: pool.announce(contest.address),
        )
        scheduler.start()
        try:
            yield
        finally:
            await asyncio.to_thread(scheduler.stop)  # other parts may still have to end, too

    return Part(router=router, lifespan=running)
