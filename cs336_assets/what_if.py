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
from cs336.presets import Preset, changed
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
    scores = pl.concat([read_table(folder / SCORES_FILE) for folder in folders])
    states = read_json(folders[0] / "states.json")
    old, new = decide(scores, preset.filters), decide(scores, config)
    yield from _settings(preset.filters, config)
    yield ""
    yield from _side_by_side(old, new, states)
    yield from _examples("dropped now", old, new, preset.seed)
    yield from _examples("kept now", new, old, preset.seed)
    yield f"\nnothing was written; `{_as_toml(preset.filters, config)}` in a preset of your own makes it so"


def _settings(before: FilterConfig, after: FilterConfig) -> Iterator[str]:
    values = leaves(after)
    different = {key: value for key, value in leaves(before).items() if values[key] != value}
    if not different:
        yield "no setting differs from the preset's"
    for key, value in different.items():
        yield f"{key}: {value} -> {values[key]}"


def _side_by_side(old: pl.DataFrame, new: pl.DataFrame, states: dict[str, str]) -> Iterator[str]:
    no_seconds: Counter[str] = Counter()
    pairs = list(zip(ledger(old, states, no_seconds), ledger(new, states, no_seconds), strict=True))
    yield f"{'':<14}{'dropped':>12}{'':>12}{'':>10}   {'would drop':>12}"
    yield f"{'filter':<14}{'before':>12}{'after':>12}{'change':>10}   {'before':>12}{'after':>12}  state"
    for before, after in pairs:
        change = after["dropped"] - before["dropped"]
        yield (
            f"{before['filter']:<14}{before['dropped']:>12,}{after['dropped']:>12,}{_signed(change):>10}"
            f"   {before['would_drop']:>12,}{after['would_drop']:>12,}  {before['state']}"
        )
    for name, column in (("kept", None), ("bytes kept", "num_bytes"), ("masked", "num_masked")):
        a, b = (int((t["kept"] if column is None else t.filter("kept")[column]).sum() or 0) for t in (old, new))
        yield f"{name:<14}{a:>12,}{b:>12,}{_signed(b - a):>10}"
    yield f"{'of':<14}{old.height:>12,}{new.height:>12,}"


def _examples(title: str, one: pl.DataFrame, other: pl.DataFrame, seed: int) -> Iterator[str]:
    """Documents that `one` keeps and `other` drops: how many by each rule, and a few of them."""
    moved = other.filter(one["kept"] & ~other["kept"])
    if moved.is_empty():
        return
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in Counter(moved["reason"]).most_common())
    before = "" if title == "dropped now" else " before"
    yield f"\n{title}: {moved.height:,} documents ({reasons}{before})"
    for reason, url in moved.sample(n=min(NUM_EXAMPLES, moved.height), seed=seed).select("reason", "url").iter_rows():
        yield f"  {reason:<28} {url}"


def _as_toml(before: FilterConfig, after: FilterConfig) -> str:
    values, parts = leaves(after), []
    for key, value in leaves(before).items():
        if values[key] != value and values[key] is not None:
            new = values[key]
            text = str(list(new)) if isinstance(new, tuple) else str(new).lower() if isinstance(new, bool) else str(new)
            parts.append(f"{key} = {text}")
    return f"filters = {{{', '.join(parts)}}}"


def _signed(change: int) -> str:
    return f"{change:+,}" if change else "0"
