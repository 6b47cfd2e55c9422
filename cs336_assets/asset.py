"""How a plain function becomes an asset: its parameters are its lineage and its settings.

    @asset(group="tokens", kinds={"numpy"}, per_shard=True)
    def token_shards(step: Step, deduplicated_text: Path, tokenizer: Path, split: SplitConfig) -> Metadata:
        \"\"\"Training text as one flat array of token ids per crawl shard.\"\"\"
        stats = write_shard(step.folder, ...)
        return {"num_tokens": stats.num_tokens}

A parameter annotated `Path` is the folder of the upstream asset of that name (of the same shard,
when both are per shard); `list[Path]` is all its parts in order; `Path | None` is none in presets that
have no use for it (`takes`). Any other parameter is the field
of that name of the preset, and exactly these fields enter the fingerprint. An experiment has cells,
each an asset partition with a description of its own, which the function gets as `cell`:

    @asset(group="experiments", kinds={"pytorch"}, cells=learning_rate_cells)
    def learning_rate_runs(step: Step, token_shards: list[Path], cell: Run) -> Metadata: ...

Only its own description enters a cell's fingerprint, so a grid can grow and what was run stays. The function fills
`step.folder`, which becomes the artifact when it returns, and returns what the UI shows. It stays a
plain function: tests and notebooks call it with a `Step` of their own.
"""

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cs336 import catalog
from cs336.files import UserError, sha256_of_file
from cs336.fingerprint import code_of, digest
from cs336.presets import Preset
from cs336.store import Store, Version, plain_metadata
from cs336_assets.parts import PLAN_ASSET, Parts, planned_shards, shard_names
from cs336_assets.step import Step
from cs336_assets.turns import device_turn

Metadata = dict[str, Any]
# Which cell of an upstream asset a part takes: (preset, own cell) -> its name, WHOLE of an asset without cells, or None
# where there is no use for that asset.
Takes = Callable[[Preset, str | None], str | None]
WHOLE = ""
CELL = "cell"
CONTENTS = "contents"  # what an artifact offers: the bytes of its files
ELSEWHERE = "measured_elsewhere"  # in the manifest of an adopted artifact


@dataclass(frozen=True)
class Stage:
    """One asset of the graph, before it is bound to a preset."""

    function: Callable[..., Metadata]
    group: str
    kinds: frozenset[str]
    owner: str
    per_shard: bool
    cells: Callable[[Preset], Mapping[str, Any]] | None
    datasets: tuple[str, ...]
    files: tuple[Path, ...]
    runs: tuple[Callable[..., Any], ...]
    resumable: bool
    pool: str | None
    watches: Callable[[Path], str] | None
    offers: Callable[[Path], Any] | str | None
    takes: Mapping[str, Takes]
    inputs: Mapping[str, bool] = field(default_factory=dict)  # upstream asset -> all its parts?
    settings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def in_parts(self) -> bool:
        return self.per_shard or self.cells is not None

    @property
    def description(self) -> str:
        return inspect.cleandoc(self.function.__doc__ or "")

    def taken(self, name: str, preset: Preset) -> list[str]:
        """Which cells of an input all parts take; [WHOLE] of one without cells, nothing where none has a use for it."""
        own = list(self.cells(preset)) if self.cells else [None]
        return list(dict.fromkeys(each for part in own if (each := self.takes[name](preset, part)) is not None))


@dataclass(frozen=True)
class Check:
    """A statement about a finished asset, before it is bound to a preset."""

    function: Callable[..., tuple[bool, Metadata]]
    asset: str
    blocking: bool
    of_shards: Literal["all", "each", "some"]
    inputs: Mapping[str, bool]
    settings: tuple[str, ...]


STAGES: dict[str, Stage] = {}
CHECKS: dict[str, Check] = {}


def asset(
    *,
    group: str,
    kinds: set[str],
    owner: str,
    per_shard: bool = False,
    cells: Callable[[Preset], Mapping[str, Any]] | None = None,
    datasets: tuple[str, ...] = (),
    files: tuple[Path, ...] = (),
    runs: tuple[Callable[..., Any], ...] = (),
    resumable: bool = False,
    pool: str | None = None,
    watches: Callable[[Path], str] | None = None,
    offers: Callable[[Path], Any] | str | None = None,
    takes: Mapping[str, Takes] | None = None,
) -> Callable[[Callable[..., Metadata]], Callable[..., Metadata]]:
    """Declare a function as an asset; see the module's description.

    Args:
        per_shard: made once for each crawl shard.
        cells: preset -> name and description of each cell that the asset is made for.
        datasets: catalogue entries it reads when present; their checksums enter the fingerprint.
        files: data files of this project that it reads; their bytes enter the fingerprint.
        runs: library functions that it runs in a child process, so that their code counts too.
        resumable: an interrupted attempt at the same version is continued, not thrown away.
        pool: Dagster concurrency pool: "gpu", where one run at a time has the device, or "crawl", which bounds the
            downloads at once (`dagster_home/dagster.yaml`).
        watches: the root of all artifacts -> version of what it reads there besides its inputs.
        offers: its folder -> all that assets made from it take, which they read by this function and no other way;
            then only this enters their fingerprints, and they stay when the rest of the artifact changes. Or CONTENTS,
            of an artifact whose bytes follow from code, settings and inputs alone: made again by other code to the
            same bytes, it leaves everything made from it as it is.
        takes: of some inputs, annotated `Path | None`, which cell it is made from, or that it has no use for them.
    """

    def declare(function: Callable[..., Metadata]) -> Callable[..., Metadata]:
        inputs, settings = _parameters(function, first="step")
        STAGES[function.__name__] = Stage(
            function=function,
            group=group,
            kinds=frozenset(kinds),
            owner=owner,
            per_shard=per_shard,
            cells=cells,
            datasets=datasets,
            files=files,
            runs=runs,
            resumable=resumable,
            pool=pool,
            watches=watches,
            offers=offers,
            takes=takes or {},
            inputs=inputs,
            settings=settings,
        )
        return function

    return declare


