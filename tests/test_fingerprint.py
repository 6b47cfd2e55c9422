"""Code hashes follow what is reached, and only that."""

import importlib
import sys
import textwrap

import pytest

from cs336 import fingerprint
from cs336.fingerprint import code_of, digest

MAIN = """
    from cs336_probe.helpers import helper, Thing
    from cs336_probe import values

    def start(x):
        '''A docstring.'''
        return helper(x) + values.LIMIT  # a comment

    def unrelated():
        return 1
"""
HELPERS = """
    FACTOR = 2

    def helper(x):
        return _inner(x)

    def _inner(x):
        return FACTOR * x

    class Thing:
        def method(self):
            return 1
"""


@pytest.fixture
def version(tmp_path, monkeypatch):
    """Hash of `start` with some of its package's text replaced."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(fingerprint, "ROOTS", ("cs336_probe",))
    package = tmp_path / "cs336_probe"
    package.mkdir()

    def of(*, name="start", **changes):
        files = {"__init__": "", "main": MAIN, "helpers": HELPERS, "values": "LIMIT = 3\nOTHER = 4\n"}
        for file, (old, new) in changes.items():
            assert old in files[file]
            files[file] = files[file].replace(old, new)
        for file, text in files.items():
            (package / f"{file}.py").write_text(textwrap.dedent(text))
        for module in [m for m in sys.modules if m.startswith("cs336_probe")]:
            del sys.modules[module]
        importlib.invalidate_caches()
        fingerprint._outline.cache_clear()
        main = importlib.import_module("cs336_probe.main")
        return code_of(getattr(main, name), roots=("cs336_probe",))

    yield of
    fingerprint._outline.cache_clear()


@pytest.mark.parametrize(
    "change",
    [
        {"main": ("'''A docstring.'''", "'''Another.'''")},
        {"main": ("# a comment", "# other words")},
        {"main": ("return 1", "return 2")},
        {"helpers": ("return 1", "return 2")},  # Thing is imported but not used
        {"values": ("OTHER = 4", "OTHER = 5")},
        {"helpers": ("return FACTOR * x", "return (FACTOR *\n            x)")},
    ],
)
def test_what_is_not_reached_or_not_code_changes_nothing(version, change):
    assert version() == version(**change)


@pytest.mark.parametrize(
    "change",
    [
        {"main": ("helper(x) +", "helper(x) -")},
        {"helpers": ("return _inner(x)", "return _inner(x + 1)")},
        {"helpers": ("return FACTOR * x", "return FACTOR + x")},  # two calls away
        {"helpers": ("FACTOR = 2", "FACTOR = 3")},
        {"values": ("LIMIT = 3", "LIMIT = 4")},  # an attribute of an imported module
    ],
)
def test_a_change_in_anything_reached_changes_the_hash(version, change):
    assert version() != version(**change)


def test_imports_inside_functions_are_followed(version):
    inside = {"main": ("return 1", "from cs336_probe.helpers import Thing\n        return Thing")}
    both = {"helpers": ("return 1", "return 2")}
    assert version(name="unrelated", **inside) != version(name="unrelated", **inside, **both)


def test_settings_hash_by_value_and_objects_by_their_identity():
    class Source:
        def __init__(self, path):
            self.path = path

        def identity(self):
            return {"files": 2}

    assert digest({"a": (1, 2)}) == digest({"a": [1, 2]})
    assert digest(Source("/here")) == digest(Source("/there"))
    with pytest.raises(TypeError):
        digest({"f": len})


def test_a_name_passed_on_by_another_module_is_followed_to_its_definition(version):
    passed_on = {"values": ("LIMIT = 3", "from cs336_probe.helpers import FACTOR as LIMIT")}
    assert version(**passed_on) != version(**passed_on, helpers=("FACTOR = 2", "FACTOR = 3"))


def test_a_parameter_is_not_the_function_of_its_name(version):
    shadowed = {"main": ("def start(x):", "def start(x, unrelated=0):\n        unrelated += 1")}
    both = {"main": ("def unrelated():", "def unrelated(y=1):")}
    main = MAIN.replace(*shadowed["main"])
    assert version(main=(MAIN, main)) == version(main=(MAIN, main.replace(*both["main"])))


def test_hashes_are_the_same_on_every_python_version():
    code = (
        "@decorated(1)\ndef f(a, /, b: int = 2, *args, c=None, **kw) -> str:\n    '''Doc.'''\n"
        "    with open(a) as x, y:\n        return f'{a!r:>{b}}' if not (lambda z: z)(b) else [i async for i in c]\n"
        "class A(B, metaclass=C):\n    x: int = 1\n"
    )
    tree = fingerprint.ast.parse(code)
    assert digest([fingerprint._plain(node) for node in tree.body]) == "e9aa84bd829fe4f0"


def test_loaders_behind_the_catalogue_are_part_of_what_reads_data_sets():
    from cs336_assets.evals import mmlu

    assert any("catalog_loaders" in name for name in fingerprint.reached(mmlu))


def test_what_is_kept_of_a_text_stands_for_that_text_alone(version, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert version() and not list(tmp_path.rglob("*.outline"))
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    first = version()
    kept = sorted((tmp_path / "cs336_probe" / "__pycache__").glob("*.outline"))
    assert [file.name.partition(".")[0] for file in kept] == ["helpers", "main", "values"]
    written = [file.stat().st_mtime_ns for file in kept]
    assert version() == first and [file.stat().st_mtime_ns for file in kept] == written
    kept[0].write_bytes(kept[0].read_bytes()[:-9])  # as when the power went
    kept[1].write_bytes(b"")
    assert version() == first
    assert version(values=("LIMIT = 3", "LIMIT = 4")) != first


def test_a_package_that_cannot_be_written_to_has_the_same_hashes(version, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    first = version()
    monkeypatch.setattr(sys, "pycache_prefix", str(tmp_path / "main.py" / "no folder"))
    (tmp_path / "main.py").touch()
    assert version() == first
