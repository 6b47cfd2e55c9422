"""Training of two-class models: the split, the calibration, and what both show."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from cs336.files import UserError, read_json
from cs336.filters.trained import TrainedConfig, TrainedModel, _split, calibration_file, normalize, train

CONFIG = TrainedConfig(min_documents_per_class=20, bucket=2_000, epochs=20)


def noisy(count: int, *, seed: int) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Two classes, 25 sites each, that share most words: no model can be sure of all."""
    generator = random.Random(seed)
    common, ours, theirs = ([f"{kind}{n}" for n in range(30)] for kind in ("c", "o", "t"))

    def document(own: list[str], number: int) -> str:
        words = generator.choices(common, k=12) + generator.choices(own, k=generator.randrange(3))
        return " ".join([*words, f"n{number}"])

    return tuple(
        [(f"{name}{n % 25}.org", document(own, n)) for n in range(count)] for name, own in (("o", ours), ("t", theirs))
    )


POSITIVES, NEGATIVES = noisy(600, seed=0)


def test_the_three_parts_share_no_site():
    rows = [(label, site, text) for label, docs in ((True, POSITIVES), (False, NEGATIVES)) for site, text in docs]
    site_of = {text: site for _, site, text in rows}
    parts = _split(rows, CONFIG, by_site=True)
    sites = [{site_of[text] for _, text in part} for part in parts]
    assert not (sites[0] & sites[1] or sites[0] & sites[2] or sites[1] & sites[2])
    assert sum(map(len, parts)) == len(rows)
    assert [len(each) for each in sites] == [8, 8, 34]


def test_the_scores_are_calibrated_probabilities_on_sites_never_seen(tmp_path: Path):
    report = train(*noisy(3_000, seed=1), tmp_path / "m.ftz", CONFIG, positive="yes", negative="no")
    assert report.split_by == "site"
    before, after = report.calibration_error
    assert before is not None and after is not None
    assert after < min(before, 0.09)  # each of the ten bins is about as often right as it says
    assert report.average_precision is not None
    assert 0.7 < report.average_precision < 1.0
    assert len(report.held_out) == report.num_held_out
    model = TrainedModel(tmp_path / "m.ftz", positive="yes", negative="no")
    sure = model.probability(" ".join(f"o{n}" for n in range(12)))
    assert sure > 0.9
    assert model.probability(" ".join(f"t{n}" for n in range(12))) < 0.1


def test_the_stored_calibration_is_what_scores(tmp_path: Path):
    train(POSITIVES, NEGATIVES, tmp_path / "m.ftz", CONFIG, positive="yes", negative="no")
    raw = TrainedModel(tmp_path / "m.ftz", positive="yes", negative="no").raw_score(normalize("c1 o2"))
    beside = calibration_file(tmp_path / "m.ftz")
    assert set(read_json(beside)) == {"slope", "offset"}
    beside.unlink()
    assert TrainedModel(tmp_path / "m.ftz", positive="yes", negative="no").probability("c1 o2") == pytest.approx(raw)


def test_a_quantised_model_is_smaller_and_says_nearly_the_same(tmp_path: Path):
    for quantize in (True, False):
        config = replace(CONFIG, quantize=quantize)
        train(POSITIVES, NEGATIVES, tmp_path / f"{quantize}.bin", config, positive="yes", negative="no")
    small, large = (TrainedModel(tmp_path / f"{q}.bin", positive="yes", negative="no") for q in (True, False))
    assert (tmp_path / "True.bin").stat().st_size < (tmp_path / "False.bin").stat().st_size / 3
    gaps = [abs(small.raw_score(text) - large.raw_score(text)) for _, text in POSITIVES[:100]]
    assert sum(gaps) / len(gaps) < 0.05


def test_few_sites_are_split_by_document(tmp_path: Path):
    one_site = [("a.org", text) for _, text in POSITIVES]
    report = train(one_site, NEGATIVES, tmp_path / "m.ftz", CONFIG, positive="yes", negative="no")
    assert report.split_by == "document"


def test_another_models_file_is_refused(tmp_path: Path):
    train(POSITIVES, NEGATIVES, tmp_path / "m.ftz", CONFIG, positive="yes", negative="no")
    with pytest.raises(UserError, match="another model"):
        TrainedModel(tmp_path / "m.ftz", positive="wiki", negative="cc")


def test_normalized_text_is_one_line_without_fasttexts_own_words():
    assert normalize("It's __label__wiki\nA_b </s>") == "it ' s _ _ label _ _ wiki a _ b < / s >"
