"""The data ablation in the graph: three variants of one text, equal tokens, held-out text in none of them."""

import json
import shutil
import statistics

import numpy as np
import polars as pl
import pytest

from benchmarks import experiments
from cs336.crawl.local_files import TextFiles
from cs336.documents import Document, read_documents, write_documents, write_table
from cs336.preset_lookup import find_preset
from cs336.store import Store
from cs336.tokenizer.bpe import Tokenizer
from cs336.tokens.index import read_index
from cs336.tokens.shards import SplitConfig
from cs336.train.data_ablation import VARIANTS
from cs336_assets.asset import Step, version_of
from cs336_assets.data_ablation import (
    clean_text,
    no_variant_holds_held_out_text,
    the_pipeline_lowers_the_loss,
    variant_tokens,
)
from cs336_assets.filters import DECISIONS_FILE
from cs336_assets.flow import STAGES

STAGE_OF = dict(zip(VARIANTS, ("extracted_text", "filtered_text", "deduplicated_text"), strict=True))


@pytest.fixture(scope="module")
def ablated(finished, tmp_path_factory):
    """The finished project with its data ablation, two runs at a time."""
    project = finished.copy(tmp_path_factory.mktemp("ablation"), CS336_RUNS_AT_ONCE="2", CS336_WORKERS="2")
    printed = project.run("data_ablation", "micro", "--cells", "filtered-seed-0")
    for made in ("clean_text", "variant_tokens[deduplicated]", "data_ablation[filtered-seed-0]"):
        assert f"micro/{made}: made" in printed  # one run needs the arrays of all variants, and no other run
    assert "filtered-seed-1" not in printed and "study" not in printed
    printed = project.run("data_ablation")
    assert "data_ablation[filtered-seed-0]: unchanged" in printed and "data_ablation_study: made" in printed
    return project


def _variants(project):
    return [project.artifacts / "variant_tokens" / name for name in VARIANTS]


@pytest.mark.slow
def test_each_variant_is_the_text_of_its_stage_without_what_is_held_out(ablated):
    held_out = {each.id for each in read_documents(ablated.artifacts / "clean_text")}
    for folder in _variants(ablated):
        facts = json.loads((folder / "variant.json").read_text())
        stage = ablated.artifacts / STAGE_OF[folder.name]
        documents = {each.id: each for shard in sorted(stage.iterdir()) for each in read_documents(shard)}
        trained_on = list(read_index(folder, "train"))
        assert facts["num_documents"] == len(trained_on) > 0
        assert len(trained_on) + sum(facts["left_out"].values()) == len(documents)
        assert {each.id for each in trained_on} <= documents.keys()
        assert held_out and not {each.id for each in trained_on} & held_out
        assert not list(read_index(folder, "valid"))
    sizes = [json.loads((folder / "variant.json").read_text())["num_tokens"] for folder in _variants(ablated)]
    assert sizes[0] > sizes[1] > sizes[2]
    languages = [
        json.loads((folder / "variant.json").read_text())["bytes_by_language"] for folder in _variants(ablated)
    ]
    assert len(languages[0]) > 1 and set(languages[1]) == set(languages[2]) == {"en"}


@pytest.mark.slow
def test_runs_differ_in_nothing_but_text_and_seed(ablated):
    folders = sorted((ablated.artifacts / "data_ablation").iterdir())
    assert [folder.name for folder in folders] == sorted(f"{name}-seed-{seed}" for name in VARIANTS for seed in (0, 1))
    outcomes = [json.loads((folder / "outcome.json").read_text()) for folder in folders]
    assert len({json.dumps([each["model"], each["train"], each["num_tokens"]]) for each in outcomes}) == 1
    for folder in folders:
        run = json.loads((folder / "run.json").read_text())
        assert run["token_shards"] == [f"variant_tokens/{folder.name.partition('-seed-')[0]}", "clean_text"]
    assert len({each["valid_loss"] for each in outcomes}) == len(outcomes)


