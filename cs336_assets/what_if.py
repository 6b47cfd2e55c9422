"""Other thresholds on the stored measurements: what would be kept, before anything is made again."""

from __future__ import annotations

import dataclasses
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import polars as pl

from cs336.documents import read_table
from cs336.files import UserError, read_json
from cs336.filters.pipeline import FilterConfig, decide, ledger
from cs336.preset_values import changed
from cs336.presets import Preset
from cs336.store import Store
from cs336_assets.filters import SCORES_FILE
from cs336_assets.why import artifact, leaves, shard_names_of

NUM_EXAMPLES = 5  # addresses shown of those that come, and of those that go


def changed_filters(config: FilterConfig, changes: Sequence[str]) -> FilterConfig:
    """The filters with some settings changed.

    Args:
        changes: each `setting=value`, such as "gopher.min_words=30" or "languages=en,de"; "none" takes a
            threshold away where the filters allow it. Values have the types that a preset's file asks for.

    Raises:
        UserError: no such setting (the line lists them), or a value of another type.
    """
    for change in changes:
        key, equals, text = change.partition("=")
        key = key.strip().removeprefix("filters.")
        settings = leaves(config)
        if not equals or key not in settings:
            said = f"{change!r} is not setting=value" if not equals else f"the filters have no setting {key!r}"
            raise UserError(f"{said}; there are {', '.join(settings)}")
        *tables, name = key.split(".")
        values: dict[str, Any] = {name: _value(text.strip(), settings[key], key)}
        for table in reversed(tables):
            values = {table: values}
        try:
            config = changed(config, values)
        except (TypeError, ValueError) as error:
            raise UserError(f"{change}: {error}") from None
    return config


def _value(text: str, old: Any, key: str) -> Any:
    if isinstance(old, tuple) and not text.startswith("["):
        return [part.strip() for part in text.split(",") if part.strip()]
    if text.lower() == "none":
        optional = {f.name for f in dataclasses.fields(FilterConfig) if "None" in str(f.type)}
        if key not in optional:
            raise UserError(f"{key}=none: only {', '.join(sorted(optional))} can be none")
        return None
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        raise UserError(f"{key}={text}: {text!r} is no number, true, false or quoted text") from None
    if old is None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise UserError(f"{key}={text}: give a number, or none")
    return value


def what_if(store: Store, preset: Preset, changes: Sequence[str]) -> Iterator[str]:
    """The ledger with the preset's thresholds and with changed ones, side by side; nothing is written.

    Raises:
        UserError: a setting that does not exist, or measurements that were not made.
    """
    config = changed_filters(preset.filters, changes)
    folders = [artifact(store, "document_scores", shard) for shard in shard_names_of(store)]
    if not folders:
        raise UserError(f"{preset.name}: the crawl has no shards; check its source with `cs336 presets {preset.name}`")
    yield from _settings(preset.filters, config)
    old, new = _Outcome(), _Outcome()
    gone, come = [], []
    for folder in folders:  # one shard in memory at a time
        scores, states = read_table(folder / SCORES_FILE), read_json(folder / "states.json")
        before, after = decide(scores, preset.filters), decide(scores, config)
        old.add(before, states)
        new.add(after, states)
        gone.append(after.filter(before["kept"] & ~after["kept"]).select("reason", "url"))
        come.append(before.filter(after["kept"] & ~before["kept"]).select("reason", "url"))
    yield ""
    yield from _side_by_side(old, new)
    yield from _examples("dropped now", pl.concat(gone), preset.seed)
    yield from _examples("kept now, dropped before", pl.concat(come), preset.seed)
    yield f"\nnothing was written; `{_as_toml(preset.filters, config)}` in a preset of your own makes it so"


class _Outcome:
    """What filters did, summed over shards."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()  # "kept", "language dropped" and so on
        self.states: dict[str, str] = {}

    def add(self, decisions: pl.DataFrame, states: dict[str, str]) -> None:
        kept = decisions.filter("kept")
        self.counts["of"] += decisions.height
        self.counts["kept"] += kept.height
        self.counts["bytes kept"] += int(kept["num_bytes"].sum())
        self.counts["masked"] += int(kept["num_masked"].sum())
        no_seconds: Counter[str] = Counter()
        for row in ledger(decisions, states, no_seconds):
            self.states[row["filter"]] = row["state"]
            for key in ("dropped", "would_drop"):
                self.counts[f"{row['filter']} {key}"] += row[key]


def _settings(before: FilterConfig, after: FilterConfig) -> Iterator[str]:
    values = leaves(after)
    different = {key: value for key, value in leaves(before).items() if values[key] != value}
    if not different:
        yield "no setting differs from the preset's"
    for key, value in different.items():
        yield f"{key}: {value} -> {values[key]}"


def _side_by_side(old: _Outcome, new: _Outcome) -> Iterator[str]:
    yield f"{'':<14}{'dropped':>12}{'':>12}{'':>10}   {'would drop':>12}"
    yield f"{'filter':<14}{'before':>12}{'after':>12}{'change':>10}   {'before':>12}{'after':>12}  state"
    for name, state in old.states.items():
        dropped, alone = ([each.counts[f"{name} {key}"] for each in (old, new)] for key in ("dropped", "would_drop"))
        yield f"{name:<14}{_columns(*dropped)}   {alone[0]:>12,}{alone[1]:>12,}  {state}"
    for name in ("kept", "bytes kept", "masked", "of"):
        yield f"{name:<14}{_columns(old.counts[name], new.counts[name])}"


def _columns(before: int, after: int) -> str:
    return f"{before:>12,}{after:>12,}{f'{after - before:+,}' if after != before else '0':>10}"


def _examples(title: str, moved: pl.DataFrame, seed: int) -> Iterator[str]:
    """How many documents each rule moved, and a few of them."""
    if moved.is_empty():
        return
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in Counter(moved["reason"]).most_common())
    yield f"\n{title}: {moved.height:,} documents ({reasons})"
    for reason, url in moved.sample(n=min(NUM_EXAMPLES, moved.height), seed=seed).iter_rows():
        yield f"  {reason:<28} {url}"


def _as_toml(before: FilterConfig, after: FilterConfig) -> str:
    values, parts = leaves(after), []
    for key, value in leaves(before).items():
        if values[key] != value:
            parts.append(f"{key} = {_toml_value(values[key])}")
    return f"filters = {{{', '.join(parts)}}}"


def _toml_value(value: Any) -> str:
    if value is None:
        return '"none"'
    if isinstance(value, tuple):
        return str(list(value))
    return str(value).lower() if isinstance(value, bool) else str(value)
