"""Artifacts shared by machines: in an object store, or any place that fsspec reaches; the local folder is its cache.

`CS336_STORAGE=s3://bucket/prefix` names it (or a path that all machines see). What is made is copied there, its
manifest last, so an artifact is there as a whole or not at all; what a step needs and this machine lacks is
fetched, checked against the checksums of its manifest, and only then installed. Credentials and addresses are the
protocol's own: of S3, AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, or a profile.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cs336.files import UserError, sha256_of_file, write_json

VARIABLE = "CS336_STORAGE"
MANIFEST = "manifest.json"


class SharedStorage:
    """The artifacts below one address.

    Args:
        url: of the folder, such as `s3://bucket/prefix` or `/mnt/shared`.

    Raises:
        UserError: the protocol is unknown, or its package is missing.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        try:
            self._files, self._root = fsspec.core.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
        except (ImportError, ValueError) as error:
            remedy = " (for s3://, `pip install s3fs`)" if url.startswith("s3:") else ""
            raise UserError(f"{VARIABLE}={url}: {error}{remedy}") from None
        self.url = url.rstrip("/")

    def manifests(self, folder: str) -> dict[str, dict[str, Any]]:
        """The manifest in a folder, as "", and those in the folders right below it, by their names.

        One listing and one round of requests for all, as an asset may have thousands of parts. One that cannot be
        read, as after a power failure, counts as absent: its artifact is made and copied again.

        Raises:
            UserError: the storage does not answer.
        """
        base = f"{self._root}/{folder}"
        with _named(f"{self.url}/{folder}"):
            # Not `glob` and `exists`: they take a storage that does not answer for an empty one.
            try:
                below = self._files.ls(base, detail=False)
            except FileNotFoundError:
                return {}
            names = ["", *(path.rstrip("/").rpartition("/")[2] for path in below)]
            paths = {"/".join(filter(None, (base, name, MANIFEST))): name for name in names}
            contents = self._files.cat(list(paths), on_error="return")
            for content in contents.values():
                if isinstance(content, Exception) and not isinstance(content, FileNotFoundError | NotADirectoryError):
                    raise content
        found = {}
        for path, content in contents.items():
            if isinstance(content, bytes):
                with contextlib.suppress(ValueError):
                    found[paths[path]] = json.loads(content)
        return found

    def upload(self, folder: Path, place: str, manifest: dict[str, Any]) -> None:
        """Copy an artifact there, its manifest last; the one that was there is no artifact from the first moment.

        Raises:
            UserError: the storage refuses.
        """
        target = f"{self._root}/{place}"
        with _named(f"{self.url}/{place}"):
            with contextlib.suppress(FileNotFoundError):
                self._files.rm_file(f"{target}/{MANIFEST}")
                self._files.rm(target, recursive=True)
            names = sorted(manifest["files"])
            for name in names:
                self._files.makedirs(os.path.dirname(f"{target}/{name}"), exist_ok=True)
            if names:
                self._files.put([str(folder / name) for name in names], [f"{target}/{name}" for name in names])
            self._files.makedirs(target, exist_ok=True)
            # A path's file is there from its first byte, so it takes its name only once it is whole.
            self._files.put_file(str(folder / MANIFEST), f"{target}/{MANIFEST}.partial")
            self._files.mv(f"{target}/{MANIFEST}.partial", f"{target}/{MANIFEST}")

    def download(self, place: str, folder: Path, manifest: dict[str, Any]) -> None:
        """Fetch an artifact's files and its manifest into an empty folder.

        Raises:
            UserError: a file is missing there, or is not what the manifest says.
        """
        source = f"{self._root}/{place}"
        names = sorted(manifest["files"])
        with _named(f"{self.url}/{place}"):
            for name in names:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if names:
                self._files.get([f"{source}/{name}" for name in names], [str(folder / name) for name in names])
        for name in names:
            if sha256_of_file(folder / name) != manifest["files"][name]["sha256"]:
                raise UserError(f"{self.url}/{place}/{name}: differs from its manifest; make the artifact again")
        write_json(folder / MANIFEST, manifest)


@contextlib.contextmanager
def _named(place: str) -> Iterator[None]:
    """Whatever the protocol raises becomes one line that names the place."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # botocore's, aiohttp's, the operating system's: they share no base class
        raise UserError(f"{place}: {type(error).__name__}: {' '.join(str(error).split())[:200]}") from error


@functools.cache
def _storage(url: str) -> SharedStorage:
    return SharedStorage(url)


def shared_storage() -> SharedStorage | None:
    """That of `CS336_STORAGE`; None without."""
    url = os.environ.get(VARIABLE)
    return _storage(url) if url else None
