"""The 2026 API: jobs of a contest, paid in seconds; and what workers tell.

Everything but the dashboard's page needs a key in the header `X-API-Key`; the workers' paths need theirs in
`X-Internal-Key`, and are left out of the public description.

Source: CS336 Spring 2026, scaling handout.
"""

# Annotations are evaluated where they stand, not kept as text: FastAPI could not find the names inside functions.
import hmac
from collections.abc import Callable, Coroutine
from importlib.resources import files
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, HTTPException, Path, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.exceptions import HTTPException as StarletteHTTPException

from cs336.service.api_2025 import Message
from cs336.service.job_config import TrainingConfig
from cs336.service.job_models import (
    BudgetSummary,
    Experiment,
    FinalSubmission,
    FinalSubmissionBody,
    Finish,
    WorkerEvent,
)
from cs336.service.jobs import TOTAL_BUDGET_SECONDS, Duplicate, Jobs, OverBudget, UnknownExperiment
from cs336.service.life_cycle import WrongState
from cs336.service.state import service_of

_OTHER_METHODS = ["OPTIONS", "HEAD", "PUT", "PATCH", "DELETE", "TRACE"]
_ID = Annotated[int, Path(ge=1, le=2**31 - 1)]
# The page is one file and talks to this service alone; whatever a user's text holds, no other script runs.
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline';"
    " connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-cache",
}


class Submitted(BaseModel):
    """A job that waits, and what its user has left."""

    experiment_id: int
    budget_summary: BudgetSummary


class Problem(BaseModel):
    """Why not."""

    detail: str


class OverBudgetDetail(BaseModel):
    """How much is missing."""

    message: str
    budget_summary: BudgetSummary


class OverBudgetProblem(BaseModel):
    """The job may run longer than what remains."""

    detail: OverBudgetDetail


class _Route(APIRoute):
    """Answers a body that cannot even be read, such as bytes that are no text, as it does any other invalid one."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, around FastAPI's."""
        handle = super().get_route_handler()

        async def handle_or_refuse(request: Request) -> Response:
            try:
                return await handle(request)
            except StarletteHTTPException as error:
                if error.status_code != 400 or not isinstance(error.detail, str):  # ours hold a summary
                    raise
            except RequestValidationError as error:
                if not any(isinstance(each.get("input"), bytes) for each in error.errors()):
                    raise
            problem = {"type": "json_invalid", "loc": ("body",), "msg": "the body is not JSON", "input": {}}
            raise RequestValidationError([problem])

        return handle_or_refuse


