"""What a result depends on, as hashes: the code it reaches and the settings it reads.

`code_of` hashes syntax trees, so comments, docstrings, formatting and line numbers change nothing,
and a changed helper changes whatever calls it.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOTS = ("cs336",)  # packages whose code counts; everything else is recorded as a version
# Modules that never shape a result: declarations (what is found enters by checksum), progress, devices.
WITHOUT_EFFECT = ("cs336.catalog_entries", "cs336.download", "cs336.hardware", "cs336.processes", "cs336.progress")


def digest(value: Any) -> str:
    """Short stable hash of JSON-like settings (dataclasses, paths as text, tuples as lists)."""
    text = json.dumps(jsonable(value), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def jsonable(value: Any) -> Any:
    """Settings as JSON. An object with an `identity()` speaks for itself.

    Raises:
        TypeError: a value whose text form would not be stable, such as a function.
    """
    if hasattr(value, "identity"):
        return {"kind": type(value).__name__, "identity": jsonable(value.identity())}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: jsonable(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"{value!r} cannot be part of a fingerprint")


def code_of(*objects: Callable[..., Any] | type, roots: Iterable[str] = ROOTS) -> str:
    """Hash of the library definitions that functions or classes reach by name.

    From each start, every name it mentions is followed: other definitions of its module, names
    imported from a root package (also inside functions), attributes of imported modules. Classes
    count as a whole. A start outside the root packages, such as an asset's body, counts too, with
    the helpers of its own module.

    Args:
        roots: packages to follow.
    """
    return hashlib.sha256("\n".join(sorted(reached(*objects, roots=roots))).encode()).hexdigest()[:16]


def reached(*objects: Callable[..., Any] | type, roots: Iterable[str] = ROOTS) -> dict[str, str]:
    """The definitions behind `code_of`: qualified name -> hash of its syntax tree."""
    roots = tuple(roots)
    found: dict[str, str] = {}
    waiting = [(inspect.unwrap(item).__module__, item.__qualname__.partition(".")[0]) for item in objects]
    visited: set[tuple[str, str]] = set()
    while waiting:
        module, name = waiting.pop()
        if (module, name) in visited or module in WITHOUT_EFFECT:
            continue
        visited.add((module, name))
        outline = _outline(module)
        if outline is None:
            continue
        if name in outline.imports:  # a name passed on from where it is defined
            original, there = outline.imports[name]
            if there is not None and original.partition(".")[0] in roots:
                waiting.append((original, there))
        if name not in outline.definitions:
            continue
        found[f"{module}.{name} {outline.hashes[name]}"] = outline.hashes[name]
        waiting += [
            (other_module, other)
            for other_module, other in outline.uses(name)
            if other_module.partition(".")[0] in roots or other_module == module
        ]
    return found


class _Outline:
    """Top-level definitions and imports of one module."""

    def __init__(self, module: str, tree: ast.Module):
        self.module = module
        self.definitions: dict[str, list[ast.stmt]] = {}
        self.imports: dict[str, tuple[str, str | None]] = {}  # name here -> (module, name there or None)
        for node in tree.body:
            self._collect(node)
        self.hashes = {
            name: hashlib.sha256("".join(_plain(node) for node in nodes).encode()).hexdigest()
            for name, nodes in self.definitions.items()
        }
        self._uses: dict[str, set[tuple[str, str]]] = {}

    def _collect(self, node: ast.stmt) -> None:
        if isinstance(node, ast.Import | ast.ImportFrom):
            self.imports.update(_imported(node, self.module))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            self.definitions.setdefault(node.name, []).append(node)
        elif isinstance(node, ast.If | ast.Try):
            for inner in ast.iter_child_nodes(node):
                if isinstance(inner, ast.stmt):
                    self._collect(inner)
        else:
            for target in ast.walk(node):
                if isinstance(target, ast.Name) and isinstance(target.ctx, ast.Store):
                    self.definitions.setdefault(target.id, []).append(node)

    def uses(self, name: str) -> set[tuple[str, str]]:
        """Definitions that one definition mentions, here or in other modules."""
        if name not in self._uses:  # many assets reach the same code
            self._uses[name] = self._find_uses(name)
        return self._uses[name]

    def _find_uses(self, name: str) -> set[tuple[str, str]]:
        used: set[tuple[str, str]] = set()
        for definition in self.definitions[name]:
            imports = dict(self.imports)
            for node in ast.walk(definition):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    imports.update(_imported(node, self.module))
            for node in _mentions(definition, frozenset()):
                if isinstance(node, ast.Attribute):
                    module = _module_named(node.value, imports)
                    if module:
                        used.add((module, node.attr))
                elif node.id in imports:
                    module, original = imports[node.id]
                    if original is not None:
                        used.add((module, original))
                elif node.id in self.definitions and node.id != name:
                    used.add((self.module, node.id))
        return used


@functools.cache
def _outline(module: str) -> _Outline | None:
    loaded = sys.modules.get(module)
    file = getattr(loaded, "__file__", None)
    if file is None:
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError):
            return None
        file = spec.origin if spec else None
    if not file or not file.endswith(".py"):
        return None
    return _Outline(module, ast.parse(Path(file).read_text(encoding="utf-8")))


def _imported(node: ast.Import | ast.ImportFrom, module: str) -> dict[str, tuple[str, str | None]]:
    names: dict[str, tuple[str, str | None]] = {}
    if isinstance(node, ast.Import):
        for alias in node.names:
            names[alias.asname or alias.name] = (alias.name, None)
        return names
    source = node.module or ""
    if node.level:
        base = module.split(".")[: -node.level]
        source = ".".join([*base, source]).rstrip(".")
    for alias in node.names:
        inner = f"{source}.{alias.name}"
        is_module = source.partition(".")[0] in ROOTS and _outline(inner) is not None
        names[alias.asname or alias.name] = (inner, None) if is_module else (source, alias.name)
    return names


def _module_named(node: ast.expr, imports: dict[str, tuple[str, str | None]]) -> str | None:
    """The module an expression such as `shards` or `cs336.tokens.shards` stands for."""
    if isinstance(node, ast.Name | ast.Attribute):
        module, original = imports.get(ast.unparse(node), ("", ""))
        return module if original is None else None
    return None


def _mentions(node: ast.AST, parameters: frozenset[str]) -> Iterable[ast.Name | ast.Attribute]:
    """Names and attributes below a node, without those that are parameters of a function around them."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        arguments = node.args
        named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
        inner = parameters | {argument.arg for argument in named if argument}
        # Decorators, defaults and annotations are evaluated outside.
        for outside in (*node.decorator_list, arguments, *([node.returns] if node.returns else [])):
            yield from _mentions(outside, parameters)
        for statement in node.body:
            yield from _mentions(statement, inner)
        return
    if isinstance(node, ast.Attribute) or (isinstance(node, ast.Name) and node.id not in parameters):
        yield node
    for child in ast.iter_child_nodes(node):
        yield from _mentions(child, parameters)


def _plain(node: Any) -> str:
    """A syntax tree as text: no comments, docstrings or positions, and the same on every Python version."""
    if isinstance(node, list):
        return "[" + ",".join(map(_plain, node)) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = []
    for name, value in ast.iter_fields(node):
        if name in _VERSION_DEPENDENT or value is None or value == []:
            continue
        if name == "body" and isinstance(value, list) and _is_docstring(value[0]):
            value = value[1:]
        if isinstance(node, ast.JoinedStr):  # Python 3.12 alone adds empty pieces to f-strings
            value = [piece for piece in value if not (isinstance(piece, ast.Constant) and piece.value == "")]
        fields.append(f"{name}={_plain(value)}")
    return f"{type(node).__name__}({','.join(fields)})"


_VERSION_DEPENDENT = ("type_params", "type_comment", "kind", "ctx")


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
