"""The wiring of the harm classifiers, with small models trained here on labelled comments."""

from pathlib import Path

import fasttext
import pytest

from cs336.files import UserError, read_jsonl
from cs336.filters.harmful import HarmfulModels, harm_score


@pytest.fixture(scope="session")
def labelled_comments(shared_data: Path) -> list[tuple[str, bool]]:
    rows = read_jsonl(shared_data / "labelled" / "toxicity" / "dev" / "surge_toxicity_en.jsonl.gz")
    return [(row["text"], row["is_toxic"] == "Toxic") for row in rows]


@pytest.fixture(scope="session")
def toxic_path(labelled_comments: list[tuple[str, bool]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toxic")
    lines = [
        f"__label__{'toxic' if toxic else 'non-toxic'} {' '.join(text.split())}" for text, toxic in labelled_comments
    ]
    (folder / "train.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    model = fasttext.train_supervised(
        input=str(folder / "train.txt"), dim=8, bucket=1000, epoch=60, lr=0.5, thread=1, verbose=0
    )
    model.save_model(str(folder / "toxic.bin"))
    return folder / "toxic.bin"


def test_without_models_both_are_off_and_say_so():
    models = HarmfulModels(None, None)
    assert models.nsfw("any text") is None
    assert models.toxic("any text") is None
    assert harm_score(None) is None


def test_verdicts_carry_their_own_confidence(toxic_path: Path, labelled_comments: list[tuple[str, bool]]):
    models = HarmfulModels(None, toxic_path)
    right = 0
    for text, toxic in labelled_comments:
        verdict = models.toxic(text)
        assert verdict is not None
        label, confidence = verdict
        assert label in ("toxic", "non-toxic")
        assert type(confidence) is float
        assert 0 < confidence <= 1
        right += (label == "toxic") == toxic
    assert right / len(labelled_comments) > 0.9  # it was trained on these: only the labels' way is tested


def test_the_harm_score_is_that_of_the_harmful_label():
    assert harm_score(("nsfw", 0.9)) == 0.9
    assert harm_score(("non-nsfw", 0.75)) == 0.25


def test_one_file_for_both_is_refused(toxic_path: Path, tmp_path: Path):
    copy = tmp_path / "nsfw.bin"
    copy.write_bytes(toxic_path.read_bytes())
    with pytest.raises(UserError, match="same file"):
        HarmfulModels(copy, toxic_path)


def test_a_model_with_other_labels_is_refused(toxic_path: Path):
    with pytest.raises(UserError, match="not nsfw"):
        HarmfulModels(toxic_path, None)


def test_a_missing_model_is_one_line(tmp_path: Path):
    with pytest.raises(UserError, match=r"none\.bin"):
        HarmfulModels(tmp_path / "none.bin", None)
