"""The life of a training job: queued, running, completed or failed; and what it costs at each moment.

    queued --dispatched--> running --finished--> completed | failed (timeout | unexpected)
       ^                      |
       +------preempted-------+

Every function takes a status and gives the next; nothing here knows a database or a process.

Source: CS336 Spring 2026, scaling handout.
"""

from __future__ import annotations

import math
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

State = Literal["queued", "running", "completed", "failed"]
Failure = Literal["timeout", "unexpected"]

MIN_CHARGE_SECONDS = 1.0
WATCHDOG_FACTOR = 1.05
WATCHDOG_EXTRA_SECONDS = 10.0
MAX_SETUP_SECONDS = 1_800.0  # ours: data and compilation are free, but a worker held up by them is held for all users


class WrongState(Exception):
    """A step that the job's state does not allow, such as finishing a run that is not running."""


class StaleRun(WrongState):
    """News of a run that is no longer the job's: it was preempted, and another took its place."""


class Status(BaseModel):
    """Where a job stands. Times are UTC."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    state: State
    queued_at: datetime
    dispatched_at: datetime | None = None
    started_at: datetime | None = Field(default=None, description="when the first chunk began; time counts from there")
    heard_at: datetime | None = Field(default=None, description="of the worker, last")
    finished_at: datetime | None = None
    run_id: str | None = None
    val_losses: tuple[float, ...] = Field(default=(), description="nats a token, one after each chunk so far")
    used_seconds: float | None = None
    failure: Failure | None = None
    error: str | None = None


def queued(now: datetime) -> Status:
    """A new job."""
    return Status(state="queued", queued_at=now)


def dispatched(status: Status, run_id: str, now: datetime) -> Status:
    """A worker is about to be launched for it as `run_id`.

    Raises:
        WrongState: it does not wait.
    """
    if status.state != "queued":
        raise WrongState(f"the job is {status.state}, not queued")
    return _next(status, state="running", run_id=run_id, dispatched_at=now, heard_at=now)


def started(status: Status, run_id: str, now: datetime) -> Status:
    """The first chunk begins. Said twice, the first time counts."""
    _check_run(status, run_id)
    return _next(status, started_at=status.started_at or now, heard_at=now)


def heard(status: Status, run_id: str, now: datetime) -> Status:
    """The worker lives."""
    _check_run(status, run_id)
    return _next(status, heard_at=now)


def validated(status: Status, run_id: str, number: int, loss: float, now: datetime) -> Status:
    """The loss after chunk `number`, from 0. One that is known already changes nothing.

    Raises:
        ValueError: a loss before this one has not come.
    """
    _check_run(status, run_id)
    if number > len(status.val_losses):
        raise ValueError(f"loss {number} cannot come next; {len(status.val_losses)} are known")
    losses = status.val_losses if number < len(status.val_losses) else (*status.val_losses, loss)
    return _next(status, val_losses=losses, started_at=status.started_at or now, heard_at=now)


def preempted(status: Status, run_id: str, now: datetime) -> Status:
    """The machine was taken back: the job waits again, at its old place, and begins anew."""
    _check_run(status, run_id)
    return queued(status.queued_at)


def finished(
    status: Status,
    run_id: str,
    *,
    used_seconds: float,
    failure: Failure | None,
    error: str | None,
    now: datetime,
) -> Status:
    """The end of the run, with its losses so far.

    Raises:
        WrongState: the job is not running, or runs as another run.
    """
    _check_run(status, run_id)
    return _next(
        status,
        state="completed" if failure is None else "failed",
        finished_at=now,
        heard_at=now,
        used_seconds=used_seconds,
        failure=failure,
        error=error,
    )


def charge_seconds(status: Status, max_runtime_seconds: float) -> float:
    """What a job takes of its user's budget: all it asked for while it may still need it, then what it used.

    What it used is cut to 1 ... max_runtime, also of a run that failed.
    """
    if status.state in ("queued", "running"):
        return float(max_runtime_seconds)
    used = status.used_seconds or 0.0
    if math.isnan(used):
        raise ValueError("used_seconds is not a number")
    return min(max(used, MIN_CHARGE_SECONDS), float(max_runtime_seconds))


def is_overdue(status: Status, max_runtime_seconds: float, now: datetime) -> bool:
    """Whether the watchdog ends the run: it should have ended itself, between two chunks, long ago.

    Never before the first chunk, from which time counts; see `is_stuck`.
    """
    if status.state != "running" or status.started_at is None:
        return False
    limit = WATCHDOG_FACTOR * max_runtime_seconds + WATCHDOG_EXTRA_SECONDS
    return (now - status.started_at).total_seconds() > limit


def is_stuck(status: Status, now: datetime) -> bool:
    """Whether a running job's first chunk has not begun for so long that it never will.

    Its worker may still be heard of: heartbeats come from a thread beside the one that prepares the training.
    """
    if status.state != "running" or status.started_at is not None or status.dispatched_at is None:
        return False
    return (now - status.dispatched_at).total_seconds() > MAX_SETUP_SECONDS


def is_silent(status: Status, patience_seconds: float, now: datetime) -> bool:
    """Whether a running job's worker has not been heard of for so long that it is given up."""
    if status.state != "running" or status.heard_at is None:
        return False
    return (now - status.heard_at).total_seconds() > patience_seconds


def trained_seconds(status: Status) -> float:
    """From the first chunk to the last sign of life: what a lost run is charged."""
    if status.started_at is None or status.heard_at is None:
        return 0.0
    return (status.heard_at - status.started_at).total_seconds()


def _check_run(status: Status, run_id: str) -> None:
    if status.run_id is not None and status.run_id != run_id:
        raise StaleRun(f"run {run_id} is not the job's; {status.run_id} is")
    if status.state != "running":
        raise WrongState(f"the job is {status.state}, not running")


def _next(status: Status, **changes: object) -> Status:
    return Status.model_validate(status.model_dump() | changes)
