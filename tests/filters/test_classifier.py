"""Opening fastText files and reading their answers."""

import pickle
from pathlib import Path

import fasttext
import pytest

from cs336.files import UserError
from cs336.filters.classifier import Classifier, clamp


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    lines = [
        f"__label__{label} {word} and some more" for label, word in (("b", "bad"), ("g", "good")) for _ in range(50)
    ]
    (folder / "train.txt").write_text("".join(f"{line}\n" for line in lines))
    trained = fasttext.train_supervised(
        input=str(folder / "train.txt"), dim=4, bucket=100, epoch=20, verbose=0, thread=1
    )
    trained.save_model(str(folder / "m.bin"))
    return folder / "m.bin"


def test_the_label_is_named_without_fasttexts_prefix_and_line_breaks_are_spaces(model: Path):
    classifier = Classifier(model)
    assert classifier.labels == ("b", "g")
    label, score = classifier.predict("so\ngood\u2028and\r\n\r\nmore")
    assert label == "g"
    assert type(score) is float
    assert 0.5 < score <= 1.0
    assert classifier.probability("so good and more", "g") == score
    assert classifier.probability("so good and more", "b") == pytest.approx(1 - score, abs=1e-4)
    assert classifier.probability("so good and more", "of another model") == 1e-6


def test_a_classifier_goes_to_another_process(model: Path):
    again = pickle.loads(pickle.dumps(Classifier(model)))
    assert again.predict("good") == Classifier(model).predict("good")


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
