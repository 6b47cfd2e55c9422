"""The page at /docs: what the service's OpenAPI description says, as one page that loads nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

_HEADERS = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"}
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "h2{margin-top:2.5rem;border-top:1px solid #ddd;padding-top:1rem}table{border-collapse:collapse;margin:.5rem 0}"
    "td,th{border:1px solid #ddd;padding:.2rem .6rem;text-align:left;vertical-align:top}"
)
_BOUNDS = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}


def add_docs(app: FastAPI) -> None:
    """Answer /docs by the page of the application's own description."""

    @app.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        return HTMLResponse(docs_page(app.openapi()), headers=_HEADERS)


def docs_page(described: Mapping[str, Any]) -> str:
    """HTML of an OpenAPI description: each path with its parameters, body and answers, then the bodies' fields."""
    about = described["info"]
    parts = [
        f"<h1>{escape(about['title'])}</h1><p>{escape(about.get('summary', ''))} For programs:"
        ' <a href="/openapi.json">/openapi.json</a>.</p>'
    ]
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            parts += [f"<h2><code>{method.upper()} {escape(path)}</code></h2>", *_operation(operation)]
    for name, schema in described.get("components", {}).get("schemas", {}).items():
        parts += [f'<h2 id="{escape(name)}">{escape(name)}</h2>', _paragraph(schema), _fields(schema)]
    head = f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(about["title"])}</title>'
    return f"{head}<style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>"


def _operation(operation: Mapping[str, Any]) -> list[str]:
    parts = [_paragraph(operation)]
    if parameters := operation.get("parameters"):
        rows = (
            (_code(each["name"]), each["in"], _type(each["schema"]), _needed(each.get("required", False)), _text(each))
            for each in parameters
        )
        parts.append(_table(("parameter", "in", "value", "", ""), rows))
    if body := operation.get("requestBody"):
        parts.append(f"<p>Body: {_content(body)}</p>")
    answers = ((escape(status), _content(each), _text(each)) for status, each in operation["responses"].items())
    return [*parts, _table(("status", "answer", ""), answers)]


def _fields(schema: Mapping[str, Any]) -> str:
    needed = schema.get("required", [])
    rows = (
        (_code(name), _type(each), _needed(name in needed), _default(each) + _text(each))
        for name, each in schema.get("properties", {}).items()
    )
    return _table(("field", "value", "", ""), rows)


def _type(schema: Mapping[str, Any]) -> str:
    """What a value may be."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if "enum" in schema:
        return ", ".join(_code(each) for each in schema["enum"])
    if "const" in schema:
        return _code(schema["const"])
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return " or ".join(map(_type, schema[several]))
    name = schema.get("type", "any value")
    if name == "array" and "items" in schema:
        name = f"list of {_type(schema['items'])}"
    bounds = "".join(f" {word} {schema[bound]}" for bound, word in _BOUNDS.items() if bound in schema)
    return f"{name}{bounds}"


def _content(message: Mapping[str, Any]) -> str:
    kinds = message.get("content", {})
    return ", ".join(_type(each["schema"]) if each.get("schema") else escape(kind) for kind, each in kinds.items())


def _default(schema: Mapping[str, Any]) -> str:
    return f"default {_code(schema['default'])} " if "default" in schema else ""


def _paragraph(described: Mapping[str, Any]) -> str:
    return "".join(f"<p>{_prose(each)}</p>" for each in described.get("description", "").split("\n\n") if each)


def _text(described: Mapping[str, Any]) -> str:
    return _prose(described.get("description", ""))


def _prose(text: str) -> str:
    """What stands between backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _needed(required: bool) -> str:
    return "required" if required else "optional"


def _code(value: Any) -> str:
    return f"<code>{escape(str(value))}</code>"


def _table(names: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows]
    head = "".join(f"<th>{name}</th>" for name in names)
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>" if lines else ""
