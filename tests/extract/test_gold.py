"""Scores of extractors: figures by hand, and on real pages with gold."""

from __future__ import annotations

import gzip
import io
import json
import tarfile

import pytest

from cs336.extract.gold import GoldPage, compare, compare_texts, read_gold, score_extractors
from cs336.files import UserError


def test_four_grams_of_two_texts_by_hand():
    # gold: abcd bcde cdef; extract: abcd bcde + cdeX + deXY
    assert compare_texts("a b c d e f", "a b c d e X Y") == pytest.approx((2 / 5, 2 / 5, 1 / 5, 0))


def test_grams_are_counted_as_often_as_they_occur_and_marks_are_no_words():
    assert compare_texts("a, b. c d a b c d", "a b c d") == pytest.approx((1 / 5, 0, 4 / 5, 0))


def test_a_short_text_is_one_gram_and_an_empty_one_the_empty_gram():
    assert compare_texts("one two", "one two") == (1, 0, 0, 0)
    assert compare_texts("one two", "") == (0, 0.5, 0.5, 0)
    assert compare_texts("", "") == (1, 0, 0, 0)


def test_segments_are_found_across_line_breaks():
    page = GoldPage("a", "segments", b"", must=("the  text", "gone"), must_not=("Home", "Log in"))
    assert compare(page, "Home\n\nof the\ntext") == (1, 1, 1, 1)


def test_scores_by_hand():
    pages = [
        GoldPage("a", "text", b"<p>one two three four five", text="one two three four"),
        GoldPage("b", "text", b"<p>six", text="six"),
        GoldPage("c", "segments", b"<nav>Home</nav><main><p>text</main>", must=("text",), must_not=("Home",)),
    ]
    scores = score_extractors(pages, ["default", "main content"], num_workers=1)
    assert scores["default"]["text"] == pytest.approx((2, 0.75, 1.0, 1.5 / 1.75, None, None))
    assert scores["default"]["segments"] == pytest.approx((1, 0.5, 1.0, 2 / 3, 1.0, 1.0))
    assert scores["main content"]["segments"] == (1, 1.0, 1.0, 1.0, 1.0, 0.0)
    assert list(scores["default"]) == ["text", "segments"]


def test_an_unknown_extractor_is_an_error():
    with pytest.raises(ValueError, match="no extractor 'lynx'"):
        score_extractors([], ["lynx"])


def write_gold(folder, rows, pages):
    with gzip.open(folder / "gold.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    with tarfile.open(folder / "pages.tar.xz", "w:xz") as archive:
        for name, html in pages.items():
            member = tarfile.TarInfo(f"./dev/{name}")
            member.size = len(html)
            archive.addfile(member, io.BytesIO(html))
    return folder / "gold.jsonl.gz", folder / "pages.tar.xz"


def test_gold_of_every_kind_is_read_and_other_kinds_are_not(tmp_path):
    rows = [
        {"name": "a.html", "kind": "text", "text": "A"},
        {"name": "a.html", "kind": "segments", "data": {"with": ["x"], "without": None}},
        {"name": "b.html", "kind": "html", "html": "<p>B\n b"},
        {"name": "b.html", "kind": "date", "date": "2020-01-01"},
    ]
    found = list(read_gold(*write_gold(tmp_path, rows, {"b.html": b"bb", "a.html": b"aa", "c.html": b"cc"})))
    assert found == [
        GoldPage("b.html", "html", b"bb", text="B b"),
        GoldPage("a.html", "text", b"aa", text="A"),
        GoldPage("a.html", "segments", b"aa", must=("x",)),
    ]


def test_gold_without_its_page_is_an_error_and_so_is_a_missing_file(tmp_path):
    gold, pages = write_gold(tmp_path, [{"name": "a.html", "kind": "text", "text": "A"}], {})
    with pytest.raises(UserError, match=r"lacks 1 pages .* a\.html"):
        list(read_gold(gold, pages))
    with pytest.raises(UserError, match="not found"):
        list(read_gold(gold, tmp_path / "none.tar.xz"))


@pytest.mark.slow
def test_on_real_pages_the_default_loses_little_and_main_content_is_cleaner(shared_data):
    pages = read_gold(shared_data / "web/gold/dev.jsonl.gz", shared_data / "web/pages/dev.tar.xz")
    scores = score_extractors(pages, ["default", "main content"], num_workers=1)
    default, main = scores["default"], scores["main content"]
    assert {kind: score.num_pages for kind, score in default.items()} == {"text": 145, "html": 99, "segments": 747}
    assert all(score.recall > 0.9 for score in default.values())
    for kind in default:
        assert main[kind].precision > default[kind].precision
        assert main[kind].f1 > default[kind].f1
