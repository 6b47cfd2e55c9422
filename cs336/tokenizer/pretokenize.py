"""Cut text into pre-tokens, the pieces that no BPE merge crosses; cut streams where nothing is torn apart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import regex

# GPT-2's pattern (Radford et al. 2019): contractions, then words, numbers and runs of other signs, each
# with the one space before it, then white space. Runs of spaces leave their last one to the next word.
PATTERN = regex.compile(r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+""")

# Places where PATTERN always starts anew, whatever comes before or after: white space after anything else
# and the end of a run of letters or digits. The end of a run of signs is not one: "'" and "s" are one
# pre-token in "'s" and two in "''s". (?r) finds the last such place first.
_BOUNDARY = regex.compile(r"(?r)(?<=\S)(?=\s)|(?<=\p{L})(?=\P{L})|(?<=\p{N})(?=\P{N})")

# Longer strings are looked at in windows of this many characters, so a stream needs little memory.
_WINDOW_CHARS = 32_768


def pretokens(text: str) -> Iterator[str]:
    """The pre-tokens of a text without special tokens, in order; joined, they are the text."""
    return (match[0] for match in PATTERN.finditer(text))


def compile_special_tokens(special_tokens: Iterable[str]) -> regex.Pattern[str] | None:
    """A pattern that finds special tokens, the longest where several start together; None without any.

    Raises:
        ValueError: a special token is the empty string.
    """
    longest_first = sorted(set(special_tokens), key=lambda token: (-len(token), token))
    if not longest_first:
        return None
    if not longest_first[-1]:
        raise ValueError("a special token is empty; give it at least one character")
    return regex.compile("|".join(map(regex.escape, longest_first)))


def split_special_tokens(text: str, specials: regex.Pattern[str] | None) -> Iterator[tuple[str, bool]]:
    """Cut special tokens out of a text: (part, whether it is a special token), empty parts left out."""
    start = 0
    for match in specials.finditer(text) if specials else ():
        if start < match.start():
            yield text[start : match.start()], False
        yield match[0], True
        start = match.end()
    if start < len(text):
        yield text[start:], False


def cut_stream(chunks: Iterable[str], special_tokens: Iterable[str] = ()) -> Iterator[str]:
    """Cut a stream of text into pieces whose pre-tokens and special tokens are those of the whole text.

    How the stream comes cut makes no difference: a pre-token or a special token torn between two
    chunks is put together first. Holds the last chunk (at most 32,768 characters of it) and what is
    undecided before it, usually a word; only an unbroken run of one kind of character makes that grow.
    """
    special_tokens = tuple(special_tokens)
    specials = compile_special_tokens(special_tokens)
    longest = max(map(len, special_tokens), default=1)
    parts: list[str] = []
    held = worth_trying = 0
    for window in _windows(chunks):
        parts.append(window)
        held += len(window)
        if held < worth_trying:
            continue
        text = "".join(parts)
        cut = _last_safe_cut(text, specials, longest)
        if cut:
            yield text[:cut]
        parts = [text[cut:]]
        held = len(parts[0])
        # Nothing to cut yet: wait until twice as much is there, or a long run would cost its length squared.
        worth_trying = 0 if cut else 2 * held
    if rest := "".join(parts):
        yield rest


def _windows(chunks: Iterable[str]) -> Iterator[str]:
    for chunk in chunks:
        for start in range(0, len(chunk), _WINDOW_CHARS):
            yield chunk[start : start + _WINDOW_CHARS]


def _last_safe_cut(text: str, specials: regex.Pattern[str] | None, longest: int) -> int:
    """The last place of `text` that stays a boundary whatever follows; 0 if there is none."""
    decided = len(text) - longest + 1  # a special token that starts before here would be seen whole
    cut = 0
    for match in specials.finditer(text) if specials else ():
        if match.start() >= decided:
            break
        cut = match.end()
    end = min(decided, len(text) - 1)  # the last place where a cut may be: a character must follow
    if end <= cut:
        return cut
    boundary = _BOUNDARY.search(text, cut, end + 1)
    return boundary.start() if boundary else cut
