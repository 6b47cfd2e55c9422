"""Language identification, with the model file and without."""

import inspect
import random
import statistics
import unittest
from pathlib import Path

import pytest

from cs336.files import read_jsonl
from cs336.filters.language import LanguageModel, identify_by_rank

ENGLISH = "The committee agreed that the old bridge over the river should be repaired before winter."
GERMAN = "Der Ausschuss war sich einig, dass die alte Brücke über den Fluss vor dem Winter repariert wird."
CHINESE_SIMPLIFIED = "委员会一致认为，河上的旧桥应该在冬天之前修好。这座桥已经有一百多年的历史了。"
CHINESE_TRADITIONAL = "委員會一致認為，河上的舊橋應該在冬天之前修好。這座橋已經有一百多年的歷史了。"


@pytest.fixture(params=["resiliparse", "lid.176"])
def model(request) -> LanguageModel:
    if request.param == "resiliparse":
        return LanguageModel(None)
    return LanguageModel(request.getfixturevalue("shared_data") / "weights" / "lid.176.ftz")


@pytest.mark.parametrize(
    ("text", "code"),
    [(ENGLISH, "en"), (GERMAN, "de"), (CHINESE_SIMPLIFIED, "zh"), (CHINESE_TRADITIONAL, "zh")],
)
def test_one_sentence_is_enough(model: LanguageModel, text: str, code: str):
    found, confidence = model.identify(text)
    assert found == code
    assert type(confidence) is float
    assert 0 < confidence <= 1


def test_line_breaks_are_harmless(model: LanguageModel):
    assert model.identify(ENGLISH.replace(" ", "\n"))[0] == "en"


@pytest.mark.parametrize("text", ["", " \n ", "1234 5678", "***"])
def test_a_text_without_words_is_not_confidently_english(model: LanguageModel, text: str):
    language, confidence = model.identify(text)
    assert not (language == "en" and confidence >= 0.65)
    assert 0 < confidence <= 1


def test_the_name_tells_which_detector_it_is(shared_data: Path):
    assert LanguageModel(None).name == "resiliparse"
    assert LanguageModel(shared_data / "weights" / "lid.176.ftz").name == "lid.176"


def test_english_module_documentation_passes_the_presets_threshold():
    members = [member for _, member in inspect.getmembers(unittest.TestCase) if inspect.getdoc(member)]
    documents = [inspect.getdoc(module) or "" for module in (random, statistics, unittest)]
    documents.append("\n\n".join(inspect.getdoc(member) or "" for member in members))
    for text in documents:
        language, confidence = identify_by_rank(text)
        assert language == "en", text[:80]
        assert confidence >= 0.65, text[:80]


def test_the_threshold_tells_english_from_other_languages_on_labelled_sentences(shared_data: Path):
    by_language: dict[str, list[str]] = {}
    for row in read_jsonl(shared_data / "labelled" / "langid" / "dev" / "lingua_sentences.jsonl.gz"):
        by_language.setdefault(row["lang"], []).append(row["text"])

    def share_passing(texts: list[str]) -> float:
        verdicts = [identify_by_rank(text) for text in texts]
        return sum(language == "en" and confidence >= 0.65 for language, confidence in verdicts) / len(texts)

    def passages(sentences: list[str]) -> list[str]:
        return ["\n".join(sentences[start : start + 5]) for start in range(0, 100, 5)]

    english = by_language.pop("en")
    others = [text for sentences in by_language.values() for text in sentences[:20]]
    # Measured: 0.80 of English sentences, 0.012 of others; all and none of five sentences together.
    assert share_passing(english) > 0.7
    assert share_passing(others) < 0.03
    assert share_passing(passages(english)) == 1.0
    assert share_passing([text for sentences in by_language.values() for text in passages(sentences)[:5]]) < 0.002
