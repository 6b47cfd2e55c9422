"""A site of documentation pages, one per module of the installed packages and the standard library.

Sources are read with `ast` and never imported. What the site answers is made to resemble the web:
redirects, error pages, dead links, boilerplate around every text, and a robots.txt that closes a
part of it.
"""

from __future__ import annotations

import ast
import contextlib
import csv
import functools
import gc
import html
import importlib.metadata
import os
import re
import sys
import sysconfig
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

from cs336.crawl.docstring_html import docstring_html, inline_html
from cs336.files import UserError

HOST = "docs.localhost"
STDLIB = "stdlib"
ROBOTS = "User-agent: *\nDisallow: /tests/\n"
_MAX_SIBLINGS = 12
_TEST_PARTS = frozenset({"test", "tests", "_test", "_tests", "conftest"})


class Module(NamedTuple):
    """One module that the site documents.

    Attributes:
        distribution: normalised name of its package on the index, or "stdlib".
        version: of the distribution; of Python, for the standard library.
        name: dotted.
        path: of its source file; never shown.
        is_package: whether it is an `__init__.py`.
    """

    distribution: str
    version: str
    name: str
    path: Path
    is_package: bool

    @property
    def page(self) -> str:
        """The address of its page, as a path; tests live in a part that robots.txt closes."""
        closed = "/tests" if _is_test(self.name) else ""
        return f"{closed}/{self.distribution}/{self.name}.html"

    @property
    def link(self) -> str:
        """The address that indexes link to: a package's is a folder, which redirects to its page."""
        return self.page.removesuffix(".html") + "/" if self.is_package else self.page


class Response(NamedTuple):
    """What the site answers."""

    status: int
    content_type: str
    body: bytes
    location: str | None = None


