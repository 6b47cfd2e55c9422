"""Opening fastText files and reading their answers."""

from pathlib import Path

import pytest

from cs336.files import UserError
from cs336.filters.classifier import Classifier, clamp, one_line


def test_every_kind_of_line_break_becomes_a_space():
    assert one_line("a\nb\r\nc\rd\u2028e\x85f") == "a b c d e f"


def test_a_lone_surrogate_does_not_reach_fasttext():
    one_line("broken \ud800 text").encode()


def test_scores_stay_in_the_half_open_unit_interval():
    assert clamp(1.00001) == 1.0
    assert 0 < clamp(0.0) < 1e-5


def test_a_missing_file_is_one_line_that_names_it(tmp_path: Path):
    with pytest.raises(UserError, match=r"nothing\.bin"):
        Classifier(tmp_path / "nothing.bin")


def test_a_file_of_something_else_is_one_line_that_names_it(tmp_path: Path):
    (tmp_path / "page.bin").write_text("<html>404</html>")
    with pytest.raises(UserError, match=r"page\.bin: not a fastText model"):
        Classifier(tmp_path / "page.bin")
