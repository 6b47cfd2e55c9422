"""Files that appear whole or not at all, JSON Lines, and checksums."""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any


class UserError(Exception):
    """A mistake or a state of the machine that one line explains: what, where, and the remedy.

    Commands print the line without a traceback.
    """


@contextlib.contextmanager
def replacing(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file that takes the name `path` only once it is complete and on disk.

    Raises:
        UserError: the disk is full; whatever `path` held before is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with name_full_disk(path), open(partial, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync_folder(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def name_full_disk(path: Path) -> Iterator[None]:
    """Turn "no space left on device" into one line that names the folder and the remedy.

    Libraries wrap that error in many ways (NumPy, PyTorch, safetensors and polars each their own),
    so whatever fails on a disk without space counts as that.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        full = full or "no space left on device" in str(error).lower()
        if full or _free_bytes(path) < _FULL_BELOW_BYTES:
            raise UserError(
                f"{path}: the disk is full; free some space, or set CS336_ARTIFACTS to a folder on a larger disk,"
                " and run again (finished artifacts are kept)"
            ) from error
        raise


_FULL_BELOW_BYTES = 8_192  # two blocks: what a writer may leave unused when it gives up


def _free_bytes(path: Path) -> int:
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Make every file and name below `folder` survive a power failure."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        elif path.is_dir():
            sync_folder(path)
    sync_folder(folder)


@contextlib.contextmanager
def creating(folder: Path) -> Iterator[Path]:
    """Give out a folder to fill, which takes the name `folder` only once it is complete and on disk.

    Raises:
        UserError: something is there already, or the disk is full; nothing is left behind.
    """
    folder = folder.resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: is there already; name a new folder, or delete it first")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        with name_full_disk(partial):
            partial.mkdir()
            yield partial
            sync_tree(partial)
        partial.replace(folder)  # takes the place of an empty folder, never of a full one
        sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON with sorted keys, whole or not at all."""
    with replacing(path, "w") as file:
        json.dump(value, file, indent=2, sort_keys=True, ensure_ascii=False)
        file.write("\n")


def write_compact_json(path: Path, value: Any) -> None:
    """Write JSON of more numbers than anybody reads, with sorted keys on one line, whole or not at all."""
    with replacing(path, "w") as file:
        json.dump(value, file, separators=(",", ":"), sort_keys=True, ensure_ascii=False)
        file.write("\n")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        UserError: the file is missing or not JSON; the line names it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: not found") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder; give a JSON file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None


def write_jsonl(path: Path, rows: Iterable[Any]) -> int:
    """Write one JSON value a line, whole or not at all; returns the number of rows."""
    count = 0
    with replacing(path, "w") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def append_jsonl(path: Path, row: Any) -> None:
    """Add one JSON value as a line, to a file that is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_jsonl(path: Path) -> Iterator[Any]:
    """Read JSON Lines, gzipped or not.

    Raises:
        UserError: the file is missing, or a line is not JSON; the message names file and line.
    """
    if not path.exists():
        raise UserError(f"{path}: not found")
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}:{number}: not valid JSON ({error.msg})") from None


def sha256_of_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
