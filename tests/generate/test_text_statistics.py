"""Repetition and variety of texts, by hand."""

import pytest

from cs336.generate.text_statistics import text_statistics


def test_a_text_that_repeats_itself():
    repeated = text_statistics(["a b a b a b"])  # pairs: ab ba ab ba ab; fours: abab baba abab
    assert repeated == (pytest.approx(2 / 5), pytest.approx(1 / 3), 6)


def test_means_over_texts_and_short_ones():
    assert text_statistics(["one two three four", ""]) == (1.0, 0.0, 2.0)
    with pytest.raises(ValueError, match="no texts"):
        text_statistics([])
