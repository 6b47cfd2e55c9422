"""API keys: made by a command, kept as hashes, compared in constant time.

A key is 32 random bytes, so one round of SHA-256 hides it: nothing shorter than trying all 2^256 finds it again.
(Slow hashes are for what people choose.) The row is found by a short hash of its own; of two keys, the time of an
answer tells at most whether these 64 bits agree.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from dataclasses import dataclass

import sqlalchemy as sa

from cs336.files import UserError
from cs336.service.database import Database, keys

_FIND = sa.select(keys).where(keys.c.lookup == sa.bindparam("wanted"))
_FIND_AND_LOCK = _FIND.with_for_update()
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class Key:
    """What is kept of a key.

    Attributes:
        id: of its row.
        name: whose it is.
        created_at: Unix time, seconds.
        revoked_at: since when it is refused; None while it is good.
        flops_used: nominal FLOPs charged to it by the 2025 API.
    """

    id: int
    name: str
    created_at: float
    revoked_at: float | None
    flops_used: int


def add_key(database: Database, name: str) -> str:
    """Make a key for `name`; returns it: this once, for it is not kept.

    Raises:
        UserError: the name has a key already, even a revoked one, or is no name.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"{name!r}: give a name of at most 64 letters, digits and . _ @ + -, such as ada@example.org")
    secret = f"cs336-{secrets.token_urlsafe(32)}"
    try:
        with database.writing() as connection:
            connection.execute(
                sa.insert(keys).values(
                    name=name, lookup=_lookup(secret), digest=_digest(secret), created_at=time.time(), flops_used=0
                )
            )
    except sa.exc.IntegrityError:
        raise UserError(f"{name}: has, or had, a key; take another name") from None
    return secret


def find_key(connection: sa.Connection, secret: str, *, lock: bool = False) -> Key | None:
    """The key whose secret this is; None if there is none or it is revoked.

    Once locked, as `Database.lock_key` does it, no other transaction changes it before this one, of `writing`, ends.
    """
    digest = _digest(secret)
    found = None
    for row in connection.execute(_FIND_AND_LOCK if lock else _FIND, {"wanted": _lookup(secret)}):
        if hmac.compare_digest(row.digest, digest) and row.revoked_at is None:
            found = _key(row)
    return found


def list_keys(database: Database) -> list[Key]:
    """All keys, oldest first."""
    with database.reading() as connection:
        return [_key(row) for row in connection.execute(sa.select(keys).order_by(keys.c.id))]


def revoke_key(database: Database, name: str) -> None:
    """Refuse a key from now on; what it was charged and answered stays.

    Raises:
        UserError: nobody of this name has a key that is good.
    """
    with database.writing() as connection:
        changed = connection.execute(
            sa.update(keys).where(keys.c.name == name, keys.c.revoked_at.is_(None)).values(revoked_at=time.time())
        )
    if not changed.rowcount:
        raise UserError(f"{name}: has no key that is good; `cs336 keys list` shows them")


def _key(row: sa.Row) -> Key:
    return Key(
        id=row.id,
        name=row.name,
        created_at=row.created_at,
        revoked_at=row.revoked_at,
        flops_used=row.flops_used,
    )


def _lookup(secret: str) -> str:
    return hashlib.sha256(b"lookup:" + secret.encode(errors="replace")).hexdigest()[:16]


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()
