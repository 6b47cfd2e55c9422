"""Which texts of each evaluation text is checked against."""

import gzip
import json
from pathlib import Path

import pytest

from cs336 import catalog
from cs336.evals.questions import READERS, eval_texts
from cs336.files import UserError


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("CS336_DATA", raising=False)
    monkeypatch.setenv("CS336_DOWNLOADS", str(tmp_path / "downloads"))
    return tmp_path


def test_without_data_sets_the_samples_are_left():
    texts = eval_texts()
    assert list(texts) == ["mmlu sample", "gsm8k sample"]
    assert all(texts.values())


def test_every_evaluation_of_the_catalogue_is_read(shared_data: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CS336_DATA", str(shared_data))
    texts = eval_texts()
    counts = {name: len(own) for name, own in texts.items()}
    expected = {"mmlu": 14_042, "gsm8k": 1_319, "math": 5_000, "alpaca-eval": 805, "simple-safety-tests": 100}
    assert expected.items() <= counts.items()
    assert counts["icl lambada_openai"] == 5_153
    assert counts["icl arc_challenge"] == 1_172
    assert "icl simple_arithmetic_nospaces" not in counts
    for name, own in texts.items():
        framed = [text for text in own if text.startswith("Question:") or text.endswith("Answer:")]
        assert not framed, name
    assert min(len(text.split()) for text in texts["icl piqa"]) >= 5  # a phrase alone is no question
    assert texts["icl winograd_wsc"][0].endswith("because the city councilmen feared violence.")


def test_every_evaluation_entry_has_a_reader():
    # Sets to score on lie below eval/ in a mirror; graded answers of models are no questions.
    entries = {
        name
        for name, entry in catalog.ENTRIES.items()
        for place in (*entry.mirror, *(file.mirror for file in entry.files))
        if place.startswith("eval/")
    }
    assert entries == set(READERS)


def test_validation_documents_are_read_from_the_mirror(machine: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CS336_DATA", str(machine / "mirror"))
    folder = machine / "mirror" / "eval" / "paloma_c4_100_domains" / "val"
    folder.mkdir(parents=True)
    with gzip.open(folder / "val.jsonl.gz", "wt") as file:
        file.write(json.dumps({"text": "a document"}) + "\n")
    assert eval_texts()["paloma-c4-100"] == ["a document"]
    with gzip.open(folder / "val.jsonl.gz", "wt") as file:
        file.write("{}\n")
    with pytest.raises(UserError, match="without text"):
        eval_texts()
