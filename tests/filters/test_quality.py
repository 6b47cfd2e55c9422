"""Training and use of the quality classifier."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from cs336.files import UserError
from cs336.filters.quality import QualityConfig, QualityModel, hosts_of, is_reference, train_quality

CONFIG = QualityConfig(min_documents_per_class=20, max_documents_per_class=200, bucket=2_000, epochs=20)
SCHOLARLY = [
    *("the", "treaty", "was", "signed", "by", "both", "kingdoms", "after", "a", "century", "of", "war"),
    *("and", "its", "text", "survives", "in", "the", "archive"),
]
FORUM = [
    *("login", "register", "reply", "quote", "posts", "views", "last", "joined", "admin", "moderator"),
    *("page", "next", "members", "online", "password"),
]


def documents(vocabulary: list[str], count: int, *, seed: int) -> list[tuple[str, str]]:
    generator = random.Random(seed)
    return [("", " ".join(generator.choices(vocabulary, k=40)) + f"\n{seed}-{number}") for number in range(count)]


POSITIVES, NEGATIVES = documents(SCHOLARLY, 150, seed=1), documents(FORUM, 120, seed=2)


def test_the_classes_are_told_apart_and_the_report_says_how_well(tmp_path: Path):
    report = train_quality(POSITIVES, NEGATIVES, tmp_path / "quality.bin", CONFIG)
    assert (report.state, report.num_positives, report.num_negatives) == ("on: fastText", 120, 120)  # balanced
    assert report.num_held_out == report.num_calibration == 36  # 15 % each
    assert [row.threshold for row in report.thresholds] == [tenths / 10 for tenths in range(1, 10)]
    assert report.thresholds[4].precision == report.thresholds[4].recall == 1.0
    model = QualityModel(tmp_path / "quality.bin")
    score = model.score("Treaty of the two kingdoms:\nsigned after a century of war")
    label, confidence = model.classify("Treaty of the two kingdoms:\nsigned after a century of war")
    assert label == "wiki"
    assert confidence == score
    assert confidence > 0.5
    label, confidence = model.classify("Login | Register | 3 posts, 7 views")
    assert label == "cc"
    assert type(confidence) is float
    assert confidence > 0.5


def test_classes_that_do_not_differ_score_no_better_than_chance(tmp_path: Path):
    report = train_quality(documents(FORUM, 150, seed=3), NEGATIVES, tmp_path / "quality.bin", CONFIG)
    precision = report.thresholds[4].precision
    assert precision is None or precision < 0.9


def test_the_same_documents_in_any_order_give_the_same_bytes(tmp_path: Path):
    config = replace(CONFIG, max_documents_per_class=50)
    first = train_quality(POSITIVES, NEGATIVES, tmp_path / "a" / "q.bin", config)
    second = train_quality(POSITIVES[::-1], NEGATIVES[::-1], tmp_path / "b" / "q.bin", config)
    train_quality(POSITIVES, NEGATIVES, tmp_path / "c" / "q.bin", replace(config, seed=1))
    assert first == second
    assert first.num_positives == 50
    assert (tmp_path / "a" / "q.bin").read_bytes() == (tmp_path / "b" / "q.bin").read_bytes()
    assert (tmp_path / "a" / "q.bin").read_bytes() != (tmp_path / "c" / "q.bin").read_bytes()
    # Nothing is left beside them.
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["q.bin", "q.bin.calibration.json"]


def test_too_few_documents_make_no_model_and_say_so(tmp_path: Path):
    report = train_quality(POSITIVES[:3] * 50, NEGATIVES, tmp_path / "quality.bin", CONFIG)
    assert report.state == "off, no model: 3 wiki and 120 cc documents, 20 of each needed"
    assert not (tmp_path / "quality.bin").exists()


def test_without_a_model_there_is_no_score():
    assert QualityModel(None).score("text") is None
    with pytest.raises(ValueError, match="train one"):
        QualityModel(None).classify("text")


def test_a_model_of_something_else_is_refused(shared_data: Path):
    with pytest.raises(UserError, match="another model"):
        QualityModel(shared_data / "weights" / "lid.176.ftz")


def test_reference_pages_are_known_by_pattern_or_by_host():
    hosts = hosts_of(["https://www.NASA.gov/x", "http://bbc.co.uk:80/", "not an address", "http://[bad"])
    assert hosts == {"nasa.gov", "bbc.co.uk"}
    off = QualityConfig()
    assert not is_reference("https://nasa.gov/y", off)
    assert is_reference("https://nasa.gov/y", off, hosts)
    assert not is_reference("https://evil-nasa.gov/y", off, hosts)
    assert is_reference("http://localhost/stdlib/re.html", QualityConfig(reference_pattern="/stdlib/"))
