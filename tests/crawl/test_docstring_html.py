"""Docstrings become HTML whose text reads as prose."""

from __future__ import annotations

import ast
import sysconfig
import warnings
from pathlib import Path

import pytest
from resiliparse.extract.html2text import extract_plain_text

from cs336.crawl.docstring_html import docstring_html, inline_html


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("One line\n    wrapped.\n\n    Two.", "<p>One line wrapped.</p>\n<p>Two.</p>"),
        ("Code::\n\n    a = 1\n    b\n\nEnd.", "<p>Code:</p>\n<pre>a = 1\nb</pre>\n<p>End.</p>"),
        ("See:\n\n>>> 1 < 2\nTrue\n\nEnd.", "<p>See:</p>\n<pre>&gt;&gt;&gt; 1 &lt; 2\nTrue</pre>\n<p>End.</p>"),
        ("Notes\n-----\nText.", "<h4>Notes</h4>\n<p>Text.</p>"),
        ("- one\n  more\n- two\n\nEnd.", "<ul><li>one more</li><li>two</li></ul>\n<p>End.</p>"),
        (
            "Do.\n\nArgs:\n    x (int): the x,\n        wrapped.\n    y: b",
            "<p>Do.</p>\n<h4>Args</h4>\n<dl><dt>x (int)</dt><dd>the x, wrapped.</dd><dt>y</dt><dd>b</dd></dl>",
        ),
        (
            "Do.\n\nParameters\n----------\nx : int\n    The x.",
            "<p>Do.</p>\n<h4>Parameters</h4>\n<dl><dt>x : int</dt><dd><p>The x.</p></dd></dl>",
        ),
        (
            "Do.\n\n:param int x: the x\n:returns: y",
            "<p>Do.</p>\n<dl><dt>int x</dt><dd>the x</dd><dt>Returns</dt><dd>y</dd></dl>",
        ),
        ("Do.\n\n.. note::\n\n   Careful.", "<p>Do.</p>\n<h5>Note</h5>\n<p>Careful.</p>"),
        ("Do.\n\n.. code-block:: python\n\n   a()\n\nEnd.", "<p>Do.</p>\n<pre>a()</pre>\n<p>End.</p>"),
        ("Do.\n\nArgs:\n      odd: a\n  x: b", "<p>Do.</p>\n<h4>Args</h4>\n<p>odd: a</p>\n<p>x: b</p>"),
        ("", ""),
    ],
)
def test_each_construction_by_hand(docstring, expected):
    assert docstring_html(docstring) == expected


def test_inline_markup_becomes_code_and_everything_else_is_escaped():
    actual = inline_html("Use ``a<b``, `x`, :class:`~torch.nn.Linear`, :ref:`the guide <guide>` & **not** <i>.")
    assert actual == (
        "Use <code>a&lt;b</code>, <code>x</code>, <code>Linear</code>, <code>the guide</code> &amp;"
        " <strong>not</strong> &lt;i&gt;."
    )


def test_no_word_of_a_real_docstring_is_lost():
    """Every docstring of some standard modules: words in order, markup and punctuation aside."""
    num_docstrings = 0
    for name in ("argparse", "asyncio/tasks", "textwrap", "statistics", "random", "difflib", "heapq"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse((Path(sysconfig.get_path("stdlib")) / f"{name}.py").read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
                shown = extract_plain_text(docstring_html(text))
                assert _words(shown) == _words(text), (name, text)
                num_docstrings += 1
    assert num_docstrings > 150


def _words(text: str) -> list[str]:
    return "".join(character if character.isalpha() else " " for character in text).split()


def test_deep_nesting_ends():
    text = "Top.\n\n" + "\n".join(" " * depth + f"word{depth}" for depth in range(200))
    assert "word199" in docstring_html(text)
