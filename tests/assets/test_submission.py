"""The data assignment's run: GPT-2's tokens, text that is only evaluated on, and the bundle that is handed in."""

import gzip
import json

import pytest

from cs336.presets import DATA_COURSE, find_preset
from cs336.store import MANIFEST, Store
from cs336.tokenizer.bpe import Tokenizer
from cs336.tokenizer.train import BpeConfig
from cs336.tokens.shards import SplitConfig, concatenate
from cs336_assets.asset import Step
from cs336_assets.submission import FREE_SETTINGS, submission, the_courses_settings_were_kept
from cs336_assets.tokenizer import tokenizer
from cs336_assets.tokens import both_splits_have_tokens, validation_tokens


@pytest.fixture(scope="module")
def handed_in(finished, tmp_path_factory):
    """The finished project with its submission."""
    project = finished.copy(tmp_path_factory.mktemp("submission"))
    project.run("submission")
    return project


def test_the_bundle_says_loss_curve_data_and_what_it_was_made_from(handed_in):
    folder = handed_in.artifacts / "submission"
    facts = json.loads((folder / "submission.json").read_text())
    rows = [json.loads(line) for line in (handed_in.artifacts / "base_model" / "metrics.jsonl").open()]
    losses = [row["valid_loss"] for row in rows if "valid_loss" in row]
    assert facts["best_valid_loss"] == min(losses)
    # The last recorded loss is that of the final model on all held-out tokens, as the exact one is.
    assert facts["exact_loss"] == pytest.approx(losses[-1], abs=0.02)
    assert abs(facts["sampled_loss"] - facts["exact_loss"]) < 6 * facts["sampled_standard_error"] + 0.02
    page = (folder / "description.md").read_text()
    assert f"{facts['best_valid_loss']:.4f}" in page and "| gopher |" in page and "Deviation" not in page
    assert (folder / "curve.png").stat().st_size > 1_000
    pinned = {row["artifact"]: row for row in json.loads((folder / "pinned.json").read_text())}
    store = Store("micro", handed_in.artifacts.parent)
    assert pinned["base_model"]["fingerprint"] == store.fingerprint("base_model")
    assert {"crawl/docs-00000", "deduplicated_text/docs-00000", "tokenizer"} <= pinned.keys()
    assert "submission" not in pinned


def test_other_settings_than_the_courses_are_told(handed_in, monkeypatch):
    monkeypatch.setenv("CS336_PRESETS", handed_in.environment["CS336_PRESETS"])
    micro = find_preset("micro")
    folders = (handed_in.artifacts / "submission", handed_in.artifacts / "base_model")
    assert the_courses_settings_were_kept(*folders, micro.model, micro.train, "")[0]
    passed, facts = the_courses_settings_were_kept(*folders, micro.model, micro.train, "paloma-c4-100")
    assert not passed and {"model", "num_steps", "batch_size"} <= set(facts["changed"])
    assert not set(facts["changed"]) & set(FREE_SETTINGS)
    assert the_courses_settings_were_kept(*folders, DATA_COURSE.model, DATA_COURSE.train, "paloma-c4-100")[0]


def test_a_text_that_is_only_evaluated_on_is_the_held_out_one(shared_data, tmp_path, monkeypatch):
    data = tmp_path / "data"
    texts = [f"Document {number} of a site, only to be evaluated on." for number in range(40)]
    for split, some in (("val", texts), ("test", ["never read"])):
        place = data / "eval" / "paloma_c4_100_domains" / split
        place.mkdir(parents=True)
        with gzip.open(place / f"{split}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": text, "id": str(number)}) + "\n" for number, text in enumerate(some))
    (data / "tokenizer").symlink_to(shared_data / "tokenizer")
    monkeypatch.setenv("CS336_DATA", str(data))
    for name in ("tokenizer", "validation", "none"):
        (tmp_path / name).mkdir()
    bpe = BpeConfig(vocab_size=50_257, pretrained="gpt2-vocab")
    told = tokenizer(Step(tmp_path / "tokenizer"), [], bpe, SplitConfig())
    assert told["vocab_size"] == 50_257
    told = validation_tokens(Step(tmp_path / "validation"), tmp_path / "tokenizer", "paloma-c4-100")
    assert told["num_documents"] == 40
    tokens = concatenate([tmp_path / "validation"], "valid")
    read = Tokenizer.load(tmp_path / "tokenizer").decode(tokens[: len(tokens)].tolist())
    assert read == "".join(f"{text}<|endoftext|>" for text in texts)
    assert len(concatenate([tmp_path / "validation"], "train")) == 0
    told = validation_tokens(Step(tmp_path / "none"), tmp_path / "tokenizer", "")
    assert told["num_tokens"] == 0
    assert not both_splits_have_tokens([tmp_path / "none"], tmp_path / "validation", DATA_COURSE.model)[0]


def test_the_bundle_is_made_by_a_plain_function(handed_in, tmp_path, monkeypatch):
    monkeypatch.setenv("CS336_PRESETS", handed_in.environment["CS336_PRESETS"])
    micro, at = find_preset("micro"), handed_in.artifacts
    shards = sorted(path.parent for path in (at / "token_shards").glob(f"*/{MANIFEST}"))
    rest = (at / "validation_tokens", at / "filter_ledger", at / "near_duplicates")
    told = submission(Step(tmp_path, device="cpu"), at / "base_model", shards, *rest, micro.train, micro.seed)
    assert told["exact_loss"] == json.loads((at / "submission" / "submission.json").read_text())["exact_loss"]
