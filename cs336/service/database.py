"""The service's database: SQLite in one file, or PostgreSQL, through the same code.

All tables hang on `metadata`; a module that keeps something declares its own there, and `open_database` makes
what is missing. Two kinds of transactions: `reading`, and `writing`, which sees and changes rows as if it were alone
with the keys that it has locked (`lock_key`).

SQLite runs in WAL mode: readers never wait. Writers queue on a lock of this process, then on the file's
(`BEGIN IMMEDIATE`), so a write never fails for having begun as a read. `synchronous=NORMAL`: a killed process loses
nothing; a power failure may take back the last transactions, whole ones only. PostgreSQL keeps those too.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

from cs336.files import UserError

Result = TypeVar("Result")
metadata = sa.MetaData()

keys = sa.Table(
    "keys",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.String(64), nullable=False, unique=True),
    sa.Column("lookup", sa.String(16), nullable=False, index=True),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),  # Unix time, seconds
    sa.Column("revoked_at", sa.Double),
    sa.Column("flops_used", sa.BigInteger, nullable=False, server_default="0"),  # the sum over the key's loss_queries
    sqlite_autoincrement=True,
)

_LOCK_KEY = sa.select(keys).where(keys.c.id == sa.bindparam("key_id")).with_for_update()

_BUSY_SECONDS = 30.0  # how long a SQLite writer waits for another process
_CONNECTIONS = 16  # more than the server has threads
_CREATE_LOCK = 336_2025  # of PostgreSQL's advisory locks: two servers that start at once make the tables once


class Database:
    """An open database; threads share it."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = self._reader = engine
        self._one_writer = threading.RLock() if engine.dialect.name == "sqlite" else None
        if self._one_writer is None:  # all statements of a reading transaction see one state, as SQLite's do
            self._reader = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)

    async def run(self, work: Callable[..., Result], *given: Any) -> Result:
        """Call `work`, which opens a few short transactions, from the event loop.

        On SQLite they cost less than to wake another thread: it is called here, unless a thread is writing. (Another
        process that writes is waited for here; that takes as long as its transaction, about a millisecond.) On
        PostgreSQL each statement waits for the server: another thread does that.
        """
        if self._one_writer is None or not self._one_writer.acquire(blocking=False):
            from starlette.concurrency import run_in_threadpool  # here: jobs and the graph have no web server

            return await run_in_threadpool(work, *given)
        try:
            return work(*given)
        finally:
            self._one_writer.release()

    @contextlib.contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A transaction that changes nothing, and sees one state of the database."""
        with self._reader.begin() as connection:
            _begin(connection, "BEGIN")
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction that is on disk when the block ends, and undone whole if the block raises."""
        with self._one_writer or contextlib.nullcontext(), self.engine.begin() as connection:
            _begin(connection, "BEGIN IMMEDIATE")
            yield connection

    def lock_key(self, connection: sa.Connection, key_id: int) -> sa.Row:
        """The key's row, which no other transaction changes before this one, of `writing`, ends."""
        return connection.execute(_LOCK_KEY, {"key_id": key_id}).one()

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def open_database(url: str) -> Database:
    """Open a database and make the tables that it lacks.

    Args:
        url: `sqlite:///relative.db`, `sqlite:////absolute.db`, or `postgresql://user:password@host/name`.

    Raises:
        UserError: no such kind of database, or it cannot be reached; the message has no password in it.
    """
    try:
        address = sa.make_url(url)
    except sa.exc.ArgumentError:
        raise UserError("the database's URL is none; give sqlite:///FILE or postgresql://USER@HOST/NAME") from None
    if address.drivername == "sqlite" and address.database not in (None, "", ":memory:"):
        engine = sa.create_engine(
            address, pool_size=_CONNECTIONS, max_overflow=0, connect_args={"timeout": _BUSY_SECONDS}
        )
        sa.event.listen(engine, "connect", _prepare_sqlite)
    elif address.drivername in ("postgresql", "postgresql+psycopg"):
        try:
            engine = sa.create_engine(
                address.set(drivername="postgresql+psycopg"), pool_size=_CONNECTIONS, max_overflow=0, pool_pre_ping=True
            )
        except ModuleNotFoundError:
            raise UserError("PostgreSQL needs one package more: pip install 'cs336[postgres]'") from None
    else:
        raise UserError(
            f"{address.render_as_string()}: no database for this; give sqlite:///FILE or postgresql://USER@HOST/NAME"
        )
    database = Database(engine)
    try:
        if engine.dialect.name == "sqlite":
            Path(address.database or "").parent.mkdir(parents=True, exist_ok=True)
        with database.writing() as connection:
            if engine.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_CREATE_LOCK)))
            metadata.create_all(connection)
    except (sa.exc.DatabaseError, sqlite3.DatabaseError, OSError) as error:
        engine.dispose()
        reason = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
        raise UserError(f"{address.render_as_string()}: cannot be opened ({reason})") from None
    return database


def _prepare_sqlite(connection: Any, record: object) -> None:
    connection.isolation_level = None  # transactions begin where `_begin` says
    for setting in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {setting}")


def _begin(connection: sa.Connection, statement: str) -> None:
    """Begin on SQLite, past SQLAlchemy: an event of the engine would slow down every statement."""
    if connection.dialect.name == "sqlite":
        connection.connection.cursor().execute(statement)
