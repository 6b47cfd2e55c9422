"""One pass over a text's characters for everything that Gopher's rules count, or for its lines; compiled by Numba.

`heuristics.measure_gopher` is the plain twin and says what is counted; tests hold the two equal. It splits a
text into words twice, with and without punctuation marks, as Python strings; here no object is made for a word.

The scanner is `heuristics.split_words` by hand: that pattern never has to go back, as nothing after a word's
first characters can make it fail. Each character's class comes from Python's own tables, so that a letter, a
space or a digit is what `str.isalpha`, `str.isspace` and `\\w` take for one.
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from cs336.compilation import announced
from cs336.filters.heuristics import WORD_PART, GopherMeasures

# Bits of a character's class.
_SPACE, _BREAK, _ALPHA, _WORD, _PART = 1, 2, 4, 8, 16
_DOT, _HYPHEN, _QUOTE, _ELLIPSIS = ord("."), ord("-"), ord("'"), ord("…")
_COMMA, _COLON, _ZERO, _NINE, _BRACKET = ord(","), ord(":"), ord("0"), ord("9"), ord("[")
_LONG_S = 0x17F  # lower-case form of S too, so the pattern takes it for one
_LINE_BREAKS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"  # of str.splitlines


class TextCounts(NamedTuple):
    """What one pass counts.

    Attributes:
        num_words, num_alphabetic_words: words and marks, as `heuristics.split_words`; those with a letter.
        num_spaced_words, num_alphabetic_spaced_words: what stands between spaces; likewise.
        num_characters: that are no white space.
        num_lines: that are not blank.
        num_ellipsis_lines: of these, how many end in "..." or "…".
    """

    num_words: int
    num_alphabetic_words: int
    num_spaced_words: int
    num_alphabetic_spaced_words: int
    num_characters: int
    num_lines: int
    num_ellipsis_lines: int


def scan_gopher(text: str) -> tuple[GopherMeasures, GopherMeasures]:
    """`measure_gopher` with marks as words, and without: equal to it, to the last bit."""
    counts = scan_text(text)
    return (
        _measures(counts, counts.num_words, counts.num_alphabetic_words),
        _measures(counts, counts.num_spaced_words, counts.num_alphabetic_spaced_words),
    )


def _measures(counts: TextCounts, num_words: int, num_alphabetic: int) -> GopherMeasures:
    if not num_words:
        return GopherMeasures(0, 0.0, 0.0, 0.0)
    # Every character that is no space is in one word, whichever way words are taken.
    return GopherMeasures(
        num_words=num_words,
        mean_word_length=counts.num_characters / num_words,
        ellipsis_line_fraction=counts.num_ellipsis_lines / counts.num_lines,
        alphabetic_word_fraction=num_alphabetic / num_words,
    )


def scan_text(text: str) -> TextCounts:
    """Count words, characters and lines of any text, lone surrogates included."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    if not len(points):
        return TextCounts(0, 0, 0, 0, 0, 0, 0)
    warm_up()
    return TextCounts(*_scan(points, classes()))


class FoundLines(NamedTuple):
    """Lines of `str.splitlines`, without the white space around them.

    Attributes:
        num_lines: that are not blank.
        spans: where each of those that were asked for begins and ends.
        has_bracket: of each of these, whether it holds "[".
    """

    num_lines: int
    spans: list[tuple[int, int]]
    has_bracket: list[bool]


def find_lines(text: str, *, min_words: int, max_word_length: int, end_marks: str) -> FoundLines:
    """Lines of at least so many words, none of them longer, that end in one of some marks, but not in "...".

    And all lines with "[", whatever they hold otherwise.

    Args:
        end_marks: "" takes lines of any end.
    """
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    if not len(points):
        return FoundLines(0, [], [])
    warm_up()
    marks = np.frombuffer(end_marks.encode("utf-32-le"), "<u4")
    num_lines, spans, has_bracket = _lines(points, classes(), min_words, max_word_length, marks)
    return FoundLines(num_lines, spans.tolist(), has_bracket.tolist())


@functools.cache
def warm_up() -> None:
    """Compile the scanners, or load them from Numba's cache; says so if that takes a while."""
    with announced("the filters' inner loops"):
        points = np.frombuffer("a".encode("utf-32-le"), "<u4")
        _scan(points, classes())
        _lines(points, classes(), 0, 1, points)


@functools.cache
def classes() -> NDArray[np.uint8]:
    """The class of every code point: bits for white space, line break, letter, word character, part of a word."""
    points = np.arange(0x110000, dtype="<u4")
    text = points.tobytes().decode("utf-32-le", "surrogatepass")
    found = np.zeros(len(points), np.uint8)
    for match in re.finditer(WORD_PART, text):
        found[match.start() : match.end()] = _PART
    for match in re.finditer(r"[^\W_]+", text):  # letters, digits and numbers: what isalnum says
        found[match.start() : match.end()] |= _WORD
        found[match.start() : match.end()] |= _ALPHA
    found[ord("_")] |= _WORD
    for match in re.finditer(r"[0-9\u00b2-\U0010ffff]", "".join(map(chr, np.flatnonzero(found & _ALPHA)))):
        if not match[0].isalpha():
            found[ord(match[0])] &= ~_ALPHA & 0xFF
    for match in re.finditer(r"\s", text):
        found[match.start()] = _SPACE
    for mark in _LINE_BREAKS:
        found[ord(mark)] |= _BREAK
    return found


