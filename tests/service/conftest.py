"""Databases for the service's tests: SQLite in a fresh file, and a real PostgreSQL server, started here."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

# PostgreSQL refuses to run as root.
UNPRIVILEGED = "nobody"


def _binaries() -> Path | None:
    """The newest PostgreSQL's programs, on the path or where Debian puts them."""
    if found := shutil.which("postgres"):
        return Path(found).resolve().parent
    return max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), default=None)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL, without a database's name, of a PostgreSQL server in a folder of its own, for all tests."""
    binaries = _binaries()
    if binaries is None:
        if os.environ.get("CS336_REQUIRE_DATA") == "1":
            pytest.fail("CS336_REQUIRE_DATA=1, but there is no PostgreSQL server here (Debian: postgresql)")
        pytest.skip("needs the programs of a PostgreSQL server (Debian: postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="cs336-postgres-"))  # not below pytest's, which only its owner may enter
    who: dict[str, Any] = {}
    if os.geteuid() == 0:
        shutil.chown(folder, UNPRIVILEGED)
        who = {"user": UNPRIVILEGED, "extra_groups": []}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    subprocess.run(
        [binaries / "initdb", "-D", folder / "data", "-U", "tester", "-A", "trust", "-E", "UTF8", "--no-sync"],
        check=True,
        capture_output=True,
        cwd=folder,
        **who,
    )
    with open(folder / "log", "wb") as log:
        server = subprocess.Popen(
            [binaries / "postgres", "-D", folder / "data", "-p", str(port), "-k", folder, "-h", "127.0.0.1"],
            stdout=log,
            stderr=log,
            cwd=folder,
            **who,
        )
    url = f"postgresql://tester@127.0.0.1:{port}"
    try:
        _wait_until_up(f"{url}/postgres", server, folder / "log")
        yield url
    finally:
        server.terminate()
        server.wait(30)
        shutil.rmtree(folder)


def _wait_until_up(url: str, server: subprocess.Popen, log: Path) -> None:
    for _ in range(300):
        if server.poll() is not None:
            break
        with contextlib.suppress(sa.exc.OperationalError), _administrator(url).connect():
            return
        time.sleep(0.1)
    raise RuntimeError(log.read_text())


def _administrator(url: str) -> sa.Engine:
    address = sa.make_url(url).set(drivername="postgresql+psycopg")
    return sa.create_engine(address, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)


@contextlib.contextmanager
def _empty_database(server: str) -> Iterator[str]:
    name = f"test_{os.urandom(6).hex()}"
    administrator = _administrator(f"{server}/postgres")
    with administrator.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    yield f"{server}/{name}"
    with administrator.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """The URL of an empty database on that PostgreSQL server."""
    with _empty_database(postgres_server) as url:
        yield url


@pytest.fixture(scope="module")
def postgres_url_of_module(postgres_server: str) -> Iterator[str]:
    """The same, for all tests of a module."""
    with _empty_database(postgres_server) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, of each kind in turn."""
    if request.param == "postgresql":
        return request.getfixturevalue("postgres_url")
    return f"sqlite:///{tmp_path}/service.db"
