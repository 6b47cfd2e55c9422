"""What the 2026 service is sent and answers, but for the configuration itself."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from cs336.service.job_config import FinalTrainingConfig, TrainingConfig
from cs336.service.life_cycle import Failure, Status


class BudgetSummary(BaseModel):
    """A user's seconds. Jobs that wait or run count with all that they asked for."""

    used_seconds: float
    remaining_seconds: float
    total_budget_seconds: float


class Experiment(BaseModel):
    """A job as its user sees it."""

    experiment_id: int
    training_config: TrainingConfig
    status: Status


class FinalSubmissionBody(BaseModel):
    """What a user would train with 48 hours, and the loss that it would reach."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    training_config: FinalTrainingConfig
    predicted_final_loss: Annotated[float, Field(gt=0, description="validation loss, nats a token")]


class FinalSubmission(FinalSubmissionBody):
    """The one that counts: a user's last."""

    submitted_at: Annotated[datetime, Field(strict=False)]


class Started(BaseModel):
    """The first chunk begins: time counts."""

    type: Literal["started"]
    run_id: str


class Heartbeat(BaseModel):
    """The worker lives; sent at least once a minute."""

    type: Literal["heartbeat"]
    run_id: str


class ValidationLoss(BaseModel):
    """The loss after a chunk; `number` counts from 0, so one sent twice is known."""

    model_config = ConfigDict(allow_inf_nan=False)

    type: Literal["validation_loss"]
    run_id: str
    number: Annotated[int, Field(ge=0)]
    loss: float


class Preempted(BaseModel):
    """The machine is taken away; the job waits again."""

    type: Literal["preempted"]
    run_id: str


WorkerEvent = Annotated[Started | Heartbeat | ValidationLoss | Preempted, Field(discriminator="type")]


class Finish(BaseModel):
    """How a run ended: completed where there is no failure."""

    model_config = ConfigDict(allow_inf_nan=False)

    run_id: str
    used_seconds: Annotated[float, Field(ge=0)]
    val_losses: tuple[float, ...] = ()
    failure: Failure | None = None
    error: Annotated[str, Field(max_length=8_192)] | None = None