def check(
    *, asset: str, blocking: bool = False, of_shards: Literal["all", "each", "some"] = "all"
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare a check: a function of finished artifacts that returns (passed, metadata).

    Args:
        asset: the asset it speaks of.
        blocking: a failure stops everything downstream.
        of_shards: a run that makes some shards looks at these alone where the check says something of "each", with a
            verdict for each, and looks at the others only if need be where it is enough that it holds of "some". Of
            "all", it looks at all.
    """

    def declare(function: Callable[..., Any]) -> Callable[..., Any]:
        inputs, settings = _parameters(function, first=None)
        CHECKS[function.__name__] = Check(function, asset, blocking, of_shards, inputs, settings)
        return function

    return declare


def _parameters(function: Callable[..., Any], *, first: str | None) -> tuple[dict[str, bool], tuple[str, ...]]:
    hints = typing.get_type_hints(function)
    names = list(inspect.signature(function).parameters)
    assert first is None or names[0] == first, f"{function.__name__}: the first parameter is `{first}: Step`"
    inputs: dict[str, bool] = {}
    settings = []
    for name in names if first is None else names[1:]:
        if hints[name] in (Path, list[Path], Path | None):
            inputs[name] = hints[name] == list[Path]
        else:
            settings.append(name)
    return inputs, tuple(settings)


def part_names(stage: Stage, preset: Preset, store: Store) -> list[str]:
    """Crawl shards or cells of an asset made in parts, in order.

    Raises:
        UserError: the crawl is not planned yet.
    """
    return list(stage.cells(preset)) if stage.cells else shard_names(store)


def code_version(stage: Stage, preset: Preset) -> str:
    """Version of everything but the inputs: code, settings, external data."""
    settings = _settings(stage, preset, None)
    try:
        hashed = digest(_hashed(stage, settings))
    except UserError as missing:  # a source whose files are gone: the graph loads, and the step says what is missing
        hashed = str(missing)
    return digest([_code(stage, settings), hashed, _external(stage)])


def version_of(stage: Stage, preset: Preset, store: Store, part: str | None) -> Version:
    """The version an artifact would have if it were made now.

    Raises:
        UserError: an input is not there.
    """
    settings = _settings(stage, preset, part)
    inputs = {
        name: _input_version(name, everything, preset, store, part)
        for name, everything in stage.inputs.items()
        if name not in stage.takes
    }
    inputs |= {name: data_version(name, store, cell) for name, cell in _taken_cells(stage, preset, part).items()}
    inputs |= _external(stage)
    if stage.watches:
        inputs["watched"] = stage.watches(store.root)
    return Version(code=_code(stage, settings), config=digest(_hashed(stage, settings)), inputs=inputs)


def _taken_cells(stage: Stage, preset: Preset, part: str | None) -> dict[str, str | None]:
    """Of each input that `takes` speaks of, the cell (None of one without cells), if this part has a use for it."""
    taken = {name: takes(preset, part) for name, takes in stage.takes.items()}
    return {name: cell or None for name, cell in taken.items() if cell is not None}


def _settings(stage: Stage, preset: Preset, part: str | None) -> dict[str, Any]:
    """Fields of the preset, and as `cell` the description of one cell (of all, for the version of the asset)."""
    cells = stage.cells(preset) if stage.cells else {}
    return {
        name: (cells[part] if part else cells) if name == CELL else getattr(preset, name) for name in stage.settings
    }


def _hashed(stage: Stage, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as they enter the fingerprint: of the source, a shard depends on less than the whole plan does."""
    if stage.per_shard and "source" in settings:
        return settings | {"source": settings["source"].shard_identity()}
    return settings


def _external(stage: Stage) -> dict[str, str]:
    """Checksums of what a stage reads besides its inputs."""
    found = {f"data:{name}": catalog.checksum(name) or "absent" for name in stage.datasets}
    return found | {f"file:{path.name}": sha256_of_file(path) for path in stage.files}


def _code(stage: Stage, settings: Mapping[str, Any]) -> str:
    # A source's methods are reached through its class: the function only knows the protocol.
    values = [part for value in settings.values() for part in (value, *getattr(value, "sources", ()))]
    kinds = [type(value) for value in values if type(value).__module__.startswith("cs336.")]
    return code_of(stage.function, *stage.runs, *kinds)


def _input_version(name: str, everything: bool, preset: Preset, store: Store, part: str | None) -> str:
    if name == PLAN_ASSET and part:  # a longer plan leaves the shards that it had as they are
        return digest([entry for entry in planned_shards(store) if entry["name"] == part])
    if not everything:
        return data_version(name, store, part if STAGES[name].in_parts else None)
    known = store.versions_of_all if part and STAGES[name].per_shard else {}
    if name not in known:
        _require_one_cut(STAGES[name], preset, store, part)
        parts = part_names(STAGES[name], preset, store)
        known[name] = digest([[key, data_version(name, store, key)] for key in parts])
    return known[name]


def _require_one_cut(stage: Stage, preset: Preset, store: Store, asking: str | None) -> None:
    """Parts that each have a share of all parts of an input fit together only if they were made from the same ones.

    Raises:
        UserError: one was made from others than there are now, as when the crawl has grown since.
    """
    shared_out = [name for name, everything in stage.inputs.items() if everything and name != PLAN_ASSET]
    for name in shared_out if stage.per_shard else ():
        now = _input_version(name, True, preset, store, asking)
        for part in part_names(stage, preset, store):
            manifest = store.manifest(stage.name, part)
            if manifest and manifest["inputs"].get(name) != now:
                raise UserError(
                    f"{store.path(stage.name, part)}: made from other parts of {name} than there are now;"
                    f" materialize {stage.name} for all shards"
                )


def data_version(name: str, store: Store, part: str | None) -> str:
    """What stands for a finished artifact in the fingerprints of those made from it.

    Raises:
        UserError: it was never made.
    """
    fingerprint = store.fingerprint(name, part)
    offers = STAGES[name].offers
    if offers == CONTENTS:
        manifest = store.manifest(name, part) or {}
        return digest(manifest["files"] | manifest.get(ELSEWHERE, {}).get("left_behind", {}))
    return digest(offers(store.local(name, part))) if callable(offers) else fingerprint


def input_folders(
    inputs: Mapping[str, bool],
    preset: Preset,
    store: Store,
    part: str | None = None,
    *,
    shards: Collection[str] | None = None,
) -> dict[str, Path | Parts | None]:
    """Where the inputs of a stage or check lie; of an asset's parts, those that are there, fetched when asked for.

    Args:
        shards: of what is made in shards, only these; None is all.
    """

    def folders(name: str) -> Parts:
        only = shards if STAGES[name].per_shard else None
        names = [key for key in part_names(STAGES[name], preset, store) if only is None or key in only]
        return Parts(store, name, [key for key in names if store.manifest(name, key)])

    return {
        name: folders(name) if everything else store.local(name, part if STAGES[name].in_parts else None)
        for name, everything in inputs.items()
    }


def make(stage: Stage, preset: Preset, store: Store, step: Step) -> tuple[Version, Metadata, bool]:
    """Bring one artifact up to date.

    Args:
        step: as the function gets it; its folder is set here.

    Returns:
        Its version, its metadata (as first reported, when it was current already), and whether it
        was current.
    """
    if preset.fetch:
        for name in filter(catalog.has_address, stage.datasets):  # the others can only be placed by hand
            catalog.fetch(name, progress=step.progress)
    version = version_of(stage, preset, store, step.part)
    if store.is_current(stage.name, step.part, version):
        if not stage.watches:
            store.share(stage.name, step.part)
        manifest = store.manifest(stage.name, step.part)
        assert manifest is not None
        return version, manifest["metadata"], True
    with (
        device_turn(stage.pool, store.root, step.device, lambda line: _say(step, stage, line)),
        store.staging(stage.name, step.part, version, resumable=stage.resumable) as (folder, kept),
    ):
        step.folder = folder
        plain = {name: everything for name, everything in stage.inputs.items() if name not in stage.takes}
        taken = _taken_cells(stage, preset, step.part)
        inputs = input_folders(plain, preset, store, step.part) | {
            name: store.local(name, taken[name]) if name in taken else None for name in stage.takes
        }
        result = stage.function(step, **inputs, **_settings(stage, preset, step.part))
        kept |= plain_metadata(result)
    if not stage.watches:  # those that do tell what this machine has
        store.share(stage.name, step.part)
    return version, kept, False


def _say(step: Step, stage: Stage, line: str) -> None:
    print(f"{step.preset}/{stage.name}: {line}", file=sys.stderr, flush=True)
    if step.context is not None:
        step.context.log.info(line)
