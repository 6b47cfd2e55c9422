"""The answers about Unicode: every claim is evaluated, and holds on real text of several scripts."""

from pathlib import Path

import pytest

from cs336.tokenizer import unicode
from cs336.tokenizer.unicode import decode_byte_by_byte, fails, unicode_answers

ENGLISH = "The harbour was quiet when the first boats came in. "


@pytest.mark.parametrize("sample", [ENGLISH, "港は静かだった。", "🙂 naïve \x00 text", Path(__file__).read_text()])
def test_every_claim_holds_whatever_the_sample(sample):
    answers = unicode_answers(sample)
    assert len(answers) == 6 and all(answer.holds for answer in answers)
    assert all(answer.sentences and answer.shown for answer in answers)


def test_what_is_shown_was_evaluated():
    shown = dict(pair for answer in unicode_answers(ENGLISH) for pair in answer.shown)
    assert shown["chr(0)"] == "'\\x00'" and shown["repr(chr(0))"] == repr(repr("\0"))
    assert shown["len(sample.encode('utf-32-le'))"] == str(4 * len(ENGLISH))
    assert shown["decode_byte_by_byte('é'.encode('utf-8'))"].startswith("UnicodeDecodeError: ")
    assert shown["b'\\xc0\\x80'.decode('utf-8')"].startswith("UnicodeDecodeError: ")


def test_the_sizes_told_are_the_samples():
    why_utf8 = unicode_answers("ab" * 50)[3].sentences
    assert "2.00 and 4.00 times as long, with 50% and 75% zero bytes" in why_utf8
    assert "1.00 and 1.00 times" in unicode_answers("🙂" * 10)[3].sentences  # four bytes in all three


def test_a_claim_that_does_not_hold_is_told(monkeypatch):
    wrong = unicode._Question("?", "It decodes.", ("1",), "not fails(b'\\xc0\\x80')")
    monkeypatch.setattr(unicode, "_QUESTIONS", (wrong,))
    assert [answer.holds for answer in unicode_answers(ENGLISH)] == [False]


def test_bytes_alone():
    assert decode_byte_by_byte(b"plain") == "plain"
    with pytest.raises(UnicodeDecodeError):
        decode_byte_by_byte("é".encode())
    assert fails(b"\xff") and not fails("é".encode())


def test_an_empty_sample_is_an_error():
    with pytest.raises(ValueError, match="give some real text"):
        unicode_answers("")
