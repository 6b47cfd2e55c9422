"""Written and accounting assets: their figures, and checks that fail when the answers are wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from cs336.documents import Document, write_documents
from cs336.files import read_json, write_json
from cs336.presets import COURSE, TINY
from cs336.tokenizer.bpe import END_OF_TEXT, Tokenizer
from cs336.tokenizer.train import BpeConfig
from cs336.tokens.shards import SplitConfig
from cs336_assets.asset import Step
from cs336_assets.tokenizer import tokenizer
from cs336_assets.tokenizer_study import (
    a_larger_vocabulary_needs_no_more_tokens,
    ids_fit_two_bytes,
    stored_tokenizers,
    tokenizer_study,
    tokenizers_version,
    training_again_gives_the_same_vocabulary,
)
from cs336_assets.written import (
    claims_hold,
    closed_form_counts_the_built_model,
    losses_follow_the_closed_form,
    model_accounting,
    sgd_exercise,
    unicode_answers,
)

SPLIT = SplitConfig(valid_fraction=0.2)
BYTES = Tokenizer({byte: bytes([byte]) for byte in range(256)}, [], [END_OF_TEXT])


def folder(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> list[Path]:
    words = "the harbour was quiet when the first boats came in and nobody had expected them before noon"
    texts = [" ".join(words.split()[i % 7 :] * 3) + f" It was day {i}. Höhe {i} m." for i in range(60)]
    shard = folder(tmp_path / "text")
    write_documents(shard, [Document(f"<{i}>", f"http://x/{i}", "a.warc", i, text) for i, text in enumerate(texts)])
    return [shard]


def broken(path: Path, **changes) -> Path:
    write_json(path, read_json(path) | changes)
    return path.parent


def test_unicode_answers_are_a_page_and_a_file(tmp_path, corpus):
    made = folder(tmp_path / "unicode_answers")
    shown = unicode_answers(Step(made), deduplicated_text=corpus, split=SPLIT)
    page = shown["answers"]["markdown"]
    assert (
        ">>> repr(chr(0))" in page and "UnicodeDecodeError" in page and (made / "unicode.md").read_text() == page + "\n"
    )
    assert claims_hold(made)[0]
    answers = read_json(made / "answers.json")
    write_json(made / "answers.json", [answers[0] | {"holds": False}, *answers[1:]])
    passed, facts = claims_hold(made)
    assert not passed and facts["failed"] == [answers[0]["claim"]]
    write_json(made / "answers.json", answers[:5])
    assert not claims_hold(made)[0]


def test_accounting_has_the_handouts_figures_and_the_presets_model(tmp_path):
    codec = folder(tmp_path / "tokenizer")
    BYTES.save(codec)
    made = folder(tmp_path / "tiny" / "model_accounting")
    shown = model_accounting(Step(made), tokenizer=codec, model=TINY.model, train=TINY.train)
    page = shown["accounting"]["markdown"]
    for figure in ("2,127,057,600", "8.51", "4.513", "149.5", "55.2%", "15.52 GB·B + 34.03 GB | 2 |", "6,584 days"):
        assert figure in page, figure
    shares = read_json(made / "accounting.json")["shapes"]["GPT-2 xl"]["shares"]
    assert sum(shares.values()) == pytest.approx(1)
    assert (made / "shares.png").read_bytes().startswith(b"\x89PNG")
    passed, facts = closed_form_counts_the_built_model(made, codec, TINY.model)
    assert passed and facts["built"] == shown["num_parameters"]
    assert not closed_form_counts_the_built_model(made, codec, COURSE.model)[0]


def test_sgd_decays_or_diverges_as_the_closed_form_says(tmp_path):
    made = folder(tmp_path / "sgd_exercise")
    page = sgd_exercise(Step(made), seed=0)["exercise"]["markdown"]
    verdicts = [line.split("|")[-2].split()[0] for line in page.splitlines()[2:]]
    assert verdicts == ["decays", "decays", "decays", "diverges:"]
    assert losses_follow_the_closed_form(made)[0]
    losses = read_json(made / "exercise.json")["10"]
    losses[5] *= 1.01
    assert not losses_follow_the_closed_form(broken(made / "exercise.json", **{"10": losses}))[0]


def test_the_study_looks_at_training_tokens_and_other_presets(tmp_path, corpus):
    store = {}
    for preset, size in (("one", 320), ("two", 300)):
        store[preset] = folder(tmp_path / preset / "tokenizer")
        tokenizer(Step(store[preset]), deduplicated_text=corpus, bpe=BpeConfig(vocab_size=size), split=SPLIT)
        write_json(store[preset] / "manifest.json", {"fingerprint": preset})
    made = folder(tmp_path / "one" / "tokenizer_study")
    settings = {"deduplicated_text": corpus, "bpe": BpeConfig(vocab_size=320), "split": SPLIT, "seed": 0}
    shown = tokenizer_study(Step(made, preset="one"), tokenizer=store["one"], **settings)
    page, study = shown["study"]["markdown"], read_json(made / "study.json")
    assert set(study["bytes_per_token"]) == {"one", "two"}
    assert study["bytes_per_token"]["one"] > study["bytes_per_token"]["two"] > 1
    assert study["compared"]["two"]["num_shared"] == study["compared"]["two"]["num_theirs"] == 299
    assert "**Beside `two`.** 299 entries are in both, of 319 here and 299 there" in page
    longest = study["longest_tokens"][0]
    assert longest["num_occurrences"] > 0 and longest["token"] in page
    assert {"training_seconds", "training_peak_bytes", "slowest_stage", "hours_for_the_pile"} <= shown.keys()
    assert not {"seconds", "rate"} & set(study)  # what varies from run to run is no part of the artifact

    assert training_again_gives_the_same_vocabulary(made, store["one"])[0]
    assert not training_again_gives_the_same_vocabulary(made, store["two"])[0]
    assert a_larger_vocabulary_needs_no_more_tokens(made)[0] and ids_fit_two_bytes(made)[0]
    sizes = {"257": 1.0, "400": 2.0, "512": 1.9}
    assert not a_larger_vocabulary_needs_no_more_tokens(broken(made / "study.json", bytes_per_token_by_size=sizes))[0]
    assert not ids_fit_two_bytes(broken(made / "study.json", largest_id=65_536))[0]

    again = folder(tmp_path / "again")
    tokenizer_study(Step(again, preset="one", num_workers=2), tokenizer=store["one"], **settings)
    for name in ("study.md", "compression.png"):
        assert (again / name).read_bytes() == (made / name).read_bytes()


def test_tokenizers_of_all_presets_are_found_once_finished(tmp_path: Path):
    versions = [tokenizers_version(tmp_path)]
    for preset in ("b", "a"):
        made = folder(tmp_path / preset / "tokenizer")
        BYTES.save(made)
        assert preset not in stored_tokenizers(tmp_path)  # no manifest: not finished
        write_json(made / "manifest.json", {"fingerprint": preset})
        versions.append(tokenizers_version(tmp_path))
    assert list(stored_tokenizers(tmp_path)) == ["a", "b"]
    write_json(tmp_path / "b" / "tokenizer" / "manifest.json", {"fingerprint": "new"})
    versions.append(tokenizers_version(tmp_path))
    assert len(set(versions)) == 4
