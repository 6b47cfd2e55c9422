"""C4's line rules: each on both sides of its bound, and on hostile input."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cs336.filters.c4 import C4Config, clean_line, clean_lines, count_sentences, failing_c4_rule

CONFIG = C4Config(enabled=True)
GOOD = "This line has five words."


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        (GOOD, True),
        ("  This line has five words?  ", True),
        ("Now this one has five!", True),
        ('He said "this is fine"', True),
        ("He said “this is fine”", True),
        ("This line has five words", False),
        ("This line just trails off...", False),
        ("This line just trails off…", False),
        ("Just four words here.", False),
        ("This page needs JavaScript to work.", False),
        ("Read our Privacy Policy before use.", False),
        ("This site uses cookies, as all do.", False),
        ("One word is " + "a" * 1_000 + " long here.", True),
        ("One word is " + "a" * 1_001 + " long here.", False),
    ],
)
def test_lines_are_kept_or_not(line: str, kept: bool):
    cleaned = clean_lines(f"{line}\n\n", CONFIG)
    assert cleaned.text == (line.strip() if kept else "")
    assert (cleaned.num_lines, cleaned.num_kept_lines) == (1, int(kept))


def test_many_lines_are_all_looked_at():
    cleaned = clean_lines(f"{GOOD}\nmenu\n\n" * 1_000, CONFIG)
    assert cleaned.text == "\n".join([GOOD] * 1_000)
    assert (cleaned.num_lines, cleaned.num_kept_lines) == (2_000, 1_000)


def test_words_are_counted_without_citations():
    assert clean_lines("Four words are here [1] [2].", CONFIG).text == "Four words are here  ."
    assert clean_lines("Only three [1] words[2].", CONFIG).text == ""


def test_citations_go_also_after_the_full_stop():
    text = "The town[1] has a harbour [citation needed]. [23]\nThe [sic] old man was there."
    assert clean_lines(text, CONFIG).text == "The town has a harbour .\nThe [sic] old man was there."
    assert clean_lines(text, replace(CONFIG, remove_citations=False)).text == "The [sic] old man was there."


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("\n".join([GOOD] * 3), None),
        ("\n".join([GOOD] * 2), "too_few_sentences"),
        (f"{GOOD} And more. Is it?", None),
        (f"{GOOD} It costs 3.50 now.", "too_few_sentences"),
        ("\n".join([GOOD] * 3 + ["if (x) { return y; } is code."]), "curly_bracket"),
        ("\n".join([GOOD] * 3 + ["if (x) {"]), None),
        ("\n".join([GOOD] * 3 + ["Lorem ipsum dolor sit amet."]), "lorem_ipsum"),
        ("", "too_few_sentences"),
    ],
)
def test_pages_are_dropped_by_the_rule_that_is_named(text: str, rule: str | None):
    assert failing_c4_rule(clean_lines(text, CONFIG), CONFIG) == rule


def test_every_rule_can_be_switched_off():
    off = C4Config(
        min_words_per_line=0,
        min_sentences=0,
        max_word_length=10**9,
        need_end_mark=False,
        ban_boilerplate=False,
        ban_curly_bracket=False,
        ban_lorem_ipsum=False,
        remove_citations=False,
    )
    text = "menu\nlorem ipsum { javascript...\n[1]"
    cleaned = clean_lines(text, off)
    assert cleaned.text == text and failing_c4_rule(cleaned, off) is None


PIECES = [GOOD, "menu", "[1]", "...", "{", "\n", " ", "a b c d e.[2]", "\ud800", "\r"]


@given(st.lists(st.sampled_from([*PIECES, "read our privacy policy now.", "“x”", "."])).map(" ".join), st.data())
def test_the_scan_keeps_the_lines_that_the_plain_rules_keep(text: str, data: st.DataObject):
    switches = {name: data.draw(st.booleans()) for name in ("need_end_mark", "remove_citations", "ban_boilerplate")}
    config = replace(CONFIG, max_word_length=data.draw(st.integers(1, 9)), min_words_per_line=2, **switches)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    expected = [line for line in (clean_line(line, config) for line in lines) if line is not None]
    expected = [line for line in expected if not (config.ban_boilerplate and "privacy policy" in line.lower())]
    cleaned = clean_lines(text, config)
    assert cleaned.text == "\n".join(expected)
    assert (cleaned.num_lines, cleaned.num_kept_lines) == (len(lines), len(expected))


@given(st.lists(st.sampled_from(PIECES)).map(" ".join))
def test_cleaning_twice_changes_nothing_more(text: str):
    once = clean_lines(text, CONFIG)
    again = clean_lines(once.text, CONFIG)
    assert again.text == once.text
    assert count_sentences(again) == count_sentences(once) >= once.num_kept_lines


@pytest.mark.parametrize("text", ["[" * 10**6, "." * 10**6, "a " * 10**6 + ".", '"' * 10**6, "? " * 10**6 + "x."])
def test_hostile_lines_take_linear_time(text: str):
    clean_lines(text, CONFIG)