@dataclass(frozen=True)
class Site:
    """All pages, each made when it is asked for.

    Attributes:
        modules: by page address.
        links: page address by folder address.
        indexes: modules by index address, in order.
        families: modules by distribution and parent package, in order.
        ready: answers made ahead, by address.
    """

    modules: dict[str, Module]
    links: dict[str, str]
    indexes: dict[str, tuple[Module, ...]]
    families: dict[tuple[str, str], list[Module]]
    ready: dict[str, Response]

    def respond(self, address: str) -> Response:
        """The answer to a GET of this path."""
        if address in self.ready:
            return self.ready[address]
        if address == "/robots.txt":
            return Response(200, "text/plain; charset=utf-8", ROBOTS.encode())
        if address in self.links:
            return Response(301, "text/html; charset=utf-8", _message("Moved"), self.links[address])
        if address in self.indexes:
            return Response(200, "text/html; charset=utf-8", index_page(address, self.indexes[address]))
        if address in self.modules:
            return module_response(self.modules[address], self.siblings(address))
        return not_found()

    def siblings(self, address: str) -> tuple[tuple[str, str], ...]:
        """Neighbours of a module in its parent package: the name and address of each, a dozen at most."""
        module = self.modules[address]
        family = self.families[_family_of(module)]
        at = family.index(module)
        first = max(0, min(at - _MAX_SIBLINGS // 2, len(family) - _MAX_SIBLINGS))
        return tuple((one.name, one.link) for one in family[first : first + _MAX_SIBLINGS])


def build_site(modules: tuple[Module, ...], ready: dict[str, Response] | None = None) -> Site:
    """The site that documents these modules."""
    indexes: dict[str, list[Module]] = {"/": []}
    families: dict[tuple[str, str], list[Module]] = {}
    for module in modules:
        indexes.setdefault(f"/{module.distribution}/", []).append(module)
        families.setdefault(_family_of(module), []).append(module)
    indexes["/"] = [members[0] for address, members in indexes.items() if address != "/"]
    return Site(
        modules={module.page: module for module in modules},
        links={module.link: module.page for module in modules if module.is_package},
        indexes={address: tuple(members) for address, members in indexes.items()},
        families=families,
        ready=ready or {},
    )


@contextlib.contextmanager
def serving(site: Site) -> Iterator[tuple[str, int]]:
    """Serve the site on loopback while the context lasts; yields address and port."""

    class Handler(_Handler):
        pages = site

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield "127.0.0.1", server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    """Answers with constant headers: a response depends on nothing but the page."""

    pages: Site
    protocol_version = "HTTP/1.1"  # keep-alive
    # Header and body sent apart would wait for each other's acknowledgement, up to 40 ms a page.
    wbufsize = 2**20
    disable_nagle_algorithm = True
    timeout = 30

    def do_GET(self) -> None:
        response = self.pages.respond(self.path.partition("?")[0])
        self.send_response_only(response.status)  # without Date and Server
        self.send_header("Content-Type", response.content_type)
        self.send_header("Content-Length", str(len(response.body)))
        if response.location:
            self.send_header("Location", f"http://{HOST}{response.location}")
        self.end_headers()
        self.wfile.write(response.body)

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent; the crawler counts."""


# ---- finding modules ---------------------------------------------------------------------------


@functools.cache
def locked_versions(lock_file: Path) -> dict[str, str]:
    """Installed version of every package that the lock file names, by normalised name.

    Packages that are not installed are left out: the site shows what this machine has.

    Raises:
        UserError: no lock file.
    """
    if not lock_file.exists():
        raise UserError(f"{lock_file}: not found; it names the packages to document: make it with `make lock`")
    versions = {}
    for line in lock_file.read_text(encoding="utf-8").splitlines():
        match = re.match(r"\s*([A-Za-z0-9][\w.\-]*)\s*(?:\[[^\]]*\])?\s*(==|@|$|;)", line)
        if match:
            name = re.sub(r"[-_.]+", "-", match.group(1)).lower()
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                versions[name] = importlib.metadata.version(name)
    return dict(sorted(versions.items()))


@functools.cache
def find_modules(lock_file: Path) -> tuple[Module, ...]:
    """All modules of the standard library and of the locked, installed packages, ordered by page."""
    modules = list(_stdlib_modules())
    for name, version in locked_versions(lock_file).items():
        modules += _distribution_modules(name, version)
    return tuple(sorted(set(modules), key=lambda module: (module.distribution, module.name)))


def _stdlib_modules() -> Iterator[Module]:
    root = Path(sysconfig.get_path("stdlib"))
    version = ".".join(map(str, sys.version_info[:3]))
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if name.isidentifier() and name != "__pycache__")
        relative = Path(folder).relative_to(root)
        for file in files:
            parts = _module_parts((relative / file).as_posix())
            if parts and (parts[0] in sys.stdlib_module_names or parts[0] == "test"):
                yield Module(STDLIB, version, ".".join(parts), Path(folder) / file, file == "__init__.py")


def _distribution_modules(name: str, version: str) -> Iterator[Module]:
    distribution = importlib.metadata.distribution(name)
    # Read here, for Distribution.files makes an object per line and takes seconds for large packages.
    for row in csv.reader((distribution.read_text("RECORD") or "").splitlines()):
        parts = _module_parts(row[0]) if row else []
        if parts:
            path = Path(str(distribution.locate_file(row[0])))
            yield Module(name, version, ".".join(parts), path, path.name == "__init__.py")


def _module_parts(path: str) -> list[str]:
    """`a/b/__init__.py` -> [a, b]; empty for what is no importable module."""
    if not path.endswith(".py"):
        return []
    parts = path.removesuffix(".py").split("/")
    if parts[-1] == "__init__":
        parts.pop()
    return parts if all(part.isidentifier() for part in parts) else []


def _is_test(name: str) -> bool:
    parts = name.split(".")
    return any(part in _TEST_PARTS or part.startswith("test_") or part.endswith("_test") for part in parts)


def _family_of(module: Module) -> tuple[str, str]:
    return module.distribution, module.name.rpartition(".")[0]


# ---- pages -------------------------------------------------------------------------------------


def module_response(module: Module, siblings: tuple[tuple[str, str], ...]) -> Response:
    """A module's page: 200; 404 if its file is gone or has no docstring; 500 if it does not parse."""
    try:
        sections = list(_sections(_parse(module.path.read_bytes())))
    except OSError:
        return not_found()
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return Response(500, "text/html; charset=utf-8", _message("Internal Server Error"))
    if not sections:
        return not_found()
    page = _layout(
        title=f"{module.name} — {module.distribution} {module.version}",
        crumbs=_breadcrumbs(module),
        links=siblings,
        body="\n".join([f"<h1>{html.escape(module.name)}</h1>", *sections]),
    )
    # Some docstrings hold lone surrogates, which UTF-8 cannot encode.
    return Response(200, "text/html; charset=utf-8", page.encode("utf-8", "xmlcharrefreplace"))


def _parse(source: bytes) -> ast.Module:
    """The syntax tree; without warnings about old escapes in other people's strings."""
    # A tree is many objects and no garbage: looking for some doubles the time.
    was_collecting = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(source)
    finally:
        if was_collecting:
            gc.enable()


def index_page(address: str, modules: tuple[Module, ...]) -> bytes:
    """A page of links: to all modules of a distribution or, at `/`, to all distributions."""
    if address == "/":
        title = "Documentation of the installed packages"
        rows = [(f"/{one.distribution}/", f"{one.distribution} {one.version}") for one in modules]
    else:
        title = f"Modules of {modules[0].distribution} {modules[0].version}"
        rows = [(one.link, one.name) for one in modules]
    items = "\n".join(f'<li><a href="{html.escape(link)}">{html.escape(text)}</a></li>' for link, text in rows)
    body = f"<h1>{html.escape(title)}</h1>\n<ul>\n{items}\n</ul>"
    return _layout(title=title, crumbs=(("Home", "/"),), links=(), body=body).encode()


def not_found() -> Response:
    """The page of an address that leads nowhere."""
    return Response(404, "text/html; charset=utf-8", _message("Not Found"))


def _sections(tree: ast.Module) -> Iterator[str]:
    """HTML of the module's docstring, then of every documented class and function, as in the source."""
    if docstring := ast.get_docstring(tree, clean=False):
        yield docstring_html(docstring)
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            methods = [_section(one, 3) for one in node.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
            own = _section(node, 2)
            if own or any(methods):
                yield own or f"<h2>class <code>{html.escape(node.name)}</code></h2>"
                yield from filter(None, methods)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (section := _section(node, 2)):
            yield section


def _section(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, level: int) -> str:
    docstring = ast.get_docstring(node, clean=False)
    if not docstring or not docstring.strip():
        return ""
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        signature = f"class {node.name}({bases})" if bases else f"class {node.name}"
    else:
        returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        signature = f"{node.name}({ast.unparse(node.args)}){returns}"
    name = inline_html(node.name.strip("_").replace("_", " ").strip().capitalize() or node.name)
    return (
        f'<section id="{html.escape(node.name)}">\n<h{level}>{name}</h{level}>\n'
        f'<p class="signature"><code>{html.escape(signature, quote=False)}</code></p>\n'
        f"{docstring_html(docstring)}\n</section>"
    )


def _breadcrumbs(module: Module) -> tuple[tuple[str, str], ...]:
    parts = module.name.split(".")
    parents = [".".join(parts[:count]) for count in range(1, len(parts))]
    home = (("Home", "/"), (module.distribution, f"/{module.distribution}/"))
    return home + tuple((name.rpartition(".")[2], f"/{module.distribution}/{name}/") for name in parents)


def _layout(*, title: str, crumbs: tuple[tuple[str, str], ...], links: tuple[tuple[str, str], ...], body: str) -> str:
    trail = " » ".join(f'<a href="{html.escape(link)}">{html.escape(text)}</a>' for text, link in crumbs)
    nearby = "".join(f'<li><a href="{html.escape(link)}">{html.escape(text)}</a></li>' for text, link in links)
    menu = f"<aside><h2>Nearby modules</h2><ul>{nearby}</ul></aside>" if nearby else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>body {{ font-family: sans-serif; max-width: 60em; margin: auto }} pre {{ background: #eee }}</style>
</head>
<body>
<header>
<a href="/">Package documentation</a> | <a href="/stdlib/">Standard library</a> | <a href="/about">About</a>
</header>
<nav>{trail}</nav>
<main>
{body}
</main>
{menu}
<footer>
<p>This page was generated from the documentation strings of the source code.</p>
<p>Home | Index of all modules | Terms of use | Privacy</p>
</footer>
<script>document.documentElement.classList.add("js");</script>
</body>
</html>
"""


def _message(text: str) -> bytes:
    return _layout(title=text, crumbs=(("Home", "/"),), links=(), body=f"<h1>{text}</h1>").encode()
