"""Gopher's rules, by hand-made texts on both sides of every bound."""

import pytest

from cs336.filters.heuristics import (
    GopherConfig,
    GopherMeasures,
    failing_rule,
    measure_gopher,
    passes_gopher,
    split_words,
)

PROSE = """The harbour was quiet when the first boats came in. Nobody had expected them before noon, and the
women who mend the nets were still at breakfast. It's an old town, built of grey stone; its people say
little to strangers (or to one another). "Good catch?" asked the keeper of the light. They shook their heads
and went on unloading, crate by crate, until the sun stood over the church tower and the market opened."""


def rule(text: str) -> str | None:
    return failing_rule(measure_gopher(text), GopherConfig())


def test_ordinary_prose_passes_either_way():
    assert passes_gopher(PROSE)
    assert failing_rule(measure_gopher(PROSE, marks_are_words=False), GopherConfig()) is None


def test_words_and_marks_come_apart_as_in_nltk():
    text = "It's 3.14 (well-known), isn't it? Yes... no--1,000 e.g. O'Brien: \"hi\"."
    assert split_words(text) == [
        *("It", "'s", "3.14", "(", "well-known", ")", ",", "isn", "'t", "it", "?", "Yes", "...", "no", "--"),
        *("1,000", "e.g", ".", "O'Brien", ":", '"', "hi", '"', "."),
    ]


def test_the_four_figures_by_hand():
    # words: a bc . 12 def ...   lengths 1 2 1 2 3 3; lines: three that are not blank, one ends in dots
    assert measure_gopher("a bc.\n\n12\ndef... \n") == GopherMeasures(6, 12 / 6, 1 / 3, 3 / 6)
    # a bc. 12 def...
    assert measure_gopher("a bc.\n\n12\ndef... \n", marks_are_words=False) == GopherMeasures(4, 12 / 4, 1 / 3, 3 / 4)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("word " * 49, "too_few_words"),
        ("word " * 50, None),
        ("word " * 100_000, None),
        ("word " * 100_001, "too_many_words"),
        ("the " * 60, None),
        ("the " * 59 + "be", "short_words"),
        ("abcdefghij " * 60, None),
        ("abcdefghij " * 59 + "abcdefghijk", "long_words"),
        ("one two three four five six\n" * 7 + "and so we go on...\n" * 3, None),
        (
            "one two three four five six\n" * 6 + "and so we go on... \n" * 2 + "and so we go on…\n" * 2,
            "ellipsis_lines",
        ),
        ("word " * 80 + "1234 " * 20, None),
        ("word " * 79 + "1234 " * 21, "few_alphabetic_words"),
        ("", "too_few_words"),
    ],
)
def test_bounds_pass_and_what_lies_beyond_is_named(text: str, expected: str | None):
    assert rule(text) == expected
    assert passes_gopher(text) is (expected is None)


def test_an_empty_text_fails_even_without_a_floor():
    assert failing_rule(measure_gopher(" \n"), GopherConfig(min_words=0)) == "too_few_words"


def test_a_missing_space_after_full_stops_does_not_fail_a_text():
    assert rule(PROSE.replace(". ", ".").replace("\n", " ")) is None
    assert rule("We saw the sea.It was calm.Then rain fell.All went home.Nobody spoke at all." * 6) is None
