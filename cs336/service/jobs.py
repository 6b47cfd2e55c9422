"""The contest's jobs as they are kept: every step of a job's life is one transaction, and one row of the event log."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple

import sqlalchemy as sa

from cs336.service import life_cycle
from cs336.service.database import Database
from cs336.service.fair_order import Waiting, fair_order
from cs336.service.job_config import MAX_RUNTIME_SECONDS, FinalTrainingConfig, TrainingConfig, config_hash
from cs336.service.job_models import (
    BudgetSummary,
    Experiment,
    FinalSubmission,
    FinalSubmissionBody,
    Finish,
    Heartbeat,
    Started,
    ValidationLoss,
    WorkerEvent,
)
from cs336.service.jobs_tables import experiments, final_submissions, job_events
from cs336.service.life_cycle import Status, WrongState

TOTAL_BUDGET_SECONDS = float(MAX_RUNTIME_SECONDS)  # 12 GPU-hours a user, all of which one job may ask for
_DISPATCH_LOCK = 336_2026  # of PostgreSQL's advisory locks


class Running(NamedTuple):
    """A job that has, or is about to have, a worker."""

    experiment_id: int
    run_id: str
    config: TrainingConfig
    status: Status


class Duplicate(Exception):
    """The user asked for this very configuration before, as `experiment_id`."""

    def __init__(self, experiment_id: int) -> None:
        super().__init__(f"experiment {experiment_id} has this very configuration; a repeated run would tell nothing")
        self.experiment_id = experiment_id


class OverBudget(Exception):
    """The job may run longer than what remains."""

    def __init__(self, asked_seconds: float, summary: BudgetSummary) -> None:
        super().__init__(
            f"max_runtime_seconds is {asked_seconds:g}, but {summary.remaining_seconds:g} of"
            f" {summary.total_budget_seconds:g} remain"
        )
        self.summary = summary


class UnknownExperiment(Exception):
    """There is no such experiment, or none of this user."""


def utc_now() -> datetime:
    """Now."""
    return datetime.now(UTC)


class Jobs:
    """All users' jobs.

    Args:
        total_budget_seconds: of each user.
        now: the clock; UTC.
    """

    def __init__(
        self,
        database: Database,
        *,
        total_budget_seconds: float = TOTAL_BUDGET_SECONDS,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self.database, self.total_budget_seconds, self.now = database, total_budget_seconds, now

    # ---- for users

    def submit(self, key_id: int, config: TrainingConfig) -> tuple[int, BudgetSummary]:
        """Queue a job and charge all that it may use; check, charge and insert are one transaction.

        Raises:
            Duplicate: the user had this configuration before, whatever became of it; also on a spent budget.
            OverBudget: it may run longer than what remains.
        """
        digest = config_hash(config)
        with self.database.writing() as connection:
            self.database.lock_key(connection, key_id)
            mine = experiments.c.key_id == key_id
            known = connection.scalar(sa.select(experiments.c.id).where(mine, experiments.c.config_hash == digest))
            if known is not None:
                raise Duplicate(known)
            summary = self._budget(connection, key_id)
            if config.max_runtime_seconds > summary.remaining_seconds:
                raise OverBudget(config.max_runtime_seconds, summary)
            status = life_cycle.queued(self.now())
            values = {"key_id": key_id, "config_hash": digest, "config": config.model_dump(mode="json")}
            values |= {"max_runtime_seconds": config.max_runtime_seconds}
            values |= _columns(status, config.max_runtime_seconds)
            result = connection.execute(sa.insert(experiments).values(**values))
            assert result.inserted_primary_key is not None
            experiment_id = result.inserted_primary_key[0]
            self._log(connection, key_id, experiment_id, "submitted", {"config_hash": digest})
            return experiment_id, self._budget(connection, key_id)

    def budget(self, key_id: int) -> BudgetSummary:
        """What a user has used and has left."""
        with self.database.reading() as connection:
            return self._budget(connection, key_id)

    def experiments(self, key_id: int) -> list[Experiment]:
        """A user's jobs, oldest first."""
        with self.database.reading() as connection:
            rows = connection.execute(
                sa.select(experiments).where(experiments.c.key_id == key_id).order_by(experiments.c.id)
            )
            return [_experiment(row) for row in rows]

    def experiment(self, key_id: int, experiment_id: int) -> Experiment:
        """One job of a user.

        Raises:
            UnknownExperiment: there is none, or it is another user's: the answer does not tell which.
        """
        with self.database.reading() as connection:
            row = connection.execute(
                sa.select(experiments).where(experiments.c.id == experiment_id, experiments.c.key_id == key_id)
            ).one_or_none()
        if row is None:
            raise UnknownExperiment(f"there is no experiment {experiment_id}")
        return _experiment(row)

    def submit_final(self, key_id: int, body: FinalSubmissionBody) -> FinalSubmission:
        """Put a final submission in the place of the user's last one, if any."""
        now = self.now()
        values = {
            "config": body.training_config.model_dump(mode="json"),
            "predicted_final_loss": body.predicted_final_loss,
            "submitted_at": now.timestamp(),
        }
        with self.database.writing() as connection:
            self.database.lock_key(connection, key_id)
            mine = final_submissions.c.key_id == key_id
            changed = connection.execute(sa.update(final_submissions).where(mine).values(**values))
            if not changed.rowcount:
                connection.execute(sa.insert(final_submissions).values(key_id=key_id, **values))
            self._log(connection, key_id, None, "final_submission", values)
        return FinalSubmission(**dict(body), submitted_at=now)

    def final_submission(self, key_id: int) -> FinalSubmission | None:
        """A user's final submission; None where there is none yet."""
        with self.database.reading() as connection:
            row = connection.execute(
                sa.select(final_submissions).where(final_submissions.c.key_id == key_id)
            ).one_or_none()
        if row is None:
            return None
        return FinalSubmission(
            training_config=FinalTrainingConfig.model_validate(row.config),
            predicted_final_loss=row.predicted_final_loss,
            submitted_at=datetime.fromtimestamp(row.submitted_at, UTC),
        )

    # ---- for workers

    def worker_event(self, experiment_id: int, event: WorkerEvent) -> None:
        """Take a worker's news. Those of a run that is not the job's, or that is over, are logged and change nothing.

        Raises:
            UnknownExperiment: there is no such job.
            ValueError: a loss comes before one that precedes it.
        """
        now = self.now()
        detail = event.model_dump(exclude={"type"})

        def change(status: Status) -> Status:
            if isinstance(event, Started):
                return life_cycle.started(status, event.run_id, now)
            if isinstance(event, Heartbeat):
                return life_cycle.heard(status, event.run_id, now)
            if isinstance(event, ValidationLoss):
                return life_cycle.validated(status, event.run_id, event.number, event.loss, now)
            return life_cycle.preempted(status, event.run_id, now)

        try:
            self._change(experiment_id, change, event.type, detail)
        except WrongState as error:
            self._change(experiment_id, lambda status: status, "ignored", detail | {"reason": str(error)})

    def finish(self, experiment_id: int, finish: Finish) -> None:
        """End a run and charge what it used. A second time it is refused: nothing is charged twice.

        Raises:
            UnknownExperiment: there is no such job.
            WrongState: this run is not running.
        """
        now = self.now()

        def change(status: Status) -> Status:
            ended = life_cycle.finished(
                status,
                finish.run_id,
                used_seconds=finish.used_seconds,
                failure=finish.failure,
                error=finish.error,
                now=now,
            )
            if len(finish.val_losses) > len(status.val_losses):
                ended = ended.model_copy(update={"val_losses": finish.val_losses})
            return ended

        self._change(experiment_id, change, "finished", finish.model_dump())

    # ---- for the scheduler

    def running(self) -> list[Running]:
        """Jobs that are marked as running."""
        with self.database.reading() as connection:
            rows = connection.execute(
                sa.select(experiments).where(experiments.c.state == "running").order_by(experiments.c.id)
            )
            return [_running(row) for row in rows]

    def dispatch(self, num_workers: int) -> list[Running]:
        """Mark as running the jobs that are next in the fair order, as many as there are free workers.

        Each gets a new run id, under which it is to be launched. The mark is what counts: whoever finds a running job
        without a worker launches it under that id, at most once.
        """
        with self.database.writing() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_DISPATCH_LOCK)))
            columns = (experiments.c.id, experiments.c.key_id, experiments.c.queued_at, experiments.c.state)
            rows = connection.execute(sa.select(*columns).where(experiments.c.state.in_(("queued", "running")))).all()
            running = Counter(row.key_id for row in rows if row.state == "running")
            waiting = [
                Waiting(datetime.fromtimestamp(row.queued_at, UTC), row.id, row.key_id)
                for row in rows
                if row.state == "queued"
            ]
            free = max(0, num_workers - running.total())
            chosen = []
            for job in fair_order(waiting, running)[:free]:
                run_id = secrets.token_hex(8)
                change = partial(life_cycle.dispatched, run_id=run_id, now=self.now())
                row = self._changed(connection, job.number, change, "dispatched", {"run_id": run_id})
                chosen.append(_running(row))
            return chosen

    # ---- below all of them

    def _change(
        self, experiment_id: int, change: Callable[[Status], Status], kind: str, detail: dict[str, Any]
    ) -> None:
        with self.database.writing() as connection:
            self._changed(connection, experiment_id, change, kind, detail)

    def _changed(
        self,
        connection: sa.Connection,
        experiment_id: int,
        change: Callable[[Status], Status],
        kind: str,
        detail: dict[str, Any],
    ) -> sa.Row:
        """The experiment's row after a step, which no other transaction takes meanwhile."""
        only = experiments.c.id == experiment_id
        row = connection.execute(sa.select(experiments).where(only).with_for_update()).one_or_none()
        if row is None:
            raise UnknownExperiment(f"there is no experiment {experiment_id}")
        before = Status.model_validate(row.status)
        after = change(before)
        if after != before:
            connection.execute(sa.update(experiments).where(only).values(**_columns(after, row.max_runtime_seconds)))
        self._log(connection, row.key_id, experiment_id, kind, detail)
        return connection.execute(sa.select(experiments).where(only)).one()

    def _budget(self, connection: sa.Connection, key_id: int) -> BudgetSummary:
        charged = connection.scalar(
            sa.select(sa.func.coalesce(sa.func.sum(experiments.c.charged_seconds), 0.0)).where(
                experiments.c.key_id == key_id
            )
        )
        used = float(charged or 0.0)
        return BudgetSummary(
            used_seconds=used,
            remaining_seconds=max(0.0, self.total_budget_seconds - used),
            total_budget_seconds=self.total_budget_seconds,
        )

    def _log(
        self, connection: sa.Connection, key_id: int, experiment_id: int | None, kind: str, detail: dict[str, Any]
    ) -> None:
        connection.execute(
            sa.insert(job_events).values(
                at=self.now().timestamp(), key_id=key_id, experiment_id=experiment_id, kind=kind, detail=detail
            )
        )


def _columns(status: Status, max_runtime_seconds: int) -> dict[str, Any]:
    return {
        "status": status.model_dump(mode="json"),
        "state": status.state,
        "queued_at": status.queued_at.timestamp(),
        "charged_seconds": life_cycle.charge_seconds(status, max_runtime_seconds),
    }


def _experiment(row: sa.Row) -> Experiment:
    return Experiment(
        experiment_id=row.id,
        training_config=TrainingConfig.model_validate(row.config),
        status=Status.model_validate(row.status),
    )


def _running(row: sa.Row) -> Running:
    status = Status.model_validate(row.status)
    assert status.run_id is not None
    return Running(row.id, status.run_id, TrainingConfig.model_validate(row.config), status)
