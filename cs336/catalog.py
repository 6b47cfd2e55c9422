"""External data sets and models: is it here, where is it, what are its bytes, and how to get it.

A mirror folder (CS336_DATA) wins over the download folder (CS336_DOWNLOADS), and both over the
network, which only `fetch` touches. What was unpinned before a download is pinned after it: revision
and checksums go to the lock (`cs336/catalog_lock.json`, or the file named by CS336_CATALOG_LOCK),
which is committed, and every later download must give the same bytes.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from cs336.catalog_entries import ENTRIES, Entry, File
from cs336.catalog_loaders import (
    open_text,
    read_alpaca_eval,
    read_gsm8k,
    read_mmlu,
    read_paloma,
    read_simple_safety_tests,
)
from cs336.download import cached_sha256, download, downloads_folder
from cs336.files import UserError, name_full_disk, read_json, sha256_of_file, write_json
from cs336.progress import Progress, silent

__all__ = [
    "ENTRIES",
    "Entry",
    "File",
    "checksum",
    "entry",
    "fetch",
    "find",
    "find_file",
    "open_text",
    "read_alpaca_eval",
    "read_gsm8k",
    "read_mmlu",
    "read_paloma",
    "read_simple_safety_tests",
    "require",
    "require_files",
    "status_table",
]

_FETCHED = ".fetched.json"  # in a downloaded hub folder: revision and files; written last
_SUFFIXES = (".gz", ".xz")


def entry(name: str) -> Entry:
    """The entry called `name`.

    Raises:
        ValueError: there is none.
    """
    if name not in ENTRIES:
        raise ValueError(f"the catalogue has no {name!r}; it has {', '.join(sorted(ENTRIES))}")
    return ENTRIES[name]


def find(name: str) -> Path | None:
    """Where the whole entry lies on this machine, or None: its file, or the folder of its files.

    A mirror may hold a file in another compression than the origin, so what is found may end in
    `.gz` or `.xz` or not; `open_text` reads all of them.
    """
    located = _locate(entry(name))
    return located[0] if located else None


def has_address(name: str) -> bool:
    """Whether `fetch` knows where an entry is, and needs nobody's consent."""
    wanted = entry(name)
    return not wanted.gated and (wanted.hub or (bool(wanted.files) and all(file.url for file in wanted.files)))


def require(name: str) -> Path:
    """As `find`, for callers that cannot do without.

    Raises:
        UserError: it is missing; the line says how to get it.
    """
    found = find(name)
    if found is None:
        raise UserError(f"{name} ({entry(name).what}) is not on this machine: {_remedy(entry(name))}")
    return found


def require_files(name: str) -> list[Path]:
    """All files of an entry, by name, in whatever compression.

    Raises:
        UserError: it is missing; the line says how to get it.
    """
    return [path for _, path in sorted(files_of(name).items())]


def files_of(name: str) -> dict[str, Path]:
    """All files of an entry by declared name, in whatever compression.

    Raises:
        UserError: it is missing; the line says how to get it.
    """
    require(name)
    located = _locate(entry(name))
    assert located is not None
    return located[1]


def find_file(name: str, file_name: str) -> Path | None:
    """One file of an entry, in whatever compression, or None.

    Args:
        file_name: as declared, such as "train.jsonl" of "gsm8k".
    """
    located = _locate(entry(name))
    return located[1].get(file_name) if located else None


def fetch(name: str, *, progress: Progress = silent) -> Path:
    """Download an entry unless it is here already; returns what `find` finds.

    Raises:
        UserError: no address is known, access is refused, the network fails, or the bytes are not the
            pinned ones.
    """
    wanted = entry(name)
    found = find(name)
    if found is None:
        folder = downloads_folder() / name
        with name_full_disk(folder):
            revision, files = (_fetch_hub if wanted.hub else _fetch_urls)(wanted, folder, progress)
        _refuse_twin(wanted, files)
        _pin(wanted, revision, files)
        if wanted.hub:
            write_json(folder / _FETCHED, {"revision": revision, "files": files})
        found = require(name)
    return found