@pytest.mark.slow
def test_the_study_has_mean_spread_and_difference_of_the_runs(ablated):
    folder = ablated.artifacts / "data_ablation_study"
    study = json.loads((folder / "study.json").read_text())
    losses = {name: [study["runs"][f"{name}-seed-{seed}"]["valid_loss"] for seed in (0, 1)] for name in VARIANTS}
    for name, each in study["variants"].items():
        assert each["valid_loss"] == pytest.approx(statistics.fmean(losses[name]))
        assert each["spread"] == pytest.approx(statistics.stdev(losses[name]))
        assert each["epochs"] == pytest.approx(2_560 / each["num_tokens"])
    before, after, mean, half_width, num_seeds = study["differences"][2]
    assert (before, after, num_seeds) == ("unfiltered", "deduplicated", 2)
    assert mean == pytest.approx(statistics.fmean(losses[after]) - statistics.fmean(losses[before]))
    dropped = dict(study["dropped"])
    counts = [
        sum(1 for shard in (ablated.artifacts / stage).iterdir() for _ in read_documents(shard))
        for stage in STAGE_OF.values()
    ]
    by_filters = sum(count for stage, count in dropped.items() if stage.startswith("filters: "))
    assert counts[0] - by_filters == counts[1]
    assert counts[1] - dropped["exact lines: too few words left"] - dropped["near-duplicates"] == counts[2]
    metadata = json.loads((folder / "manifest.json").read_text())["metadata"]
    assert metadata["summary"]["markdown"].count("\n| ") == 3 and "read more often" in metadata["comment"]["markdown"]
    for name in ("means.png", "curves.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    passed, facts = the_pipeline_lowers_the_loss(folder)
    assert passed == (mean < -half_width) and facts["difference"] == mean


@pytest.mark.slow
def test_held_out_text_in_a_variant_is_found(ablated, tmp_path):
    folders = [ablated.artifacts / name for name in ("clean_text", "tokenizer")]
    passed, facts = no_variant_holds_held_out_text(_variants(ablated), *folders)
    assert passed and facts["num_checked"] > 20
    held_out = next(each for each in read_documents(folders[0]) if len(each.text.split()) > 40)
    middle = " ".join(held_out.text.split()[10:30])  # a part of it is enough
    ids = Tokenizer.load(folders[1]).encode(middle)
    spoilt = tmp_path / "filtered"
    shutil.copytree(_variants(ablated)[1], spoilt)
    first = next(read_index(spoilt, "train"))
    tokens = np.fromfile(spoilt / "train.bin", "<u2")
    lines = (spoilt / "train.jsonl").read_text().splitlines()
    lines[0] = json.dumps(json.loads(lines[0]) | {"num_tokens": len(ids) + 1})
    (spoilt / "train.jsonl").write_text("\n".join(lines[:1]) + "\n")
    np.concatenate([np.array(ids, "<u2"), tokens]).tofile(spoilt / "train.bin")
    passed, facts = no_variant_holds_held_out_text([spoilt], *folders)
    assert not passed and first.url in facts["found"]["markdown"]


@pytest.mark.slow
def test_runs_become_rows_and_folders_that_are_adopted(ablated, finished, tmp_path, capsys):
    results, runs = tmp_path / "experiments.jsonl", tmp_path / "runs"
    assert experiments.main([str(ablated.artifacts), "--results", str(results), "--runs", str(runs)]) == 0
    cases = [row["case"] for row in map(json.loads, results.open())]
    assert sum(case.startswith("data_ablation/") for case in cases) == 6
    assert {path.name for path in (runs / "micro").iterdir()} >= {"data_ablation", "data_ablation_study"}
    for folder in (runs / "micro").iterdir():
        if not folder.name.startswith("data_ablation"):
            shutil.rmtree(folder)
    other = finished.copy(tmp_path / "other")
    done = other.python("-m", "cs336", "adopt", str(runs))
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert {"micro/data_ablation_study", "micro/data_ablation[filtered-seed-1]"} <= set(said) and len(said) == 8
    assert not any("cs336 scores" in line for line in said), "studies have none to show"


@pytest.mark.slow
def test_other_variants_seeds_and_settings_are_other_versions(ablated, monkeypatch):
    monkeypatch.setenv("CS336_PRESETS", ablated.environment["CS336_PRESETS"])
    preset, store = find_preset("micro"), Store("micro", ablated.artifacts.parent)
    cells = list(STAGES["data_ablation"].cells(preset))
    versions = {version_of(STAGES["data_ablation"], preset, store, cell).fingerprint for cell in cells}
    assert len(versions) == len(cells) == 6


@pytest.mark.slow
def test_held_out_files_are_read_whatever_the_preset_splits_off(ablated, tmp_path):
    (tmp_path / "held.jsonl").write_text('{"text": "One clean page."}\n{"text": "Another clean page."}\n')
    (tmp_path / "out").mkdir()
    told = clean_text(
        Step(tmp_path / "out"),
        deduplicated_text=[],
        tokenizer=ablated.artifacts / "tokenizer",
        split=SplitConfig(valid_fraction=0.0),
        held_out=TextFiles(paths=(str(tmp_path / "held.jsonl"),)),
    )
    assert told["num_documents"] == 2
    assert [each.url for each in read_index(tmp_path / "out", "valid")] == [
        "text://held.jsonl/0",
        "text://held.jsonl/1",
    ]
    assert not list(read_index(tmp_path / "out", "train"))


@pytest.mark.slow
def test_a_document_that_quotes_the_held_out_text_is_left_out_of_every_variant(ablated, tmp_path):
    words = [f"word{number}" for number in range(30)]
    held_out = tmp_path / "held.jsonl"
    held_out.write_text(json.dumps({"text": " ".join(words)}) + "\n")
    texts = {"quotes": "so: " + " ".join(words[5:18]), "near": " ".join(words[5:17]), "own": "nothing of it"}
    documents = [Document(f"<{name}>", f"http://x.org/{name}", "a.warc", 0, text) for name, text in texts.items()]
    for name in ("clean", "shard", *VARIANTS):
        (tmp_path / name).mkdir()
    tokenizer = ablated.artifacts / "tokenizer"
    source = TextFiles(paths=(str(held_out),))
    clean_text(Step(tmp_path / "clean"), [], tokenizer, SplitConfig(), source)
    write_documents(tmp_path / "shard", documents)
    decisions = pl.DataFrame({"id": [each.id for each in documents], "language": ["en", "de", None]})
    write_table(tmp_path / "shard" / DECISIONS_FILE, decisions)
    shards = [tmp_path / "shard"]
    for name in VARIANTS:
        told = variant_tokens(Step(tmp_path / name), shards, shards, shards, tmp_path / "clean", tokenizer, name)
        assert told["num_documents"] == 2 and "| 1 |" in told["left_out"]["markdown"]
        facts = json.loads((tmp_path / name / "variant.json").read_text())
        assert facts["bytes_by_language"] == {"de": len(texts["near"])}
    folders = [tmp_path / name for name in VARIANTS]
    assert no_variant_holds_held_out_text(folders, tmp_path / "clean", tokenizer)[0]
