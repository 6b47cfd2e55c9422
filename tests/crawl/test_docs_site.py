"""The documentation site: what is found, what each address answers."""

from __future__ import annotations

import http.client
import sys
from pathlib import Path

import pytest
from resiliparse.extract.html2text import extract_plain_text

from cs336.crawl.docs_site import Module, build_site, find_modules, locked_versions, serving
from cs336.files import UserError

SOURCE = '''"""Größe und Länge – 大小.

A module about size.
"""

import nonexistent_module_that_would_fail

class Box(dict):
    """A box."""

    def open(self, width: int = 3, *rest) -> bool:
        """Open it."""

def _helper():
    return 1
'''


@pytest.fixture
def site(tmp_path: Path):
    sources = {
        "pkg": '"""The package."""',
        "pkg.box": SOURCE,
        "pkg.broken": 'def f(:\n    """x"""',
        "pkg.bare": "x = 1",
        "pkg.tests.test_box": '"""Tests."""',
    }
    modules = []
    for name, text in sources.items():
        path = tmp_path / f"{name}.py"
        path.write_text(text, encoding="utf-8")
        modules.append(Module("pkg-dist", "1.2", name, path, name == "pkg"))
    modules.append(Module("pkg-dist", "1.2", "pkg.gone", tmp_path / "gone.py", False))
    return build_site(tuple(modules))


def test_a_page_shows_docstrings_signatures_and_nothing_of_the_code(site):
    response = site.respond("/pkg-dist/pkg.box.html")
    page = response.body.decode("utf-8")
    assert response.status == 200 and page.startswith("<!DOCTYPE html>")
    text = extract_plain_text(page, main_content=True)
    for shown in (
        "Größe und Länge – 大小.",
        "A module about size.",
        "class Box(dict)",
        "open(self, width: int=3, *rest) -> bool",
    ):
        assert shown in text
    assert "nonexistent_module" not in page and "_helper" not in page
    assert '<a href="/pkg-dist/pkg/">pkg</a>' in page  # breadcrumb
    assert '<a href="/pkg-dist/pkg.broken.html">pkg.broken</a>' in page  # neighbour


@pytest.mark.parametrize(
    ("address", "status"),
    [
        ("/", 200),
        ("/pkg-dist/", 200),
        ("/robots.txt", 200),
        ("/pkg-dist/pkg/", 301),
        ("/pkg-dist/pkg.broken.html", 500),
        ("/pkg-dist/pkg.bare.html", 404),  # no docstring
        ("/pkg-dist/pkg.gone.html", 404),
        ("/nowhere", 404),
        ("/tests/pkg-dist/pkg.tests.test_box.html", 200),
    ],
)
def test_each_kind_of_address_has_its_answer(site, address, status):
    assert site.respond(address).status == status


def test_a_package_address_redirects_to_its_page(site):
    assert site.respond("/pkg-dist/pkg/").location == "/pkg-dist/pkg.html"


def test_no_page_names_a_file_of_the_machine(site, tmp_path):
    for address in [*site.modules, *site.indexes, *site.links]:
        assert str(tmp_path).encode() not in site.respond(address).body


def test_the_server_answers_over_http_with_constant_headers(site):
    with serving(site) as (host, port):
        connection = http.client.HTTPConnection(host, port, timeout=10)
        for address in ("/pkg-dist/pkg/", "/pkg-dist/pkg.box.html", "/nowhere"):  # one connection: keep-alive
            connection.request("GET", address)
            answer = connection.getresponse()
            expected = site.respond(address)
            assert (answer.status, answer.read()) == (expected.status, expected.body)
            assert not {"date", "server"} & {name.lower() for name, _ in answer.getheaders()}
            assert answer.getheader("location") == (
                f"http://docs.localhost{expected.location}" if expected.location else None
            )
        connection.close()


def test_the_standard_library_and_locked_packages_are_found_without_test_programs_of_others(tmp_path):
    lock = tmp_path / "requirements.lock"
    lock.write_text("# comment\nPyTest==9.2.0\nnot-installed-here==1.0\n")
    assert list(locked_versions(lock)) == ["pytest"]
    modules = {module.name: module for module in find_modules(lock)}
    assert modules["json.decoder"].page == "/stdlib/json.decoder.html"
    assert modules["json"].link == "/stdlib/json/"
    assert modules["json"].version == ".".join(map(str, sys.version_info[:3]))
    assert modules["_pytest.fixtures"].distribution == "pytest"
    assert modules["test.test_json"].page == "/tests/stdlib/test.test_json.html"
    assert not any(name.startswith(("dagster", "site-packages", "torch")) for name in modules)


def test_a_missing_lock_file_is_one_line_with_the_remedy(tmp_path):
    with pytest.raises(UserError, match=r"requirements\.lock: not found; .*make lock"):
        locked_versions(tmp_path / "requirements.lock")
