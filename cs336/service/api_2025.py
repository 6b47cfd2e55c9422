"""The 2025 training API: the loss of a configuration, for a budget of nominal FLOPs.

Source: CS336 2025, assignment 3, section 3.1. Its three endpoints answer exactly as it says; `/provenance` is ours and
free: where a loss comes from, and how far off it may be.
"""

from __future__ import annotations

import time
from dataclasses import fields
from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from cs336.scaling.loss_model import Configuration
from cs336.scaling.surrogate import BUDGETS, CHOICES, RANGES, Surrogate
from cs336.service.app import Part, Refusal
from cs336.service.database import keys, metadata
from cs336.service.keys import Key
from cs336.service.state import Service, service_of

OUT_OF_RANGE_STATUS = 404  # the handout's; 422 is often quoted
NO_KEY_STATUS = 422  # ours: the handout does not say
BUDGET_SPENT_STATUS = 400  # ours

queries = sa.Table(
    "loss_queries",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),  # their order: it is given out while the key is locked
    sa.Column("key_id", sa.ForeignKey("keys.id"), nullable=False),
    sa.Column("d_model", sa.Integer, nullable=False),
    sa.Column("num_layers", sa.Integer, nullable=False),
    sa.Column("num_heads", sa.Integer, nullable=False),
    sa.Column("batch_size", sa.Integer, nullable=False),
    sa.Column("learning_rate", sa.Double, nullable=False),
    sa.Column("train_flops", sa.BigInteger, nullable=False),
    sa.Column("loss", sa.Double, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),  # Unix time, seconds
    sa.UniqueConstraint(
        "key_id", "d_model", "num_layers", "num_heads", "batch_size", "learning_rate", "train_flops", name="one_charge"
    ),
    sqlite_autoincrement=True,
)


_SIX_VALUES = [field.name for field in fields(Configuration)]
# Statements are built once: that takes longer than to run one.
_KNOWN = sa.select(queries.c.loss).where(
    queries.c.key_id == sa.bindparam("asker"), *(queries.c[name] == sa.bindparam(name) for name in _SIX_VALUES)
)
_ALL = (
    sa.select(*(queries.c[name] for name in (*_SIX_VALUES, "loss")))
    .where(queries.c.key_id == sa.bindparam("asker"))
    .order_by(queries.c.id)
)
_STORE = sa.insert(queries)
_CHARGE = sa.update(keys).where(keys.c.id == sa.bindparam("asker")).values(flops_used=sa.bindparam("total"))


class Loss(BaseModel):
    """Of a configuration."""

    loss: float
    total_flops_used: float


class PreviousRun(BaseModel):
    """A configuration that was asked for, and its loss."""

    d_model: int
    num_layers: int
    num_heads: int
    batch_size: int
    learning_rate: float
    train_flops: int
    loss: float


class PreviousRuns(BaseModel):
    """In the order they were asked for."""

    previous_runs: list[PreviousRun]


class Provenance(BaseModel):
    """Where a configuration's loss comes from."""

    provenance: str
    uncertainty: float
    source: str
    surrogate: dict[str, Any]


class Message(BaseModel):
    """Why there is no other answer."""

    message: str


class ValidationFailure(BaseModel):
    """Parameters that are missing or cannot be read."""

    detail: list[dict[str, Any]]


def _answers(**more: str) -> dict[int | str, dict[str, Any]]:
    described: dict[int | str, dict[str, Any]] = {
        NO_KEY_STATUS: {
            "model": Message | ValidationFailure,
            "description": "No such key, or a parameter is missing or cannot be read",
        },
        429: {"model": Message, "description": "Too many requests; `Retry-After` says when to come again"},
    }
    return described | {int(status[1:]): {"model": Message, "description": text} for status, text in more.items()}


def _range(name: str) -> dict[str, Any]:
    low, high = RANGES[name]
    return {"minimum": low, "maximum": high}


_OUT_OF_RANGE = {f"_{OUT_OF_RANGE_STATUS}": "A value is out of its range"}
ApiKey = Annotated[str, Query(description="From `cs336 keys add NAME`")]

router = APIRouter(tags=["2025"])


async def configuration_of(
    d_model: Annotated[int, Query(json_schema_extra=_range("d_model"))],
    num_layers: Annotated[int, Query(json_schema_extra=_range("num_layers"))],
    num_heads: Annotated[int, Query(json_schema_extra=_range("num_heads"))],
    batch_size: Annotated[int, Query(json_schema_extra={"enum": list(CHOICES["batch_size"])})],
    learning_rate: Annotated[float, Query(allow_inf_nan=False, json_schema_extra=_range("learning_rate"))],
    train_flops: Annotated[
        float,
        Query(allow_inf_nan=False, json_schema_extra={"enum": list(BUDGETS)}, description="1e16 is a spelling too"),
    ],
) -> Configuration:
    """The six values of a query, not yet compared with their ranges."""
    return Configuration(
        d_model=d_model,
        num_layers=num_layers,
        num_heads=num_heads,
        batch_size=batch_size,
        learning_rate=learning_rate,
        train_flops=int(train_flops) if train_flops.is_integer() else train_flops,
    )


