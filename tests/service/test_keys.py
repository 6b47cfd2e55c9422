"""Keys are hashed, compared in constant time, and revocable."""

import hmac
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from cs336.files import UserError
from cs336.service import keys as module
from cs336.service.database import keys, open_database
from cs336.service.keys import add_key, find_key, list_keys, revoke_key


@pytest.fixture
def database(database_url):
    database = open_database(database_url)
    yield database
    database.close()


def test_a_key_is_found_and_no_other_text_is(database):
    secret = add_key(database, "ada@example.org")
    add_key(database, "bob")
    with database.reading() as connection:
        found = find_key(connection, secret)
        assert (found.id, found.name, found.revoked_at, found.flops_used) == (1, "ada@example.org", None, 0)
        assert abs(found.created_at - time.time()) < 60
        for other in ("", secret[:-1], secret + "a", secret.upper(), "ada@example.org", "\x00", "\ud800", "ключ"):
            assert find_key(connection, other) is None


def test_neither_the_key_nor_a_part_of_it_is_on_disk(tmp_path: Path):
    database = open_database(f"sqlite:///{tmp_path}/service.db")
    secret = add_key(database, "ada")
    database.close()
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"ada" in stored
    random_part = secret.removeprefix("cs336-")
    assert not any(random_part[start : start + 8].encode() in stored for start in range(0, 40, 4))


def test_keys_differ_and_are_long(database):
    secrets = {add_key(database, f"user{number}") for number in range(20)}
    assert len(secrets) == 20 and all(len(secret) == 6 + 43 for secret in secrets)


def test_the_comparison_is_the_constant_time_one(database, monkeypatch):
    """A row with the right lookup and another digest is compared, and refused, by `hmac.compare_digest`."""
    secret = add_key(database, "ada")
    with database.writing() as connection:
        digest = connection.execute(sa.select(keys.c.digest)).scalar_one()
        connection.execute(sa.update(keys).values(digest="0" * 64))
    compared = []
    monkeypatch.setattr(
        module.hmac, "compare_digest", lambda a, b, same=hmac.compare_digest: (compared.append((a, b)), same(a, b))[1]
    )
    with database.reading() as connection:
        assert find_key(connection, secret) is None
    assert compared == [("0" * 64, digest)]


def test_a_revoked_key_is_no_key_but_stays_listed(database):
    secret = add_key(database, "ada")
    other = add_key(database, "bob")
    revoke_key(database, "ada")
    with database.reading() as connection:
        assert find_key(connection, secret) is None
        assert find_key(connection, other) is not None
    listed = list_keys(database)
    assert [(key.name, key.revoked_at is None) for key in listed] == [("ada", False), ("bob", True)]
    with pytest.raises(UserError, match="no key that is good"):
        revoke_key(database, "ada")
    with pytest.raises(UserError, match="has, or had"):
        add_key(database, "ada")  # else a user's budget would begin anew


@pytest.mark.parametrize("name", ["", " ", "a b", "-x", "a" * 65, "a\n", "ä"])
def test_a_name_fits_a_line_of_the_list(database, name):
    with pytest.raises(UserError, match="give a name"):
        add_key(database, name)
