"""The same transactions on SQLite and on PostgreSQL."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from cs336.files import UserError
from cs336.service.database import keys, open_database
from cs336.service.keys import add_key


def test_what_a_block_wrote_is_there_for_the_next_process(database_url):
    database = open_database(database_url)
    add_key(database, "ada")
    database.close()
    again = open_database(database_url)
    with again.reading() as connection:
        assert connection.execute(sa.select(keys.c.name)).scalars().all() == ["ada"]
    again.close()


def test_a_block_that_raises_leaves_nothing(database_url):
    database = open_database(database_url)
    add_key(database, "ada")
    with pytest.raises(ZeroDivisionError), database.writing() as connection:
        connection.execute(sa.update(keys).values(flops_used=5))
        _ = 1 / 0
    with database.reading() as connection:
        assert connection.execute(sa.select(keys.c.flops_used)).scalar_one() == 0
    database.close()


def test_two_databases_on_one_file_or_server_never_lose_an_addition(database_url):
    """Read, wait, write back: only a locked key keeps what the other added in between."""
    databases = [open_database(database_url), open_database(database_url)]
    add_key(databases[0], "ada")

    def add(number: int) -> None:
        database = databases[number % 2]
        with database.writing() as connection:
            used = database.lock_key(connection, 1).flops_used
            time.sleep(0.005)
            connection.execute(sa.update(keys).values(flops_used=used + 1))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(40)))
    with databases[0].reading() as connection:
        assert connection.execute(sa.select(keys.c.flops_used)).scalar_one() == 40
    for database in databases:
        database.close()


def test_readers_do_not_wait_for_a_writer(database_url):
    database = open_database(database_url)
    add_key(database, "ada")
    with database.writing() as writer:
        writer.execute(sa.update(keys).values(flops_used=5))
        seen = []

        def read() -> None:
            with database.reading() as connection:
                seen.append(connection.execute(sa.select(keys.c.flops_used)).scalar_one())

        reader = threading.Thread(target=read)
        reader.start()
        reader.join(5)
        assert seen == [0]
    database.close()


def test_only_a_file_that_no_thread_writes_is_asked_on_the_event_loop(database_url):
    """A server is waited for on another thread, and so is a thread that writes: the loop goes on."""
    database = open_database(database_url)
    held, release = threading.Event(), threading.Event()

    def write() -> int:
        with database.writing() as connection:
            connection.execute(sa.update(keys).values(flops_used=5))
        return threading.get_ident()

    def hold() -> None:
        with database.writing():
            held.set()
            assert release.wait(20)

    async def ask() -> tuple[int, int]:
        alone = await database.run(write)
        writer = threading.Thread(target=hold)
        writer.start()
        assert held.wait(5)
        asyncio.get_running_loop().call_later(0.05, release.set)  # never, if the loop waited
        beside_a_writer = await database.run(write)
        writer.join(5)
        return alone, beside_a_writer

    here = threading.get_ident()
    alone, beside_a_writer = asyncio.run(ask())
    assert (alone == here) == database_url.startswith("sqlite") and beside_a_writer != here
    database.close()


def test_servers_that_start_at_once_make_the_tables_once(database_url):
    with ThreadPoolExecutor(8) as pool:
        for database in pool.map(open_database, [database_url] * 8):
            add_key(database, f"name-{id(database)}")
            database.close()


def test_numbers_of_nineteen_digits_come_back_exactly(database_url):
    database = open_database(database_url)
    add_key(database, "ada")
    with database.writing() as connection:
        connection.execute(sa.update(keys).values(flops_used=1_999_999_999_999_999_999))
    with database.reading() as connection:
        assert connection.execute(sa.select(keys.c.flops_used)).scalar_one() == 1_999_999_999_999_999_999
    database.close()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "give sqlite:///FILE or postgresql"),
        ("mysql://user:hidden@host/name", "no database for this"),
        ("sqlite:///:memory:", "no database for this"),  # each connection would have its own
        ("postgresql://user:hidden@127.0.0.1:1/name", "cannot be opened"),
        ("sqlite:////dev/null/file.db", "cannot be opened"),
    ],
)
def test_a_database_that_cannot_be_opened_is_one_line_without_the_password(url, message):
    with pytest.raises(UserError, match=message) as caught:
        open_database(url)
    assert "hidden" not in str(caught.value) and "\n" not in str(caught.value)
