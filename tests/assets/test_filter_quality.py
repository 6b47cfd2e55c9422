"""The filters' quality as assets: off without data, figures with it."""

from pathlib import Path

import pytest

from cs336.filters.harmful import HarmfulModels
from cs336.filters.pipeline import FilterConfig
from cs336.filters.quality import QualityConfig
from cs336.filters.toxicity import ToxicityConfig
from cs336_assets.asset import Step
from cs336_assets.filter_quality import article_classifier, gopher_agreement, language_accuracy, pii_accuracy
from cs336_assets.filters import TOXICITY_FILE, toxicity_classifier

SETTINGS = {
    language_accuracy: {"filters": FilterConfig()},
    pii_accuracy: {},
    gopher_agreement: {},
    article_classifier: {"quality": QualityConfig(), "filters": FilterConfig()},
    toxicity_classifier: {"toxicity": ToxicityConfig()},
}


@pytest.fixture
def real_data(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CS336_DATA", str(shared_data))
    return shared_data


@pytest.mark.parametrize("asset", SETTINGS, ids=lambda asset: asset.__name__)
def test_without_its_data_an_asset_is_off_and_says_so(asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CS336_DATA", raising=False)
    monkeypatch.setenv("CS336_DOWNLOADS", str(tmp_path / "downloads"))
    shown = asset(Step(folder=tmp_path), **SETTINGS[asset])
    assert shown == {"state": "off, no data"}
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_toxicity_can_be_left_to_dolmas_model(tmp_path: Path, real_data: Path):
    shown = toxicity_classifier(Step(folder=tmp_path), toxicity=ToxicityConfig(enabled=False))
    assert shown == {"state": "off, by the preset"}


def test_the_personal_data_of_the_labelled_sentences_is_found_and_nothing_else(tmp_path: Path, real_data: Path):
    shown = pii_accuracy(Step(folder=tmp_path))
    lines = shown["scores"]["markdown"].splitlines()
    assert lines[2].startswith("| EMAIL_ADDRESS | 100.0% (95.2–100.0) of 77 | 100.0% (95.2–100.0) of 77 |")
    assert "PHONE_NUMBER | 100.0% (93.9–100.0) of 59 | 100.0% (93.6–100.0) of 56 |" in lines[4]
    assert "4f8a:c99e:dc86:faf9:5988:5f63:375e:8a2a" in shown["out_of_scope"]["markdown"]  # IPv6 is not asked for


@pytest.mark.slow
def test_language_figures_tell_the_detectors_and_lengths_apart(tmp_path: Path, real_data: Path):
    shown = language_accuracy(Step(folder=tmp_path), filters=FilterConfig())
    rows = [line.split(" | ") for line in shown["summary"]["markdown"].splitlines()[2:]]
    right = {(row[0].strip("| "), int(row[1])): float(row[2].partition("%")[0]) for row in rows}
    assert right["lid.176", 1] > 77  # measured: 78.2
    assert right["resiliparse", 1] < right["lid.176", 1] < right["lid.176", 5]
    assert len(shown["by_language"]["markdown"].splitlines()) == 79 + 2
    assert (tmp_path / "accuracy.png").stat().st_size > 5_000


def test_the_toxicity_model_trained_here_meets_the_handouts_examples(tmp_path: Path, real_data: Path):
    shown = toxicity_classifier(Step(folder=tmp_path), toxicity=ToxicityConfig(bucket=20_000))
    assert shown["state"] == "on: fastText"
    assert shown["average_precision"] > 0.95  # measured: 0.974; chance is 0.5
    assert max(shown["calibration_error"]) < 0.06
    models = HarmfulModels(own_toxic=tmp_path / TOXICITY_FILE)
    insults = "You are a worthless idiot. Nobody likes you, you disgusting pig. Go away, you stupid moron."
    complaint = "The new update is a bit sh*t, I wish the menu were where it was before."
    verdicts = [models.toxic(text) for text in (insults, complaint)]
    assert [verdict and verdict[0] for verdict in verdicts] == ["toxic", "non-toxic"]


@pytest.mark.slow
def test_forums_and_log_ins_of_a_site_never_seen_are_crawl_and_an_encyclopaedia_is_reference(
    tmp_path: Path, real_data: Path
):
    shown = article_classifier(Step(folder=tmp_path), quality=QualityConfig(bucket=20_000), filters=FilterConfig())
    assert shown["split_by"] == "site"
    assert shown["average_precision"] > 0.8  # chance is near 0.5
    rows = [line.split(" | ") for line in shown["unseen_sites"]["markdown"].splitlines()[2:]]
    scores = {row[1]: float(row[0].strip("| ")) for row in rows}
    forums = [score for url, score in scores.items() if "forum" in url or "login" in url]
    assert len(forums) >= 10
    assert max(forums) < 0.5
    assert scores["http://en.wikipedia.org/wiki/Mona_Lisa"] > 0.5
