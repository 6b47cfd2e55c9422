"""Tables of the contest's jobs: experiments, an event log to which rows are only added, final submissions.

A user is a key (`database.keys`). Times are Unix time in seconds; what answers show stands in the JSON of a status.
"""

from __future__ import annotations

import sqlalchemy as sa

from cs336.service.database import keys, metadata

experiments = sa.Table(
    "experiments",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("key_id", sa.ForeignKey(keys.c.id), nullable=False, index=True),
    sa.Column("config_hash", sa.String(20), nullable=False),
    sa.Column("config", sa.JSON, nullable=False),
    sa.Column("status", sa.JSON, nullable=False),
    # Copies of what queries ask for; written in the same statement as the status.
    sa.Column("state", sa.String(9), nullable=False, index=True),
    sa.Column("queued_at", sa.Double, nullable=False),
    sa.Column("max_runtime_seconds", sa.Integer, nullable=False),
    sa.Column("charged_seconds", sa.Double, nullable=False),
    sa.UniqueConstraint("key_id", "config_hash"),
    sqlite_autoincrement=True,
)

job_events = sa.Table(
    "job_events",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("key_id", sa.Integer, nullable=False),
    sa.Column("experiment_id", sa.Integer, index=True),  # none of a final submission's
    sa.Column("kind", sa.String(20), nullable=False),
    sa.Column("detail", sa.JSON, nullable=False),
    sqlite_autoincrement=True,
)

final_submissions = sa.Table(
    "final_submissions",
    metadata,
    sa.Column("key_id", sa.ForeignKey(keys.c.id), primary_key=True, autoincrement=False),
    sa.Column("config", sa.JSON, nullable=False),
    sa.Column("predicted_final_loss", sa.Double, nullable=False),
    sa.Column("submitted_at", sa.Double, nullable=False),
)

_REFUSAL = "job_events is a log; rows are only added"
for _change in ("UPDATE", "DELETE"):
    sa.event.listen(
        job_events,
        "after_create",
        sa.DDL(
            f"CREATE TRIGGER job_events_no_{_change.lower()} BEFORE {_change} ON job_events"
            f" BEGIN SELECT RAISE(ABORT, '{_REFUSAL}'); END"
        ).execute_if(dialect="sqlite"),
    )
sa.event.listen(
    job_events,
    "after_create",
    sa.DDL(
        "CREATE OR REPLACE FUNCTION job_events_refuse() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN RAISE EXCEPTION '{_REFUSAL}'; END $$"
    ).execute_if(dialect="postgresql"),
)
sa.event.listen(
    job_events,
    "after_create",
    sa.DDL(
        "CREATE TRIGGER job_events_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON job_events"
        " FOR EACH STATEMENT EXECUTE FUNCTION job_events_refuse()"
    ).execute_if(dialect="postgresql"),
)
