"""The asset that scores extraction: off without the gold pages, a table with them."""

from __future__ import annotations

import pytest

from cs336.files import read_json
from cs336_assets.asset import Step
from cs336_assets.extract import extraction_keeps_the_main_text, extraction_quality


def test_without_gold_it_is_off_and_the_check_passes(tmp_path, monkeypatch):
    monkeypatch.delenv("CS336_DATA", raising=False)
    monkeypatch.setenv("CS336_DOWNLOADS", str(tmp_path / "none"))
    assert extraction_quality(Step(folder=tmp_path)) == {"state": "off, no data"}
    assert extraction_keeps_the_main_text(tmp_path) == (True, {"state": "off, no data", "recall": {}})


@pytest.mark.slow
def test_with_gold_both_modes_are_scored_and_the_default_keeps_the_text(tmp_path, shared_data, monkeypatch):
    monkeypatch.setenv("CS336_DATA", str(shared_data))
    metadata = extraction_quality(Step(folder=tmp_path, num_workers=1))
    assert metadata["state"] == "on" and "| text | main content | 145 |" in metadata["scores"]["markdown"]
    scores = read_json(tmp_path / "quality.json")["scores"]
    assert set(scores) == {"default", "main content"}
    assert scores["default"]["text"]["recall"] == pytest.approx(0.992, abs=0.005)
    assert scores["main content"]["text"]["f1"] == pytest.approx(0.893, abs=0.01)
    passed, figures = extraction_keeps_the_main_text(tmp_path)
    assert passed and set(figures["recall"]) == {"text", "html", "segments"}
