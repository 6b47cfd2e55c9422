"""Artifact folders that appear whole or not at all, each with a manifest of how it came to be.

    artifacts/<preset>/<asset>[/<part>]/         the artifact
                                manifest.json    fingerprint, inputs, code, files, machine, time
    artifacts/<preset>/.work/<asset>...          being made; renamed when complete

With a shared storage (see `shared_storage`) the folder is its cache: what is made is copied there, and what a step
needs is fetched from there.

A part is one partition of an asset: a crawl shard, or a cell of an experiment.

An artifact is current when its manifest's fingerprint equals that of the code, settings and inputs
it would be made from now. Fingerprints never hold absolute paths, worker counts or hardware.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cs336.files import UserError, name_full_disk, read_json, sha256_of_file, sync_folder, sync_tree, write_json
from cs336.fingerprint import digest
from cs336.isolation import used_cpu_seconds
from cs336.revision import describe_commit
from cs336.shared_storage import MANIFEST, shared_storage

RECORDED_PACKAGES = (
    "dagster",
    "datasketch",
    "fasttext-community",
    "fastwarc",
    "numpy",
    "polars",
    "regex",
    "resiliparse",
    "safetensors",
    "torch",
    "triton",
)


def default_root() -> Path:
    """`CS336_ARTIFACTS`, else `artifacts/` beside the packages."""
    return Path(os.environ.get("CS336_ARTIFACTS") or Path(__file__).resolve().parent.parent / "artifacts")


@dataclass(frozen=True)
class Version:
    """What decides an artifact's content.

    Attributes:
        code: hash of the library code it reaches.
        config: hash of the settings it reads.
        inputs: input asset -> its data version; external data -> checksum, or "absent".
    """

    code: str
    config: str
    inputs: dict[str, str] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        return digest([self.code, self.config, self.inputs])


class Store:
    """The artifacts of one preset.

    Args:
        preset: name of the preset; each has its own folder.
        root: folder of all presets.
    """

    def __init__(self, preset: str, root: Path | None = None):
        self.preset = preset
        self.root = root or default_root()
        self.folder = self.root / preset
        self._shared = shared_storage()
        self._shared_manifests: dict[str, dict[str, dict[str, Any]]] = {}  # of the assets asked for, by part
        # Of all shards of an asset together, as they were when first asked for: each of thousands of parts asks.
        self.versions_of_all: dict[str, str] = {}

    def path(self, asset: str, part: str | None = None) -> Path:
        """Where an artifact lies, whether or not it exists."""
        return self.folder / asset / part if part else self.folder / asset

    def manifest(self, asset: str, part: str | None = None) -> dict[str, Any] | None:
        """The manifest of a finished artifact, of the shared storage or else of this machine, or None."""
        return self._shared_manifest(asset, part) or self._local_manifest(asset, part)

    def local(self, asset: str, part: str | None = None) -> Path:
        """Where an artifact lies, fetched from the shared storage if there is one and it is newer there.

        Raises:
            UserError: the storage does not give it whole.
        """
        folder, manifest = self.path(asset, part), self._shared_manifest(asset, part)
        if self._shared is None or manifest is None or self._is_here(asset, part, manifest):
            return folder
        name = f"{asset}--{part}" if part else asset
        work = self.folder / ".work" / f"fetch--{name}--{manifest['fingerprint']}"
        # Steps side by side need the same artifacts: one fetches, the others wait for it.
        with _in_turn(self.folder / ".work" / f"fetch--{name}.lock"):
            if not self._is_here(asset, part, manifest):
                with self.only_maker(asset, part):
                    shutil.rmtree(work, ignore_errors=True)
                    work.mkdir(parents=True)
                    with name_full_disk(work):
                        self._shared.download(self._place(asset, part), work, manifest)
                    install(work, folder)
        return folder

    def _is_here(self, asset: str, part: str | None, manifest: dict[str, Any]) -> bool:
        here = self._local_manifest(asset, part)
        return here is not None and here["files"] == manifest["files"]

    def share(self, asset: str, part: str | None = None) -> None:
        """Copy an artifact of this machine to the shared storage, if there is one that lacks it.

        Raises:
            UserError: the storage refuses.
        """
        manifest, there = self._local_manifest(asset, part), self._shared_manifest(asset, part)
        if self._shared and manifest and (there is None or there["fingerprint"] != manifest["fingerprint"]):
            self._shared.upload(self.path(asset, part), self._place(asset, part), manifest)
            self._shared_manifests[asset][part or ""] = manifest

    def _local_manifest(self, asset: str, part: str | None) -> dict[str, Any] | None:
        path = self.path(asset, part) / MANIFEST
        return read_json(path) if path.exists() else None

    def _shared_manifest(self, asset: str, part: str | None) -> dict[str, Any] | None:
        if self._shared is None:
            return None
        if asset not in self._shared_manifests:
            self._shared_manifests[asset] = self._shared.manifests(self._place(asset, None))
        return self._shared_manifests[asset].get(part or "")

    def _place(self, asset: str, part: str | None) -> str:
        return f"{self.preset}/{asset}/{part}" if part else f"{self.preset}/{asset}"

    def fingerprint(self, asset: str, part: str | None = None) -> str:
        """Fingerprint of a finished artifact.

        Raises:
            UserError: it was never made.
        """
        manifest = self.manifest(asset, part)
        if manifest is None:
            raise UserError(f"{self.path(asset, part)}: not there yet; materialize {self.preset}/{asset} first")
        return manifest["fingerprint"]

    def is_current(self, asset: str, part: str | None, version: Version) -> bool:
        """True when the artifact exists, was made from `version`, and its files, if here, have their sizes."""
        manifest = self.manifest(asset, part)
        if manifest is None or manifest["fingerprint"] != version.fingerprint:
            return False
        if self._shared_manifest(asset, part) and not self.path(asset, part).exists():
            return True
        folder = self.path(asset, part)
        return all(
            (folder / name).exists() and (folder / name).stat().st_size == facts["bytes"]
            for name, facts in manifest["files"].items()
        )

    @contextmanager
    def staging(
        self, asset: str, part: str | None, version: Version, *, resumable: bool = False
    ) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Give out a folder to fill; on success it becomes the artifact, on failure nothing changes.

        Args:
            resumable: keep the whole files that an interrupted attempt at the same version left, so that the
                maker can go on from them (checkpoints, downloads); otherwise each attempt starts empty.

        Yields:
            The folder, and a dictionary of facts to keep in the manifest under "metadata".
        """
        target = self.path(asset, part)
        name = f"{asset}--{part}" if part else asset
        work = self.folder / ".work" / f"{name}--{version.fingerprint}"
        metadata: dict[str, Any] = {}
        start, cpu = time.time(), used_cpu_seconds()
        with name_full_disk(work), self.only_maker(asset, part):
            if not resumable:
                shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True, exist_ok=True)
            for partial in work.rglob(".*.partial"):  # of a write that was killed
                partial.unlink()
            try:
                with name_full_disk(work):
                    yield work, metadata
            except BaseException:
                if not resumable or not any(work.iterdir()):
                    shutil.rmtree(work, ignore_errors=True)
                raise
            manifest = {
                "asset": f"{self.preset}/{asset}",
                "part": part,
                "fingerprint": version.fingerprint,
                "code": version.code,
                "config": version.config,
                "inputs": version.inputs,
                "files": describe_files(work),
                "metadata": metadata,
                "seconds": round(time.time() - start, 3),
                "cpu_seconds": round(used_cpu_seconds() - cpu, 3),
                "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "machine": describe_machine(),
                "commit": describe_commit(),
                "versions": package_versions(),
            }
            write_json(work / MANIFEST, manifest)
            install(work, target)
            if part is None or asset in self.versions_of_all:
                self.versions_of_all.clear()
            for stale in self.folder.glob(f".work/{name}--*"):  # attempts at versions nobody wants any more
                if re.fullmatch(r"[0-9a-f]{16}(\.old)?", stale.name.removeprefix(f"{name}--")):
                    shutil.rmtree(stale, ignore_errors=True)

    def only_maker(self, asset: str, part: str | None) -> AbstractContextManager[None]:
        """Hold the right to make an artifact.

        Raises:
            UserError: another process holds it.
        """
        return _only_one(
            self.folder / ".work" / f"{asset}--{part}.lock" if part else self.folder / ".work" / f"{asset}.lock"
        )