Asked = Annotated[Configuration, Depends(configuration_of)]


@router.get(
    "/loss", response_model=Loss, responses=_answers(**_OUT_OF_RANGE, _400="The budget does not pay for this run")
)
async def loss(request: Request, asked: Asked, api_key: ApiKey) -> JSONResponse:
    """The final training loss of a configuration, in nats per token; each new one is charged `train_flops`.

    The same configuration again is free, and answered alike, for ever.
    """
    return await service_of(request).database.run(_loss, request, asked, api_key)


def _loss(request: Request, asked: Configuration, api_key: str) -> JSONResponse:
    service = service_of(request)
    flops, budget = int(asked.train_flops), service.settings.flops_budget
    # Check, charge and answer are one transaction, in which nobody else may charge this key.
    with service.database.writing() as connection:
        key = _authenticate(request, service, connection, api_key, lock=True)
        _check_ranges(asked)
        used = key.flops_used
        found = connection.execute(_KNOWN, {"asker": key.id, **vars(asked)}).scalar()
        if found is None:
            if used + flops > budget:
                raise Refusal(
                    BUDGET_SPENT_STATUS,
                    f"this run takes {flops:.4g} FLOPs, but {used:.4g} of the limit of {budget:.4g} are used",
                )
            found = _surrogate(request).loss(asked)
            used += flops
            connection.execute(_STORE, {"key_id": key.id, "loss": found, "created_at": time.time(), **vars(asked)})
            connection.execute(_CHARGE, {"asker": key.id, "total": used})
    # Made directly, an answer is not compared with its model once more, on another thread.
    return JSONResponse({"loss": found, "total_flops_used": float(used)})


@router.get("/total_flops_used", responses=_answers())
def total_flops_used(request: Request, api_key: ApiKey) -> float:
    """What the key was charged so far; a key that never asked for a loss is answered by an error, as in the handout."""
    service = service_of(request)
    with service.database.reading() as connection:
        key = _authenticate(request, service, connection, api_key)
    if not key.flops_used:
        raise Refusal(NO_KEY_STATUS, "no loss was asked for with this API key yet")
    return float(key.flops_used)


@router.get("/previous_runs", response_model=PreviousRuns, responses=_answers())
def previous_runs(request: Request, api_key: ApiKey) -> JSONResponse:
    """Every configuration that the key was charged for, in the order they were asked for."""
    service = service_of(request)
    with service.database.reading() as connection:
        key = _authenticate(request, service, connection, api_key)
        rows = connection.execute(_ALL, {"asker": key.id}).mappings()
        return JSONResponse({"previous_runs": [dict(row) for row in rows]})


@router.get("/provenance", responses=_answers(**_OUT_OF_RANGE))
def provenance(request: Request, asked: Asked, api_key: ApiKey) -> Provenance:
    """Whether a loss is measured, interpolated or extrapolated, and its standard error in nats; free of charge.

    `surrogate` says how all losses are made, and how far off they were for runs held out, by decade of the budget.
    """
    service = service_of(request)
    with service.database.reading() as connection:
        _authenticate(request, service, connection, api_key)
    _check_ranges(asked)
    prediction = _surrogate(request).predict(asked)
    return Provenance(
        provenance=prediction.provenance,
        uncertainty=prediction.uncertainty,
        source=prediction.source,
        surrogate=_surrogate(request).summary(),
    )


def part(surrogate: Surrogate) -> Part:
    """These endpoints, answering from a surrogate."""
    return Part(router=router, state={"surrogate": surrogate})


def _surrogate(request: Request) -> Surrogate:
    return request.app.state.surrogate


def _authenticate(
    request: Request, service: Service, connection: sa.Connection, api_key: str, *, lock: bool = False
) -> Key:
    key = service.authenticate(request, connection, api_key, lock=lock)
    if key is None:
        raise Refusal(NO_KEY_STATUS, f"Invalid API key provided: {api_key}")
    return key


def _check_ranges(asked: Configuration) -> None:
    for name, value in vars(asked).items():
        if name in CHOICES and value not in CHOICES[name]:
            allowed = ", ".join(f"{choice:.0e}" if choice >= 1e6 else str(choice) for choice in CHOICES[name])
            raise Refusal(OUT_OF_RANGE_STATUS, f"{name} must be one of [{allowed}], got {value}")
        if name in RANGES and not RANGES[name][0] <= value <= RANGES[name][1]:
            low, high = RANGES[name]
            raise Refusal(OUT_OF_RANGE_STATUS, f"{name} must be in range [{low}, {high}], got {value}")
