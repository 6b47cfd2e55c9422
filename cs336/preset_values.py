"""Settings as a user's file has them, made into those of a preset; each mistake is one line that names it."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import Any

from cs336.crawl.common_crawl import CommonCrawl
from cs336.crawl.local_docs import LocalDocs
from cs336.crawl.local_files import TextFiles, WarcFiles
from cs336.crawl.several import Several
from cs336.evals.generated_text import GeneratedText

SOURCES: dict[str, type] = {
    "local-docs": LocalDocs,
    "warc": WarcFiles,
    "text": TextFiles,
    "common-crawl": CommonCrawl,
    "generated": GeneratedText,
    "several": Several,
}
SOURCE_FIELDS = ("source", "held_out")  # of a preset: described by `kind` and its fields


def changed(config: Any, values: dict[str, Any]) -> Any:
    """A configuration with some fields replaced, nested ones too, as a preset's table does it.

    None, or "none" in a file, as TOML has no word for it, stands for no value where a field may have none.

    Raises:
        ValueError: there is no such field, or the value is of another type.
    """
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    optional = {field.name for field in dataclasses.fields(config) if "None" in str(field.type)}
    changes: dict[str, Any] = {}
    for key, value in values.items():
        if key not in fields:
            raise ValueError(f"has no setting {key!r}; {type(config).__name__} has {', '.join(fields)}")
        if key in optional and value in (None, "none"):
            changes[key] = None
        elif key in SOURCE_FIELDS:
            changes[key] = _source(value, fields[key])
            if key == "held_out" and not isinstance(changes[key], TextFiles):
                raise ValueError('held_out is text, such as held_out = {kind = "text", paths = ["clean/*.txt"]}')
        elif dataclasses.is_dataclass(fields[key]):
            if not isinstance(value, dict):
                raise ValueError(f"{key} is a table, such as {key} = {{...}}, got {value!r}")
            changes[key] = changed(fields[key], value)
        else:
            changes[key] = _like(fields[key], value, key)
    return replace(config, **changes)


def _source(values: dict[str, Any], old: Any) -> Any:
    """A source described by `kind` and its fields; without `kind`, changes to the base's source."""
    if not isinstance(values, dict):
        raise ValueError(f'source is a table, such as source = {{kind = "text", paths = [...]}}, got {values!r}')
    values = dict(values)
    kind = values.pop("kind", None)
    if kind is None and "files" in values:
        values["kind"] = values.pop("files")
    if kind is None and old is not None:
        return changed(old, values)
    if kind not in SOURCES:
        raise ValueError(f"source.kind is one of {', '.join(SOURCES)}, got {kind!r}")
    # Common Crawl's own `kind` (warc or wet) is written `files`.
    if kind == "common-crawl" and "files" in values:
        values["kind"] = values.pop("files")
    known = {field.name for field in dataclasses.fields(SOURCES[kind])}
    unknown = sorted(values.keys() - known)
    if unknown:
        raise ValueError(f"source {kind!r} has no setting {unknown[0]!r}; it has {', '.join(sorted(known))}")
    needed = [
        f.name for f in dataclasses.fields(SOURCES[kind]) if f.default is f.default_factory is dataclasses.MISSING
    ]
    lacking = [name for name in needed if name not in values]
    if lacking:
        raise ValueError(f"source {kind!r} needs {', '.join(lacking)}")
    if kind == "several":
        values["sources"] = [_source(each, None) for each in values["sources"]]
    own = {field.name: field.default_factory for field in dataclasses.fields(SOURCES[kind])}
    for key, value in values.items():
        if isinstance(value, list):
            values[key] = tuple(value)
        elif isinstance(value, dict) and callable(factory := own[key]):  # settings within a source
            values[key] = changed(factory(), value)
    return SOURCES[kind](**values)


def _like(old: Any, value: Any, key: str) -> Any:
    if isinstance(old, tuple) and isinstance(value, list):
        return tuple(value)
    if old is None or isinstance(value, type(old)) or (isinstance(old, float) and isinstance(value, int)):
        return float(value) if isinstance(old, float) and not isinstance(value, bool) else value
    raise ValueError(f"{key} must be {type(old).__name__}, got {value!r}")
