"""Inspection sheets: what pages hold is shown and never run, and verdicts stand beside them."""

from __future__ import annotations

import re

import pytest

from cs336.files import UserError
from cs336.sheets import (
    MAX_EXCERPT,
    Entry,
    Sheet,
    Verdict,
    agreement,
    as_markdown,
    as_page,
    excerpt,
    read_verdicts,
    replacements,
)

HOSTILE = '</pre><script>alert("x")</script> ```\n# heading\n\x1b[31m\x00'
ENTRIES = [
    Entry(f"http://a.test/{i}?<b>`", "a.warc.gz at byte 1", {"score": "0.5", "<i>": "<u>"}, [("te<xt", HOSTILE)], says)
    for i, says in enumerate(["en", "en", "de", ""])
]
SHEET = Sheet("language", "Lan<guage", "Which & why?", ["en: 2 of 4"], ENTRIES)


def test_the_page_escapes_all_that_pages_hold_and_loads_nothing():
    page = as_page("Sheets", [SHEET], {"language": Verdict("fine <b>")})
    tags = set(re.findall(r"<(/?\w+)", page.partition("</style>")[2]))
    own = [
        "head",
        "body",
        "html",
        "h1",
        "h2",
        "h3",
        "h4",
        "nav",
        "a",
        "section",
        "p",
        "b",
        "ul",
        "li",
        "article",
        "span",
    ]
    assert tags <= {f"{end}{tag}" for end in ("", "/") for tag in [*own, "pre"]}
    assert page.count("&lt;script&gt;") == 4 and "fine &lt;b&gt;" in page
    assert re.findall(r'(?:href|src)="([^"]*)"', page) == ["#language"], "no address is a link"
    assert "default-src 'none'" in page and "\x1b" not in page and "\x00" not in page


def test_markdown_keeps_texts_inside_their_fences():
    shown = as_markdown(SHEET, Verdict())
    assert shown.splitlines().count("```") == 2 * len(ENTRIES) and "**Verdict:** not read yet" in shown
    assert "`http://a.test/0?<b>%60`" in shown, "no backtick ends the code"


def test_an_excerpt_is_limited_and_says_so():
    assert excerpt("a\tb\nc") == "a\tb\nc"
    assert excerpt("x" * MAX_EXCERPT) == "x" * MAX_EXCERPT
    assert excerpt("x" * (MAX_EXCERPT + 1)) == "x" * MAX_EXCERPT + "..."


def test_labels_are_compared_with_what_the_filters_say():
    labels = {ENTRIES[0].url: "en", ENTRIES[1].url: "fr", ENTRIES[3].url: "en", "http://elsewhere/": "en"}
    said = agreement(SHEET, Verdict("read", labels))
    assert said == "1 of 2 labels agree with the filters (9% to 91%, Wilson 95 %)"  # z^2 = 3.84: by hand
    assert agreement(SHEET, Verdict()) == ""
    assert "own label: fr" in as_markdown(SHEET, Verdict("read", labels))


def test_verdicts_are_read_from_a_small_file(tmp_path):
    path = tmp_path / "mine.toml"
    assert read_verdicts(path, ["a", "b"]) == {"a": Verdict(), "b": Verdict()}
    path.write_text('[a]\nverdict = "  good\\n"\nlabels = {"http://x/" = "en"}\n[b]\nverdict = ""\n')
    read = read_verdicts(path, ["a", "b"])
    assert read == {"a": Verdict("good", {"http://x/": "en"}), "b": Verdict()}
    assert read["a"].is_read and not read["b"].is_read


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("[a", "not valid TOML"),
        ("[c]\nverdict = 'x'", "there is no sheet 'c'; there are a, b"),
        ("[a]\nremark = 'x'", "holds verdict = "),
        ("a = 'good'", "holds verdict = "),
        ("[a]\nlabels = {x = 1}", "labels is a table"),
    ],
)
def test_a_mistake_in_the_verdicts_is_one_line(tmp_path, written, message):
    path = tmp_path / "mine.toml"
    path.write_text(written)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        read_verdicts(path, ["a", "b"])
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_replacements_are_shown_with_what_stood_there():
    text = "Write to jane.doe@example.org, or call (212) 555-0123 today. |||EMAIL_ADDRESS||| 10.1.2.3"
    assert [(kind, was) for kind, was, _ in replacements(text)] == [
        ("EMAIL_ADDRESS", "jane.doe@example.org"),
        ("PHONE_NUMBER", "(212) 555-0123"),
        ("IP_ADDRESS", "10.1.2.3"),
    ]
    assert replacements(text)[0][2].startswith("Write to [jane.doe@example.org], or call")
    assert replacements("nothing here") == []
