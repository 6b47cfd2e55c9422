"""The data assignment's run: GPT-2's tokens, text that is only evaluated on, and the bundle that is handed in."""

import gzip
import json
from dataclasses import replace

import pytest

from cs336.documents import Document, read_documents, write_documents
from cs336.files import UserError
from cs336.filters.pipeline import FilterConfig, FilterModels, decide, measure_documents
from cs336.preset_lookup import find_preset
from cs336.preset_values import changed
from cs336.presets import DATA_COURSE
from cs336.store import MANIFEST, Store
from cs336.tokenizer.bpe import Tokenizer
from cs336.tokenizer.train import BpeConfig
from cs336.tokens.shards import SplitConfig, concatenate
from cs336_assets.asset import CHECKS, STAGES, Step, code_version
from cs336_assets.dedup import no_document_is_an_evaluation_text, no_evaluation_leaked
from cs336_assets.filters import INDEX_FILE, eval_index, the_validation_text_is_indexed
from cs336_assets.submission import (
    CONTAMINATION_FILE,
    FREE_SETTINGS,
    best_row,
    no_validation_text_was_trained_on,
    submission,
    the_courses_settings_were_kept,
)
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
    curve = [row for row in rows if "valid_loss" in row]
    losses = [row["valid_loss"] for row in curve if row["num_valid_tokens"] == curve[-1]["num_valid_tokens"]]
    assert facts["best_valid_loss"] == min(losses) and len(losses) < len(curve)
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

    def told(preset):
        settings = (getattr(preset, name) for name in CHECKS["the_courses_settings_were_kept"].settings)
        return the_courses_settings_were_kept(*folders, *settings)

    assert told(micro)[0]
    passed, facts = told(replace(micro, validation="paloma-c4-100"))
    assert not passed and {"model", "num_steps", "batch_size"} <= set(facts["changed"])
    assert not set(facts["changed"]) & set(FREE_SETTINGS)
    assert told(DATA_COURSE) == (True, {"changed": []})
    other = {"bpe": {"vocab_size": 1_000}, "split": {"valid_fraction": 0.5}, "train": {"valid_interval": 1}}
    passed, facts = told(changed(replace(DATA_COURSE, validation="mmlu"), other))
    assert not passed and set(facts["changed"]) == {"bpe", "split", "valid_interval", "validation"}


def test_the_best_loss_is_one_over_all_of_the_text_or_as_much_as_the_course_evaluates_on():
    rows = [(100, 1.0), (65_536_000, 3.4), (70_000_000, 3.5), (90_000_000, 3.6)]
    curve = [{"num_valid_tokens": tokens, "valid_loss": loss} for tokens, loss in rows]
    assert best_row(curve, 512)["valid_loss"] == 3.4 and best_row(curve, 513)["valid_loss"] == 3.5
    curve[-1]["num_valid_tokens"] = 200  # a short text: its last row is all of it
    assert best_row([curve[0], curve[-1]], 512)["valid_loss"] == 3.6


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


def _validation_file(data, texts):
    place = data / "eval" / "paloma_c4_100_domains" / "val"
    place.mkdir(parents=True)
    with gzip.open(place / "val_c4_100_domains.jsonl.gz", "wt", encoding="utf-8") as file:
        rows = ({"text": text, "id": str(number), "source": "c4_100_domains"} for number, text in enumerate(texts))
        file.writelines(json.dumps(row) + "\n" for row in rows)


SENTENCE = "a page of some site that is only ever evaluated on and so never"
VALIDATION = [" ".join(f"{word}{number}" for word in SENTENCE.split()) for number in range(30)]
VALIDATION += ["Short one.", "..."]


