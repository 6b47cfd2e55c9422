"""Gopher's verdicts with our words and with somebody else's."""

import pytest

from cs336.files import read_jsonl
from cs336.filters.heuristics import GopherConfig, split_words
from cs336.filters.nltk_reading import compare_readings, nltk_words

CONFIG = GopherConfig(min_words=3)


def test_the_same_reading_agrees_with_itself():
    agreement = compare_readings(["one two three", "one", "1 2 3 4"], split_words, CONFIG)
    assert (agreement.num_documents, agreement.num_differing) == (3, 0)
    assert agreement.relative_gaps == (0.0, 0.0)
    assert agreement.rules == {
        (None, None): 1,
        ("too_few_words", "too_few_words"): 1,
        ("short_words", "short_words"): 1,
    }


def test_other_words_differ_by_rule():
    agreement = compare_readings(["three small words", "two words"], lambda text: [*text.split(), "more"], CONFIG)
    assert agreement.num_differing == 1
    assert agreement.rules == {(None, None): 1, ("too_few_words", None): 1}
    assert agreement.relative_gaps[0] == pytest.approx((1 / 4 + 1 / 3) / 2)


def test_on_ordinary_prose_the_verdicts_agree_with_nltks(shared_data):
    pytest.importorskip("nltk", reason='pip install "cs336[nltk]"')
    texts = [row["text"] for row in read_jsonl(shared_data / "text" / "bbc" / "bbc.jsonl.gz")][:400]
    whole = compare_readings(texts, nltk_words(), GopherConfig())
    by_sentence = compare_readings(texts, nltk_words(by_sentence=True), GopherConfig())
    assert by_sentence.num_differing <= 8  # 2 %
    assert by_sentence.relative_gaps[0] < 0.02 < whole.relative_gaps[0] + 0.02