def checksum(name: str) -> str | None:
    """SHA-256 of the found file, or of the list of names and SHA-256s of several; None when not here.

    File checksums are remembered, so this is cheap from the second call on.
    """
    located = _locate(entry(name))
    if not located:
        return None
    found, files = located
    if found.is_file():
        return cached_sha256(found)
    lines = sorted(f"{file_name} {cached_sha256(path)}\n" for file_name, path in files.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def status_table() -> list[dict[str, Any]]:
    """One row per entry: name, kind, licence, access, pinned or unpinned, and where it was found."""
    lock = _read_lock()
    rows = []
    for name, each in ENTRIES.items():
        found = find(name)
        pinned = bool(each.files) and all(file.sha256 for file in each.files)
        rows.append(
            {
                "name": name,
                "kind": each.kind,
                "licence": each.licence,
                "access": "gated" if each.gated else "open",
                "pinned": "pinned" if pinned or name in lock else "unpinned",
                "found": str(found) if found else "",
            }
        )
    return rows


# ---- what is on this machine -------------------------------------------------------------------


def _mirror_folder() -> Path | None:
    value = os.environ.get("CS336_DATA")
    return Path(value).expanduser() if value else None


def _variant(path: Path) -> Path | None:
    """The file under this name, or with one compression suffix more or less."""
    candidates = [path, *(path.with_name(path.name + suffix) for suffix in _SUFFIXES)]
    if path.suffix in _SUFFIXES:
        candidates.append(path.with_suffix(""))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _locate(wanted: Entry) -> tuple[Path, dict[str, Path]] | None:
    """The entry's file or folder, and its files by declared name; None unless all of them are here."""
    mirror = _mirror_folder()
    if mirror is not None:
        for alternative in wanted.mirror:
            if (mirror / alternative).exists():
                return mirror / alternative, _files_under(mirror / alternative)
        files = {file.name: _variant(mirror / file.mirror) for file in wanted.files if file.mirror}
        if files and len(files) == len(wanted.files) and (located := _whole(files)):
            return located
    folder = downloads_folder() / wanted.name
    if wanted.hub and not wanted.files:
        # Patterns do not tell how many files there must be: the note written last does.
        return (folder, _files_under(folder)) if (folder / _FETCHED).exists() else None
    return _whole({file.name: _variant(folder / file.name) for file in wanted.files}, folder=folder)


def _whole(files: dict[str, Path | None], *, folder: Path | None = None) -> tuple[Path, dict[str, Path]] | None:
    """All files, and the one file or the folder that holds them; None if any is missing."""
    present = {name: path for name, path in files.items() if path is not None}
    if len(present) < len(files):
        return None
    if len(present) == 1:
        return next(iter(present.values())), present
    return folder or Path(os.path.commonpath(present.values())), present


def _files_under(path: Path) -> dict[str, Path]:
    """The files of a folder by their path in it, hidden ones aside; of a file itself."""
    if path.is_file():
        return {path.name: path}
    inside = {str(each.relative_to(path)): each for each in sorted(path.rglob("*")) if each.is_file()}
    return {name: each for name, each in inside.items() if not any(part.startswith(".") for part in Path(name).parts)}


def _remedy(wanted: Entry) -> str:
    places = [f"$CS336_DATA/{path}" for path in wanted.mirror[:1] or (file.mirror for file in wanted.files)]
    place = places[0] if len(places) == 1 else f"{places[0]} and {len(places) - 1} more beside it"
    if not wanted.hub and not all(file.url for file in wanted.files):
        return f"put it at {place} (origin: {wanted.origin})"
    consent = f" after accepting its licence on its hub page ({wanted.origin}) and setting HF_TOKEN"
    return f"run `cs336 data fetch {wanted.name}`{consent if wanted.gated else ''}, or put it at {place}"


# ---- the network -------------------------------------------------------------------------------


def _fetch_urls(wanted: Entry, folder: Path, progress: Progress) -> tuple[str | None, dict[str, Any]]:
    if not all(file.url for file in wanted.files):
        raise UserError(f"{wanted.name}: {_remedy(wanted)}")
    locked = _read_lock().get(wanted.name, {}).get("files", {})
    files = {}
    for file in wanted.files:
        path = folder / file.name
        sha256, num_bytes = _expected(file, locked)
        actual = download(file.url, path, sha256=sha256, num_bytes=num_bytes, progress=progress)
        files[file.name] = {"sha256": actual, "bytes": path.stat().st_size}
    return wanted.revision, files


def _fetch_hub(wanted: Entry, folder: Path, progress: Progress) -> tuple[str | None, dict[str, Any]]:
    from huggingface_hub import HfApi, hf_hub_download

    locked = _read_lock().get(wanted.name, {})
    kind = wanted.kind
    declared = {file.name: file for file in wanted.files}
    with _one_line(wanted):
        asked = wanted.revision or locked.get("revision")
        info: Any = HfApi().repo_info(wanted.origin, repo_type=kind, revision=asked)
        listed = [sibling.rfilename for sibling in info.siblings or ()]
    names = sorted(
        name for name in listed if name in declared or any(fnmatchcase(name, each) for each in wanted.patterns)
    )
    missing = sorted(set(declared) - set(names))
    if missing or not names:
        lacking = ", ".join(missing or wanted.patterns)
        raise UserError(
            f"{wanted.name}: {wanted.origin} has no {lacking} at revision {info.sha}; correct the catalogue"
        )
    files = {}
    for name in progress(names, total=len(names), unit="files", label=wanted.name):
        with _one_line(wanted):
            path = Path(hf_hub_download(wanted.origin, name, repo_type=kind, revision=info.sha, local_dir=folder))
        sha256, _ = _expected(declared.get(name, File(name=name)), locked.get("files", {}))
        actual = sha256_of_file(path)
        if sha256 is not None and actual != sha256:
            path.unlink()
            raise UserError(
                f"{wanted.name}: {name} has sha256 {actual}, pinned is {sha256}; it was deleted, run again,"
                " and if it stays so the origin has changed"
            )
        files[name] = {"sha256": actual, "bytes": path.stat().st_size}
    return info.sha, files


@contextmanager
def _one_line(wanted: Entry) -> Iterator[None]:
    """Turn what huggingface_hub and its HTTP client raise into one line with a remedy."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    page = f"hub repository {wanted.origin}"
    try:
        yield
    except GatedRepoError:
        raise UserError(f"{wanted.name}: accept the licence of {page}, set HF_TOKEN, and run again") from None
    except RepositoryNotFoundError:
        raise UserError(f"{wanted.name}: {page} was not found, or needs an HF_TOKEN with access") from None
    except (HfHubHTTPError, OSError, RuntimeError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
            raise  # of this machine, such as a full disk
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{wanted.name}: {page} could not be read ({reason}); check the network, run again") from None
    except Exception as error:
        # Its HTTP client's own errors; which client that is (requests, httpx, httpx2) depends on its version.
        if not type(error).__module__.startswith(("httpx", "httpcore", "requests")):
            raise
        raise UserError(f"{wanted.name}: {page} could not be reached ({error}); check the network, run again") from None


def _refuse_twin(wanted: Entry, files: dict[str, Any]) -> None:
    """Two models that must differ, served as the same bytes, would score everything twice."""
    for other in wanted.differs_from:
        ours = {fetched["sha256"] for fetched in files.values()}
        located = _locate(entry(other))
        if located and ours & {cached_sha256(path) for path in located[1].values()}:
            for file_name in files:
                (downloads_folder() / wanted.name / file_name).unlink()
            raise UserError(
                f"{wanted.name}: its origin serves the same bytes as {other}; it was deleted, report it there"
            )


# ---- pins --------------------------------------------------------------------------------------


def _expected(file: File, locked: dict[str, Any]) -> tuple[str | None, int | None]:
    """Checksum and size that a download must have; None where nothing pins them."""
    if file.sha256 is not None:
        return file.sha256, file.num_bytes
    pin = locked.get(file.name)
    return (pin["sha256"], pin["bytes"]) if pin else (None, file.num_bytes)


def _lock_path() -> Path:
    return Path(os.environ.get("CS336_CATALOG_LOCK") or Path(__file__).with_name("catalog_lock.json"))


def _read_lock() -> dict[str, Any]:
    return read_json(_lock_path()) if _lock_path().exists() else {}


def _pin(wanted: Entry, revision: str | None, files: dict[str, Any]) -> None:
    """Write to the lock what a first download saw of an entry whose declaration leaves something open."""
    if wanted.files and all(file.sha256 for file in wanted.files):
        return
    path = _lock_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)  # two downloads may end at once
            lock = _read_lock()
            pin = {"revision": revision, "files": files}
            if lock.get(wanted.name) != pin:
                write_json(path, {**lock, wanted.name: pin})
        finally:
            os.close(folder)
    except PermissionError:
        raise UserError(f"{path}: cannot be written; set CS336_CATALOG_LOCK to a file of yours and run again") from None
