"""Reading labelled data."""

import gzip
import io
import json
import tarfile

import pytest

from cs336.files import UserError
from cs336.filters.gold_pages import left_over
from cs336.filters.labelled import (
    Comment,
    PiiSentence,
    read_gold_pages,
    read_language_sentences,
    read_pii_sentences,
    read_toxic_comments,
)


def write(path, *rows):
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def test_sentences_are_grouped_by_language(tmp_path):
    path = write(tmp_path / "a.jsonl.gz", *({"lang": lang, "text": text} for lang, text in ("ax", "by", "az")))
    assert read_language_sentences(path) == {"a": ["x", "z"], "b": ["y"]}


def test_spans_must_stand_where_they_are_said_to(tmp_path):
    span = {"entity_type": "PHONE_NUMBER", "entity_value": "555", "start_position": 5, "end_position": 8}
    path = write(tmp_path / "a.jsonl.gz", {"full_text": "call 555", "spans": [span]})
    assert read_pii_sentences(path) == [PiiSentence("call 555", (("PHONE_NUMBER", 5, 8),))]
    write(path, {"full_text": "calls 555", "spans": [span]})
    with pytest.raises(UserError, match="does not stand at 5"):
        read_pii_sentences(path)


def test_both_kinds_of_remarks_are_read(tmp_path):
    tweets = write(tmp_path / "t.jsonl.gz", *({"tweet": f"t{kind}", "class": kind} for kind in range(3)))
    assert read_toxic_comments(tweets) == [Comment("t0", True), Comment("t1", True), Comment("t2", False)]
    comments = write(
        tmp_path / "c.jsonl.gz", {"text": "a", "is_toxic": "Toxic"}, {"text": "b", "is_toxic": "Not Toxic"}
    )
    assert read_toxic_comments(comments) == [Comment("a", True), Comment("b", False)]
    with pytest.raises(UserError, match="neither"):
        read_toxic_comments(write(tmp_path / "x.jsonl.gz", {"other": 1}))


def test_a_row_that_is_no_json_names_its_line(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"lang": "a", "text": "b"}\nnot JSON\n')
    with pytest.raises(UserError, match=r"a\.jsonl:2"):
        read_language_sentences(tmp_path / "a.jsonl")


def test_pages_come_with_what_is_known_of_them(tmp_path):
    with tarfile.open(tmp_path / "dev.tar.xz", "w:xz") as archive:
        for name in ("s/a.html", "s/b.html", "s/not-listed.html"):
            info = tarfile.TarInfo(name)
            info.size = len(name)
            archive.addfile(info, io.BytesIO(name.encode()))
    index = write(
        tmp_path / "i.gz", {"name": "s/a.html", "url": "http://a/", "site": "a"}, {"name": "s/b.html", "url": None}
    )
    gold = write(
        tmp_path / "g.gz",
        {"name": "s/a.html", "kind": "text", "text": "the article"},
        {"name": "s/a.html", "kind": "date", "date": "2020-01-01"},
    )
    pages = list(read_gold_pages({"dev.tar.xz": tmp_path / "dev.tar.xz", "dev_index.jsonl": index, "dev.jsonl": gold}))
    assert [page.name for page in pages] == ["s/a.html", "s/b.html"]
    assert (pages[0].kinds, pages[0].article, pages[0].html) == ({"text", "date"}, "the article", b"s/a.html")
    assert (pages[1].kinds, pages[1].url, pages[1].site) == (set(), "", "s/b.html")


def test_what_is_left_of_a_page_are_the_lines_outside_its_article():
    menu = " ".join(f"Menu{n}" for n in range(25))
    page = f"{menu}\n\nThe river rose.\n  • And, the town slept!\nRiver"
    assert left_over(page, "The river rose. And the\ntown slept.") == menu  # whatever the marks and line breaks
    assert left_over(page, "The river rose.") == f"{menu}\n  • And, the town slept!"
    assert left_over("Home\nThe river rose.", "The river rose.") == ""
