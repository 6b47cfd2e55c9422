"""What a result depends on, as hashes: the code it reaches and the settings it reads.

`code_of` hashes syntax trees, so comments, docstrings, formatting and line numbers change nothing,
and a changed helper changes whatever calls it.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import inspect
import json
import marshal
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypedDict

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

    def __init__(self, module: str, sketch: _Sketch):
        self.module = module
        self.definitions = sketch["definitions"]
        self.hashes = sketch["hashes"]
        self.imports = _resolved(sketch["imports"])
        self._uses: dict[str, set[tuple[str, str]]] = {}

    def uses(self, name: str) -> set[tuple[str, str]]:
        """Definitions that one definition mentions, here or in other modules."""
        if name not in self._uses:  # many assets reach the same code
            self._uses[name] = self._find_uses(name)
        return self._uses[name]

    def _find_uses(self, name: str) -> set[tuple[str, str]]:
        used: set[tuple[str, str]] = set()
        for definition in self.definitions[name]:
            imports = self.imports | _resolved(definition["imports"])
            for mentioned in definition["mentions"]:
                owner, _, attribute = mentioned.rpartition(".")
                module, original = imports.get(owner or mentioned, ("", ""))
                if owner:
                    if original is None:
                        used.add((module, attribute))
                elif module:
                    if original is not None:
                        used.add((module, original))
                elif mentioned in self.definitions and mentioned != name:
                    used.add((self.module, mentioned))
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
    return _Outline(module, _sketch(module, Path(file)))


# ---- one module's text


_Import = tuple[str, str, str | None]  # name here, module, name there (None of a module itself)


class _Definition(TypedDict):
    """One statement that defines a name: what is imported inside it, and what it mentions of all that is known."""

    imports: list[_Import]
    mentions: list[str]


class _Sketch(TypedDict):
    """What a module's text says by itself, of no other module."""

    imports: list[_Import]
    hashes: dict[str, str]
    definitions: dict[str, list[_Definition]]


def _sketch(module: str, file: Path) -> _Sketch:
    """Of a module; kept beside Python's own compiled form of it, since reading a syntax tree takes long."""
    text = file.read_bytes()
    key = hashlib.sha256(_OWN_TEXT + module.encode() + b"\n" + text).hexdigest()
    kept = Path(importlib.util.cache_from_source(str(file))).with_suffix(".outline")
    with contextlib.suppress(OSError, EOFError, ValueError, TypeError):  # not there, or cut off
        found_key, found = marshal.loads(kept.read_bytes())
        if found_key == key:
            return found
    sketch = _sketch_of(module, ast.parse(text))
    if sys.dont_write_bytecode:
        return sketch
    # Not `files.replacing`: what is lost is made again, so nothing need wait for the disk.
    with contextlib.suppress(OSError):  # a folder that is only read, or a full disk
        kept.parent.mkdir(exist_ok=True)
        partial = kept.with_name(f".{kept.name}.{os.getpid()}.partial")
        partial.write_bytes(marshal.dumps((key, sketch)))  # type: ignore[arg-type]  # a dictionary as any
        partial.replace(kept)
    return sketch


_OWN_TEXT = Path(__file__).read_bytes()  # another version of this module may read texts in another way


def _sketch_of(module: str, tree: ast.Module) -> _Sketch:
    imports: list[_Import] = []
    statements: dict[str, list[ast.stmt]] = {}

    def collect(node: ast.stmt) -> None:
        if isinstance(node, ast.Import | ast.ImportFrom):
            imports.extend(_imported(node, module))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            statements.setdefault(node.name, []).append(node)
        elif isinstance(node, ast.If | ast.Try):
            for inner in ast.iter_child_nodes(node):
                if isinstance(inner, ast.stmt):
                    collect(inner)
        else:
            for target in ast.walk(node):
                if isinstance(target, ast.Name) and isinstance(target.ctx, ast.Store):
                    statements.setdefault(target.id, []).append(node)

    for node in tree.body:
        collect(node)
    known = {here for here, _, _ in imports} | statements.keys()
    return {
        "imports": imports,
        "hashes": {
            name: hashlib.sha256("".join(_plain(node) for node in nodes).encode()).hexdigest()
            for name, nodes in statements.items()
        },
        "definitions": {
            name: [_definition(node, module, known) for node in nodes] for name, nodes in statements.items()
        },
    }


def _definition(statement: ast.stmt, module: str, known: set[str]) -> _Definition:
    inside = [node for node in ast.walk(statement) if isinstance(node, ast.Import | ast.ImportFrom)]
    imports = [one for node in inside for one in _imported(node, module)]
    known = known.union(here for here, _, _ in imports)
    mentions = {_dotted(node) or "" for node in _mentions(statement, frozenset())}
    return {"imports": imports, "mentions": sorted(name for name in mentions if (_owner(name) or name) in known)}


def _owner(dotted: str) -> str:
    return dotted.rpartition(".")[0]


def _imported(node: ast.Import | ast.ImportFrom, module: str) -> list[_Import]:
    if isinstance(node, ast.Import):
        return [(alias.asname or alias.name, alias.name, None) for alias in node.names]
    source = node.module or ""
    if node.level:
        base = module.split(".")[: -node.level]
        source = ".".join([*base, source]).rstrip(".")
    return [(alias.asname or alias.name, source, alias.name) for alias in node.names]


def _resolved(imports: Iterable[_Import]) -> dict[str, tuple[str, str | None]]:
    """Name here -> (module, name there or None): what is imported from a package may be a module of it."""
    names: dict[str, tuple[str, str | None]] = {}
    for here, source, there in imports:
        inner = f"{source}.{there}"
        is_module = there is not None and source.partition(".")[0] in ROOTS and _outline(inner) is not None
        names[here] = (inner, None) if is_module else (source, there)
    return names


def _dotted(node: ast.expr) -> str | None:
    """`shards.load` or `cs336.tokens.shards` as text; None of an attribute of anything but names."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (owner := _dotted(node.value)):
        return f"{owner}.{node.attr}"
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
