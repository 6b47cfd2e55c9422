"""Pieces of text: whole characters, stop strings cut exactly, whatever the tokens' edges."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cs336.generate.text import TextStream

STOP = ["\nUser:", "aba", "ab€"]


def pieces_of(tokens: list[bytes], stop=()) -> tuple[list[str], bool]:
    """All pieces up to the stop string, for tokens given as their bytes."""
    stream = TextStream(lambda ids: b"".join(tokens[i] for i in ids).decode(errors="replace"), stop)
    pieces = []
    for number in range(len(tokens)):
        pieces.append(stream.push(number))
        if stream.stopped:
            return pieces, True
    return [*pieces, stream.finish()], stream.stopped


def test_a_character_in_three_tokens_comes_whole():
    pieces, _ = pieces_of([b"a\xe2", b"\x82", b"\xac\xe2", b"\x82\xac!", b"\xf0\x9f"])
    assert pieces == ["a", "", "€", "€!", "", "\N{REPLACEMENT CHARACTER}"]


def test_bytes_that_are_no_text_come_as_replacement_characters_one_token_late():
    pieces, _ = pieces_of([b"\xff", b"\xff", b"x"])
    assert pieces == ["", "\N{REPLACEMENT CHARACTER}", "\N{REPLACEMENT CHARACTER}x", ""]


def test_a_stop_string_over_three_tokens_is_cut_where_it_begins_and_never_shown():
    pieces, stopped = pieces_of([b"yes\n", b"Us", b"er: no"], stop=STOP)
    assert (pieces, stopped) == (["yes", "", ""], True)


def test_what_only_looked_like_a_stop_string_is_shown_as_soon_as_that_is_known():
    pieces, stopped = pieces_of([b"yes\n", b"Use", b"d\nU", b"p"], stop=STOP)
    assert (pieces, stopped) == (["yes", "", "\nUsed", "\nUp", ""], False)


def test_a_beginning_of_a_stop_string_at_the_end_is_text():
    assert pieces_of([b"yes\nUser"], stop=STOP) == (["yes", "\nUser"], False)


def test_the_stop_string_that_is_complete_first_counts():
    assert pieces_of([b"wxyz"], stop=["wxyz", "xy"]) == (["w"], True)
    assert pieces_of([b"w", b"x", b"y", b"z"], stop=["wxyz", "xy"]) == (["", "", "w"], True)
    assert pieces_of([b"wxyz"], stop=["yz", "xyz"]) == (["w"], True)  # at once: the longest


def test_a_half_character_at_the_end_can_complete_a_stop_string():
    assert pieces_of([b"a\xe2"], stop=["a\N{REPLACEMENT CHARACTER}"]) == (["", ""], True)


def test_an_empty_stop_string_is_an_error():
    with pytest.raises(ValueError, match="empty"):
        TextStream(str, ["x", ""])


@given(
    st.lists(st.sampled_from([*(bytes([b]) for b in b"ab\nUser:\xe2\x82\xac\xf0\x9f"), b"aba", b"\nUs", "€".encode()])),
    st.lists(st.sampled_from(STOP), max_size=3),
)
def test_pieces_joined_are_the_text_before_the_first_stop_string(tokens, stop):
    text = b"".join(tokens).decode(errors="replace")
    # By the definition: the shortest beginning that ends with a stop string, less the longest such.
    expected = text
    for end in range(len(text) + 1):
        ending = [string for string in stop if text[:end].endswith(string)]
        if ending:
            expected = text[: end - max(map(len, ending))]
            break
    pieces, stopped = pieces_of(tokens, stop)
    assert "".join(pieces) == expected
    assert stopped == (expected != text)


@given(st.binary(max_size=40), st.lists(st.integers(0, 40), max_size=8))
def test_pieces_hold_whole_characters_however_the_bytes_are_cut(data, cuts):
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    tokens = [data[start:end] for start, end in pairwise(edges)]
    pieces, _ = pieces_of(tokens)
    assert "".join(pieces) == data.decode(errors="replace")
    shown = ""
    for number, piece in enumerate(pieces[:-1]):
        shown += piece
        seen = b"".join(tokens[: number + 1]).decode(errors="replace")
        assert shown == seen[:-1] if seen.endswith("\N{REPLACEMENT CHARACTER}") else shown == seen
