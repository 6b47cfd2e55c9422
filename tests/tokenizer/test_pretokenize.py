"""Pre-tokens by hand, and streams that may be cut anywhere."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cs336.processes import in_batches
from cs336.tokenizer.pretokenize import compile_special_tokens, cut_stream, pretokens, split_special_tokens

SPECIALS = ["<|endoftext|>", "<|endoftext|><|endoftext|>", "<|", "|> x", "  "]

# Letters, digits, signs, several kinds of white space (some of which Python and Unicode class
# differently), a combining mark, and pieces of special tokens.
fragments = st.sampled_from(
    [
        *"ab'sdlvre1٣²!.-_ \t\n\r\x1c\x85\u00a0\u3000é中́😀",
        "'ll",
        "'s",
        "   ",
        "\n\n",
        "<|",
        "|>",
        "endoftext",
        *SPECIALS,
    ]
)
texts = st.lists(fragments, max_size=40).map("".join)


def parts_of(text: str, special_tokens: list[str]) -> list[str]:
    """Pre-tokens and special tokens of a text, by the plain road."""
    specials = compile_special_tokens(special_tokens)
    result: list[str] = []
    for part, is_special in split_special_tokens(text, specials):
        result += [part] if is_special else pretokens(part)
    return result


def test_words_take_the_space_before_them_and_runs_leave_one_to_the_next_word():
    assert list(pretokens("it's  two (words)\n\n 42nd")) == [
        "it", "'s", " ", " two", " (", "words", ")", "\n\n", " 42", "nd",
    ]  # fmt: skip


@given(texts)
def test_pretokens_joined_are_the_text(text: str):
    assert "".join(pretokens(text)) == text


def test_where_special_tokens_start_together_the_longest_wins():
    specials = compile_special_tokens(["ab", "abab", "b"])
    assert list(split_special_tokens("ababab!b", specials)) == [
        ("abab", True), ("ab", True), ("!", False), ("b", True),
    ]  # fmt: skip


def test_an_empty_special_token_is_an_error():
    with pytest.raises(ValueError, match="empty"):
        compile_special_tokens(["", "a"])


@settings(max_examples=400, deadline=None)
@given(texts, st.data(), st.sampled_from([[], SPECIALS, SPECIALS[:1], SPECIALS[2:]]))
def test_pieces_of_a_stream_have_the_whole_texts_pretokens_however_it_is_cut(
    text: str, data: st.DataObject, special_tokens: list[str]
):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    chunks = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    pieces = list(cut_stream(chunks, special_tokens))
    assert "".join(pieces) == text
    assert [part for piece in pieces for part in parts_of(piece, special_tokens)] == parts_of(text, special_tokens)


@settings(max_examples=200, deadline=None)
@given(texts, st.sampled_from([[], SPECIALS]))
def test_a_stream_of_single_characters_has_the_whole_texts_pretokens(text: str, special_tokens: list[str]):
    pieces = cut_stream(text, special_tokens)
    assert [part for piece in pieces for part in parts_of(piece, special_tokens)] == parts_of(text, special_tokens)


def test_one_long_string_comes_out_in_small_pieces():
    assert max(map(len, cut_stream(["words and more of them, "] * 3 + ["中文，" * 200_000]))) < 40_000


def test_a_long_run_without_a_boundary_costs_little_when_it_comes_in_crumbs():
    assert list(cut_stream(["a" * 10] * 30_000)) == ["a" * 300_000]


def test_a_batch_ends_with_the_item_that_fills_it():
    assert list(in_batches(["aa", "b", "cccc", "", "dd"], len, 3)) == [["aa", "b"], ["cccc"], ["", "dd"]]
    assert list(in_batches([], len, 3)) == []
