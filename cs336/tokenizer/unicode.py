"""The first handout's questions about Unicode, each answered by a sentence and by the Python that shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple


class Answer(NamedTuple):
    """One question answered.

    Attributes:
        question: in short.
        sentences: the answer.
        shown: expressions of Python and what they evaluated to, as `repr` has it; of an exception, its
            last line.
        claim: the expression that the answer stands on.
        holds: whether the claim evaluated to True.
    """

    question: str
    sentences: str
    shown: list[tuple[str, str]]
    claim: str
    holds: bool


@dataclass(frozen=True)
class _Question:
    question: str
    sentences: str
    shows: tuple[str, ...]
    claim: str


def decode_byte_by_byte(data: bytes) -> str:
    """The handout's wrong function: it takes every byte for a character of its own."""
    return "".join([bytes([byte]).decode("utf-8") for byte in data])


def fails(data: bytes) -> bool:
    """Whether these bytes are not UTF-8."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return True
    return False


_QUESTIONS = (
    _Question(
        question="What does chr(0) return?",
        sentences="The character U+0000, NUL: a control character, one code point and one byte of UTF-8.",
        shows=("chr(0)", "ord(chr(0))", "chr(0).encode('utf-8')", "unicodedata.category(chr(0))"),
        claim="len(chr(0)) == 1 and unicodedata.category(chr(0)) == 'Cc' and chr(0).encode('utf-8') == bytes(1)",
    ),
    _Question(
        question="How does its repr differ from what print writes?",
        sentences="`repr` writes quotes and, inside, an escape of four visible characters; `print` sends the character"
        " itself, which a terminal shows as nothing.",
        shows=("repr(chr(0))", "len(repr(chr(0)))", "str(chr(0)).isprintable()"),
        claim="'\\\\x00' in repr(chr(0)) and not chr(0).isprintable() and str(chr(0)) == chr(0)",
    ),
    _Question(
        question="What does it do inside a text?",
        sentences="It stays in the string and counts as a character, though the printed text looks as if it were not"
        " there; unlike in C it ends nothing.",
        shows=("'this is a test' + chr(0) + 'string'", "len('a' + chr(0) + 'b')", "('a' + chr(0) + 'b').split()"),
        claim="len('a' + chr(0) + 'b') == 3 and ('a' + chr(0) + 'b')[2] == 'b'",
    ),
    _Question(
        question="Why train on UTF-8 rather than on UTF-16 or UTF-32?",
        sentences="All three have an alphabet of 256 bytes, but UTF-8 is the shortest for most text: of this sample the"
        " others are {utf16:.2f} and {utf32:.2f} times as long, with {zeros16:.0%} and {zeros32:.0%} zero bytes that a"
        " tokenizer would first have to learn to merge away. ASCII stays as it is, and there is no byte order.",
        shows=(
            "len(sample)",
            "len(sample.encode('utf-8'))",
            "len(sample.encode('utf-16-le'))",
            "len(sample.encode('utf-32-le'))",
            "'hello! こんにちは!'.encode('utf-8')",
        ),
        claim="len(sample.encode('utf-8')) <= len(sample.encode('utf-32-le'))"
        " and sample.encode('utf-8').count(0) == sample.count(chr(0)) and 'Ab'.encode('utf-8') == b'Ab'"
        " and sample.encode('utf-8').decode('utf-8') == sample",
    ),
    _Question(
        question="On which input does decoding byte by byte fail?",
        sentences="On every character beyond ASCII, such as `é`: it is several bytes, none of which means anything"
        " alone. Only ASCII comes out right.",
        shows=("'é'.encode('utf-8')", "decode_byte_by_byte(b'hello')", "decode_byte_by_byte('é'.encode('utf-8'))"),
        claim="decode_byte_by_byte(b'hello') == 'hello' and all(fails(bytes([byte])) for byte in 'é'.encode('utf-8'))",
    ),
    _Question(
        question="Which two bytes decode to no character?",
        sentences="`b'\\xc0\\x80'`: 0xC0 announces a character of two bytes, but the one that they would spell, U+0000,"
        " must be written in one. Nor do `b'\\x80\\x80'`, two bytes that may only follow a first one.",
        shows=("b'\\xc0\\x80'.decode('utf-8')", "b'\\x80\\x80'.decode('utf-8')", "b'\\xc3\\xa9'.decode('utf-8')"),
        claim="fails(b'\\xc0\\x80') and fails(b'\\x80\\x80') and not fails(b'\\xc3\\xa9')",
    ),
)


def unicode_answers(sample: str) -> list[Answer]:
    """Every question of the handout, answered; the expressions are evaluated now.

    Args:
        sample: real text, for the encodings' sizes.

    Raises:
        ValueError: the sample is empty.

    Source: CS336 assignment 1 (2025), problems unicode1 and unicode2.
    """
    if not sample:
        raise ValueError("the sample is empty; give some real text")
    utf8, utf16, utf32 = (sample.encode(name) for name in ("utf-8", "utf-16-le", "utf-32-le"))
    facts = {
        "utf16": len(utf16) / len(utf8),
        "utf32": len(utf32) / len(utf8),
        "zeros16": utf16.count(0) / len(utf16),
        "zeros32": utf32.count(0) / len(utf32),
    }
    answers = []
    for asked in _QUESTIONS:
        shown = [(expression, _evaluated(expression, sample)) for expression in asked.shows]
        sentences = asked.sentences.format(**facts) if "{" in asked.sentences else asked.sentences
        answers.append(Answer(asked.question, sentences, shown, asked.claim, _value(asked.claim, sample) is True))
    return answers


def _value(expression: str, sample: str) -> Any:
    import unicodedata

    names = {"sample": sample, "unicodedata": unicodedata, "decode_byte_by_byte": decode_byte_by_byte, "fails": fails}
    return eval(expression, names)


def _evaluated(expression: str, sample: str) -> str:
    try:
        return repr(_value(expression, sample))
    except UnicodeDecodeError as error:
        return f"{type(error).__name__}: {error}"