def users_router(
    *, total_budget_seconds: float = TOTAL_BUDGET_SECONDS, num_train_tokens: int | None = None
) -> APIRouter:
    """The paths for users.

    Args:
        total_budget_seconds: of each user.
        num_train_tokens: that there are; a job that wants more is refused, for no token is taken twice. None where
            the text is not known here.
    """
    router = APIRouter(tags=["2026"], route_class=_Route)

    def open_jobs(request: Request) -> Jobs:
        return Jobs(service_of(request).database, total_budget_seconds=total_budget_seconds)

    def who_asks(request: Request, x_api_key: Annotated[str | None, Header(alias="X-API-Key")] = None) -> int:
        service = service_of(request)
        with service.database.reading() as connection:
            key = service.authenticate(request, connection, x_api_key)
        if key is None:
            raise HTTPException(401, "the header X-API-Key is missing, or is no key")
        return key.id

    All = Annotated[Jobs, Depends(open_jobs)]
    User = Annotated[int, Depends(who_asks)]
    refused: dict[int | str, dict[str, Any]] = {
        401: {"model": Problem, "description": "No key, or an unknown one"},
        429: {"model": Message, "description": "Too many requests"},
    }

    @router.post(
        "/submit",
        responses=refused
        | {
            400: {"model": OverBudgetProblem, "description": "max_runtime_seconds exceeds what remains"},
            409: {"model": Problem, "description": "The same configuration was submitted before"},
        },
    )
    def submit(config: TrainingConfig, jobs: All, user: User) -> Submitted:
        """Queue a job; its max_runtime_seconds are reserved until it has ended."""
        if num_train_tokens is not None and config.total_train_tokens > num_train_tokens:
            problem = f"the text has {num_train_tokens} tokens, and none is taken twice"
            where = {"type": "too_many_tokens", "loc": ["body", "total_train_tokens"], "msg": problem}
            raise HTTPException(422, [where | {"input": config.total_train_tokens}])
        try:
            experiment_id, summary = jobs.submit(user, config)
        except Duplicate as error:
            raise HTTPException(409, str(error)) from None
        except OverBudget as error:
            detail = OverBudgetDetail(message=str(error), budget_summary=error.summary)
            raise HTTPException(400, detail.model_dump()) from None
        return Submitted(experiment_id=experiment_id, budget_summary=summary)

    @router.get("/budget", responses=refused)
    def budget(jobs: All, user: User) -> BudgetSummary:
        """Seconds used, reserved ones included, and left."""
        return jobs.budget(user)

    @router.get("/experiments", responses=refused)
    def experiments(jobs: All, user: User) -> list[Experiment]:
        """All your jobs, oldest first."""
        return jobs.experiments(user)

    @router.get(
        "/experiment/{experiment_id}",
        responses=refused | {404: {"model": Problem, "description": "You have no such experiment"}},
    )
    def experiment(experiment_id: _ID, jobs: All, user: User) -> Experiment:
        """One of your jobs."""
        try:
            return jobs.experiment(user, experiment_id)
        except UnknownExperiment as error:
            raise HTTPException(404, str(error)) from None

    @router.post("/final_submission", responses=refused)
    def submit_final(body: FinalSubmissionBody, jobs: All, user: User) -> FinalSubmission:
        """Say what you would train for 48 hours, and the loss it would reach; the last word counts."""
        return jobs.submit_final(user, body)

    @router.get("/final_submission", responses=refused)
    def final_submission(jobs: All, user: User) -> FinalSubmission | None:
        """Your final submission; null when there is none."""
        return jobs.final_submission(user)

    @router.api_route("/final_submission", methods=_OTHER_METHODS, include_in_schema=False)
    def neither() -> None:  # two routes share this path, and by themselves each would name its own method only
        raise HTTPException(405, "Method Not Allowed", {"Allow": "GET, POST"})

    @router.get("/dashboard", response_class=HTMLResponse)
    def dashboard() -> HTMLResponse:
        """A page to watch and submit your jobs with."""
        page = (files("cs336.service") / "dashboard" / "index.html").read_text(encoding="utf-8")
        return HTMLResponse(page, headers=_PAGE_HEADERS)

    return router


def workers_router(internal_key: str) -> APIRouter:
    """The paths for workers."""

    def check_key(x_internal_key: Annotated[str | None, Header()] = None) -> None:
        if not hmac.compare_digest((x_internal_key or "").encode(), internal_key.encode()):
            raise HTTPException(401, "the header X-Internal-Key is missing, or wrong")

    def open_jobs(request: Request) -> Jobs:
        return Jobs(service_of(request).database)

    All = Annotated[Jobs, Depends(open_jobs)]
    router = APIRouter(
        prefix="/internal/worker", include_in_schema=False, dependencies=[Depends(check_key)], route_class=_Route
    )

    @router.post("/{experiment_id}/event", status_code=204)
    def event(experiment_id: _ID, body: WorkerEvent, jobs: All) -> None:
        try:
            jobs.worker_event(experiment_id, body)
        except UnknownExperiment as error:
            raise HTTPException(404, str(error)) from None
        except ValueError as error:
            raise HTTPException(422, str(error)) from None

    @router.post("/{experiment_id}/finish", status_code=204)
    def finish(experiment_id: _ID, body: Finish, jobs: All) -> None:
        try:
            jobs.finish(experiment_id, body)
        except UnknownExperiment as error:
            raise HTTPException(404, str(error)) from None
        except WrongState as error:
            raise HTTPException(500, str(error)) from None

    return router
