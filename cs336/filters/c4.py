"""C4's line rules: keep the lines that are sentences, and drop pages that hold too few of them.

Menus, buttons and captions end without a full stop; so do most lines of a page as it was extracted. What is
left of a page after this is meant for Gopher's rules.

Source: Raffel et al. 2020, JMLR 21(140), section 2.2; where the text is silent, the authors' code (TensorFlow
Datasets, `c4_utils.py`): an ellipsis ends no sentence, words of over 1,000 characters and citation marks go, and
code and lorem ipsum count in lines that pass the other rules only. Not taken over: the list of bad words, and the
removal of spans of three sentences that occur twice (deduplication is a stage of its own).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from cs336.filters.scan import find_lines

_END_MARKS = (".", "?", "!", '"', "”")
_ELLIPSES = ("...", "…")
_CITATION = re.compile(r"\[[0-9]*\]|\[edit\]|\[citation needed\]")
_BOILERPLATE = (
    "javascript",
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)
_SENTENCE_END = re.compile(r"[.?!]+[\"”’')\]]*(?=\s|$)")


@dataclass(frozen=True, kw_only=True)
class C4Config:
    """C4's rules; numbers from the paper, section 2.2, and `max_word_length` from its code.

    Attributes:
        enabled: False leaves every text as it is.
        min_words_per_line: shorter lines go.
        min_sentences: of what is left; pages with fewer go.
        max_word_length: lines with a longer word go, in characters.
        need_end_mark: lines that do not end in . ? ! or a closing quote go, and those that end in an ellipsis.
        ban_boilerplate: lines that mention JavaScript, cookies, or terms of use go.
        ban_curly_bracket, ban_lorem_ipsum: pages go that hold "{" (program code) or that phrase.
        remove_citations: take out [1], [edit], [citation needed].
    """

    enabled: bool = False
    min_words_per_line: int = 5
    min_sentences: int = 3
    max_word_length: int = 1_000
    need_end_mark: bool = True
    ban_boilerplate: bool = True
    ban_curly_bracket: bool = True
    ban_lorem_ipsum: bool = True
    remove_citations: bool = True


class CleanedText(NamedTuple):
    """A text by its lines that pass, and what the page's rules look at.

    Attributes:
        text: the lines that pass, stripped, a line feed between them.
        num_lines: lines that are not blank, before.
        num_kept_lines: after.
        has_curly_bracket, has_lorem_ipsum: whether what is left holds them.
    """

    text: str
    num_lines: int
    num_kept_lines: int
    has_curly_bracket: bool
    has_lorem_ipsum: bool


def clean_lines(text: str, config: C4Config) -> CleanedText:
    """Keep the lines that pass the rules on lines. Takes time linear in the text."""
    num_lines, spans, has_bracket = find_lines(
        text,
        min_words=config.min_words_per_line,
        max_word_length=config.max_word_length,
        end_marks="".join(_END_MARKS) if config.need_end_mark else "",
    )
    kept = [text[start:end] for start, end in spans]
    if any(has_bracket):  # of such lines the scan says nothing
        cleaned_lines = (clean_line(line, config) if odd else line for line, odd in zip(kept, has_bracket, strict=True))
        kept = [line for line in cleaned_lines if line is not None]
    cleaned = "\n".join(kept)
    lower = cleaned.lower()
    boilerplate = [phrase for phrase in _BOILERPLATE if phrase in lower] if config.ban_boilerplate else []
    if boilerplate:  # of most texts, no line is
        lines = list(zip(kept, lower.split("\n"), strict=True))
        for phrase in boilerplate:
            lines = [(line, lower_line) for line, lower_line in lines if phrase not in lower_line]
        kept = [line for line, _ in lines]
        cleaned = "\n".join(kept)
        lower = cleaned.lower()
    return CleanedText(
        text=cleaned,
        num_lines=num_lines,
        num_kept_lines=len(kept),
        has_curly_bracket="{" in cleaned,
        has_lorem_ipsum="lorem ipsum" in lower,
    )


def clean_line(line: str, config: C4Config) -> str | None:
    """A line without white space around it, as it stays, or None where it goes; but for boilerplate.

    The plain rules on a line: for those with a bracket, and for the tests.
    """
    if config.remove_citations and "[" in line:
        line = _CITATION.sub("", line).strip()
    if config.need_end_mark and (not line.endswith(_END_MARKS) or line.endswith(_ELLIPSES)):
        return None
    words = line.split()
    if len(words) < config.min_words_per_line or max(map(len, words), default=0) > config.max_word_length:
        return None
    return line


def count_sentences(cleaned: CleanedText) -> int:
    """Sentences in what is left: . ? or ! before white space ends one, and so does every line."""
    return sum(max(1, len(_SENTENCE_END.findall(line))) for line in cleaned.text.split("\n") if line)


def failing_c4_rule(cleaned: CleanedText, config: C4Config) -> str | None:
    """Name of the first rule that drops the page: lorem_ipsum, curly_bracket, too_few_sentences; None if none does."""
    if config.ban_lorem_ipsum and cleaned.has_lorem_ipsum:
        return "lorem_ipsum"
    if config.ban_curly_bracket and cleaned.has_curly_bracket:
        return "curly_bracket"
    # Every line is a sentence at least: only the few lines of a short page need counting.
    if cleaned.num_kept_lines < config.min_sentences and count_sentences(cleaned) < config.min_sentences:
        return "too_few_sentences"
    return None