@njit(cache=True, nogil=True)
def _scan(points, classes):
    num_points = len(points)
    words = alphabetic_words = spaced = alphabetic_spaced = characters = lines = ellipsis_lines = 0
    in_spaced = has_letter = False  # of what stands between spaces
    in_line = False  # a character other than white space was seen in it
    last = np.uint32(0)  # such a character
    dots = 0  # that end there
    place = 0
    while place < num_points:
        kind = classes[points[place]]
        if kind & _SPACE:
            if in_spaced:
                spaced += 1
                alphabetic_spaced += has_letter
                in_spaced = has_letter = False
            if kind & _BREAK and in_line:
                lines += 1
                ellipsis_lines += dots >= 3 or last == _ELLIPSIS
                in_line = False
            place += 1
            continue
        if not in_spaced:
            dots = 0  # those before the space are not next to what follows
        in_spaced = in_line = True
        start = place
        letter = False
        if kind & _PART:
            while True:
                while place < num_points and classes[points[place]] & _PART:
                    letter = letter or (classes[points[place]] & _ALPHA) != 0
                    place += 1
                if place + 1 >= num_points or not classes[points[place + 1]] & _PART:
                    break
                mark = points[place]
                if mark in (_COMMA, _COLON):
                    if points[place + 1] < _ZERO or points[place + 1] > _NINE:
                        break
                elif mark == _QUOTE:
                    if _contraction(points, place, classes):
                        break
                elif mark != _DOT and mark != _HYPHEN:
                    break
                place += 1
            dots = 0
        else:
            mark = points[place]
            place += 1
            if mark == _QUOTE:
                length = _contraction(points, place - 1, classes)
                place += length
                letter = length > 0
                dots = 0
            elif mark == _DOT:
                while place < num_points and points[place] == _DOT:
                    place += 1
                dots = place - start
            else:
                if mark == _HYPHEN and place < num_points and points[place] == _HYPHEN:
                    place += 1
                dots = 0
        words += 1
        alphabetic_words += letter
        has_letter = has_letter or letter
        characters += place - start
        last = points[place - 1]
    if in_spaced:
        spaced += 1
        alphabetic_spaced += has_letter
    if in_line:
        lines += 1
        ellipsis_lines += dots >= 3 or last == _ELLIPSIS
    return words, alphabetic_words, spaced, alphabetic_spaced, characters, lines, ellipsis_lines


@njit(cache=True, nogil=True)
def _contraction(points, quote, classes):
    """Letters of 's, 'm, 'd, 't, 'll, 're or 've at an apostrophe, if no word character follows; else 0."""
    num_points = len(points)
    if quote + 1 >= num_points:
        return 0
    first = points[quote + 1]
    lower = first | np.uint32(32)
    length = 0
    if lower == 115 or lower == 109 or lower == 100 or lower == 116 or first == _LONG_S:  # s m d t
        length = 1
    elif quote + 2 < num_points:
        second = points[quote + 2] | np.uint32(32)
        if (lower == 108 and second == 108) or ((lower == 114 or lower == 118) and second == 101):  # ll re ve
            length = 2
    if length and quote + 1 + length < num_points and classes[points[quote + 1 + length]] & _WORD:
        return 0
    return length


@njit(cache=True, nogil=True)
def _lines(points, classes, min_words, max_word_length, end_marks):
    num_points = len(points)
    most = (
        num_points + 1
    ) // 2  # a line has a character, and a break before the next; what is not written costs little
    spans = np.empty((most, 2), np.int64)
    has_bracket = np.empty(most, np.bool_)
    num_lines = num_found = 0
    start = end = words = longest = 0  # of a line: its first character, what follows its last; equal while it is blank
    word_start = -1
    bracket = False
    for place in range(num_points + 1):
        kind = classes[points[place]] if place < num_points else np.uint8(_SPACE | _BREAK)
        if not kind & _SPACE:
            if word_start < 0:
                words += 1
                word_start = place
                if start == end:
                    start = place
            end = place + 1
            bracket = bracket or points[place] == _BRACKET
            continue
        if word_start >= 0:
            longest = max(longest, place - word_start)
            word_start = -1
        if kind & _BREAK:
            if start < end:
                num_lines += 1
                passes = words >= min_words and longest <= max_word_length
                if passes and not bracket and len(end_marks):
                    last = points[end - 1]
                    passes = False
                    for mark in end_marks:
                        passes = passes or mark == last
                    if last == _DOT and end - start >= 3 and points[end - 2] == _DOT and points[end - 3] == _DOT:
                        passes = False
                if passes or bracket:
                    spans[num_found, 0], spans[num_found, 1] = start, end
                    has_bracket[num_found] = bracket
                    num_found += 1
            start = end = words = longest = 0
            bracket = False
    return num_lines, spans[:num_found].copy(), has_bracket[:num_found].copy()