@contextmanager
def _in_turn(lock: Path) -> Iterator[None]:
    """Wait until no other process or thread holds the lock."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _only_one(lock: Path) -> Iterator[None]:
    """Refuse to make an artifact that another process is making; the kernel frees the lock at any death."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{lock.with_suffix('')}: another run is making this; wait for it, or stop it") from None
        yield


def install(work: Path, target: Path) -> None:
    """Make a finished folder the artifact, with all bytes on disk before the rename.

    An older artifact is moved away first; killed between the two renames, the store holds neither
    half, and the next run makes the artifact again.
    """
    sync_tree(work)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        old = work.with_name(work.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
        work.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    else:
        work.rename(target)
    sync_folder(target.parent)


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file below a folder, its manifest left out."""
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_of_file(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }


def verify(folder: Path) -> list[str]:
    """Compare an artifact's files with its manifest; returns one line per difference."""
    manifest = read_json(folder / MANIFEST)
    actual = describe_files(folder)
    problems = [f"{folder / name}: missing" for name in manifest["files"].keys() - actual.keys()]
    problems += [f"{folder / name}: not in the manifest" for name in actual.keys() - manifest["files"].keys()]
    problems += [
        f"{folder / name}: content differs from the manifest"
        for name in sorted(manifest["files"].keys() & actual.keys())
        if manifest["files"][name] != actual[name]
    ]
    return sorted(problems)


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that can shape a result; those installed."""
    return versions_of(RECORDED_PACKAGES)


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """Versions of Python and of those of the packages that are installed."""
    versions = {"python": platform.python_version()}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def describe_machine() -> dict[str, Any]:
    """Hardware, without names or addresses; the GPU is read only where PyTorch is loaded already."""
    machine: dict[str, Any] = {"system": platform.system(), "cpu": cpu_model(), "cores": os.cpu_count()}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        machine["gpu"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return machine


def cpu_model() -> str:
    """The processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def plain_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    """Metadata as JSON values, so that a skipped asset can report again what its making reported."""
    return json.loads(json.dumps(metadata))
