"""Extraction: the library's text byte for byte, whatever the encoding."""

from __future__ import annotations

import gzip
import json
import re
import tarfile
from collections import Counter

import pytest
from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.encoding import detect_encoding

from cs336.extract.html import decode_text, extract_text

PAGE = (
    "<html><body><h1>Title</h1><p>One  two\n<a href='/x'>three</a>.</p><ul><li>item</li></ul><img src=a></body></html>"
)


def test_blocks_are_apart_white_space_is_collapsed_and_items_have_bullets():
    assert extract_text(PAGE.encode()) == "Title\n\nOne two three.\n\n  • item"


def test_strict_utf8_comes_first_then_the_detected_encoding():
    text = "Les élèves étaient très fatigués après la journée passée à l'école. " * 5
    assert extract_text(f"<p>{text}".encode()) == text.strip()
    assert extract_text(f"<p>{text}".encode("latin-1")) == text.strip()


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", bytes(range(256)) * 20, b"<p>ok \xff\xff ok", b"\x00" * 1000])
def test_no_bytes_make_it_raise(data):
    assert isinstance(extract_text(data), str)
    decode_text(data).encode()  # no lone surrogates, which nothing downstream could store


def test_main_content_leaves_out_the_menu():
    html = b"<body><nav><a href=/>Home</a></nav><main><p>The text itself.</p></main></body>"
    assert "Home" in extract_text(html)
    assert extract_text(html, main_content=True) == "The text itself."


def real_pages(shared_data):
    """Name and bytes of every real page."""
    with tarfile.open(shared_data / "web/pages/dev.tar.xz") as archive:
        for member in archive:
            if member.isfile():
                yield member.name.removeprefix("./").removeprefix("dev/"), archive.extractfile(member).read()


def is_utf8(data):
    try:
        data.decode()
        return True
    except UnicodeDecodeError:
        return False


@pytest.mark.slow
def test_all_real_pages_give_the_librarys_text_byte_for_byte(shared_data):
    num_utf8 = num_other = 0
    for _, html in real_pages(shared_data):
        num_utf8 += is_utf8(html)
        num_other += not is_utf8(html)
        text = html.decode() if is_utf8(html) else html.decode(detect_encoding(html), "replace")
        assert extract_text(html) == extract_plain_text(text)
    assert (num_utf8, num_other) == (2406, 26)


def test_real_pages_in_other_encodings_are_read_as_what_they_declare(shared_data):
    # What a browser takes for these names (WHATWG): latin-1 is windows-1252.
    same = {"iso-8859-1": "cp1252", "iso-8859-15": "cp1252", "windows-1252": "cp1252"}
    num_right, wrong = 0, []
    for name, html in real_pages(shared_data):
        if is_utf8(html):
            continue
        declared = re.search(rb"charset\s*=\s*[\"']?\s*([A-Za-z0-9_-]+)", html[:8192])
        codec = declared and same.get(declared[1].decode().lower(), declared[1].decode().lower())
        if codec and decode_text(html) == html.decode(codec, "replace"):
            num_right += 1
        else:
            wrong.append((name, codec))
    assert num_right >= 22 and len(wrong) <= 4, wrong


# Legacy encodings by the language of a page.
ENCODINGS = {
    "de": ["cp1252", "iso-8859-15"],
    "es": ["cp1252"],
    "fr": ["cp1252"],
    "pl": ["iso-8859-2", "cp1250"],
    "cs": ["cp1250"],
    "hu": ["iso-8859-2"],
    "ru": ["cp1251", "koi8-r"],
    "tr": ["cp1254"],
    "ar": ["cp1256"],
    "ja": ["shift_jis", "euc-jp"],
    "zh": ["gb18030", "big5"],
}


def test_real_pages_written_in_legacy_encodings_are_detected(shared_data):
    with gzip.open(shared_data / "web/pages/dev_index.jsonl.gz", "rt") as lines:
        languages = {row["name"]: row["lang_guess"] for row in map(json.loads, lines)}
    right, tried = Counter(), Counter()
    for name, html in real_pages(shared_data):
        language = languages.get(name)
        if language not in ENCODINGS or tried[language] >= 20 or len(html) > 300_000:
            continue
        for encoding in ENCODINGS[language] if is_utf8(html) else []:
            legacy = html.decode().encode(encoding, "xmlcharrefreplace")
            if not is_utf8(legacy):
                tried[language] += 1
                right[language] += decode_text(legacy) == legacy.decode(encoding)
    assert set(tried) == set(ENCODINGS) and tried.total() > 120
    assert right.total() / tried.total() > 0.97, right
    assert all(right[language] >= 0.9 * tried[language] for language in tried), right