def test_no_part_of_the_validation_text_enters_the_training_data(tmp_path, monkeypatch):
    monkeypatch.setenv("CS336_DATA", str(tmp_path / "data"))
    _validation_file(tmp_path / "data", VALIDATION)
    for name in ("index", "clean", "copied"):
        (tmp_path / name).mkdir()
    told = eval_index(Step(tmp_path / "index"))
    assert "| paloma-c4-100 | 32 |" in told["evals"]["markdown"]
    passed, facts = the_validation_text_is_indexed(tmp_path / "index", "paloma-c4-100")
    assert passed and facts == {"num_documents": 32, "num_missing": 0}

    quote = "Somebody wrote: " + " ".join(VALIDATION[3].split()[:13]).upper()
    texts = [VALIDATION[7], quote, "Read this.\nshort ONE\nThat was it.", " ".join(VALIDATION[3].split()[:12])]
    documents = [Document(f"<{n}>", f"http://x.org/{n}", "a.warc", n, text) for n, text in enumerate(texts)]
    models = FilterModels(filters=("contaminated",), evals=tmp_path / "index" / INDEX_FILE)
    scores, _, _ = measure_documents(documents, models)
    decisions = decide(scores, FilterConfig(languages=()))
    assert decisions["kept"].to_list() == [False, False, False, True]  # twelve words in a row are no copy
    assert set(decisions["eval_hits"].drop_nulls()) == {"paloma-c4-100: 1", f"paloma-c4-100: {14 - 13 + 1}"}

    write_documents(tmp_path / "clean", [documents[3]])
    write_documents(tmp_path / "copied", documents)
    for folder, clean in (("clean", True), ("copied", False)):
        inputs = ([tmp_path / folder], [], tmp_path / "index", FilterConfig())
        assert no_evaluation_leaked(*inputs)[0] == clean
        assert no_document_is_an_evaluation_text(inputs[0], *inputs[2:])[0] == clean


def test_an_index_without_the_validation_text_stops_the_flow(tmp_path, monkeypatch):
    monkeypatch.setenv("CS336_DATA", str(tmp_path / "data"))
    (tmp_path / "index").mkdir()
    eval_index(Step(tmp_path / "index"))
    assert the_validation_text_is_indexed(tmp_path / "index", "")[0]
    with pytest.raises(UserError, match=r"paloma-c4-100 .* is not on this machine: run `cs336 data fetch"):
        the_validation_text_is_indexed(tmp_path / "index", "paloma-c4-100")
    _validation_file(tmp_path / "data", VALIDATION)  # put there after the index was made
    passed, facts = the_validation_text_is_indexed(tmp_path / "index", "paloma-c4-100")
    assert not passed and facts["num_missing"] == 31  # the text without a word can match nothing
    assert CHECKS["the_validation_text_is_indexed"].blocking
    assert code_version(STAGES["eval_index"], DATA_COURSE) != _version_without(monkeypatch, tmp_path)


def _version_without(monkeypatch, folder):
    monkeypatch.setenv("CS336_DATA", str(folder / "nowhere"))
    return code_version(STAGES["eval_index"], DATA_COURSE)


def test_contamination_is_published(handed_in, tmp_path):
    folder = handed_in.artifacts / "submission"
    shared = json.loads((folder / CONTAMINATION_FILE).read_text())
    documents = [
        each for shard in (handed_in.artifacts / "deduplicated_text").iterdir() for each in read_documents(shard)
    ]
    assert shared["num_checked"] == len(documents) and shared["ngram_words"] == 13
    assert [row[0] for row in shared["evaluations"]] == ["gsm8k sample", "mmlu sample"]
    assert shared["num_trained_on"] == 0 == sum(row[2] + row[3] for row in shared["evaluations"])
    page = (folder / "description.md").read_text()
    assert "**Contamination.** Checked against 2 evaluations" in page and "| mmlu sample |" in page
    assert no_validation_text_was_trained_on(folder, "")[0]
    assert not no_validation_text_was_trained_on(folder, "paloma-c4-100")[0]  # it was not even looked for
    assert no_validation_text_was_trained_on(folder, "mmlu sample")[0]
    spoilt = shared | {"evaluations": [["paloma-c4-100", 5, 0, 1]]}
    (tmp_path / CONTAMINATION_FILE).write_text(json.dumps(spoilt))
    assert not no_validation_text_was_trained_on(tmp_path, "paloma-c4-100")[0]


def test_the_bundle_is_made_by_a_plain_function(handed_in, tmp_path, monkeypatch):
    monkeypatch.setenv("CS336_PRESETS", handed_in.environment["CS336_PRESETS"])
    micro, at = find_preset("micro"), handed_in.artifacts
    shards = sorted(path.parent for path in (at / "token_shards").glob(f"*/{MANIFEST}"))
    texts = [sorted((at / name).iterdir()) for name in ("filtered_text", "deduplicated_text")]
    rest = (at / "validation_tokens", at / "eval_index", *texts, at / "filter_ledger", at / "near_duplicates")
    settings = (micro.model, micro.train, micro.seed)
    told = submission(Step(tmp_path, device="cpu"), at / "base_model", shards, *rest, *settings)
    assert told["exact_loss"] == json.loads((at / "submission" / "submission.json").read_text())["exact_loss"]
