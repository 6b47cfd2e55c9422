"""Every way to make an artifact makes it: the console, Dagster's commands, a direct call."""

import dagster as dg
import pytest

from cs336.crawl.local_files import TextFiles
from cs336.documents import Document, read_documents, write_documents
from cs336.files import read_json
from cs336.preset_lookup import find_preset
from cs336.presets import TINY
from cs336.store import MANIFEST, Store, verify
from cs336.tokenizer.bpe import Tokenizer
from cs336.tokenizer.train import BpeConfig
from cs336.tokens.shards import SplitConfig
from cs336_assets.asset import Check, Step
from cs336_assets.binding import evaluate
from cs336_assets.crawl import crawl, crawl_plan
from cs336_assets.flow import STAGES
from cs336_assets.graph import build_definitions
from cs336_assets.jobs import job_assets
from cs336_assets.tokenizer import text_survives_a_round_trip, tokenizer
from tests.assets.conftest import ROOT


def test_the_whole_graph_runs_and_scores_are_printed(finished):
    for name in job_assets("all"):
        stage = STAGES[name]
        folders = finished.artifacts / name
        manifests = list(folders.glob(f"*/{MANIFEST}" if stage.per_shard else MANIFEST))
        assert len(manifests) == (2 if stage.per_shard else 1), name
        assert not [problem for path in manifests for problem in verify(path.parent)]
    scores = finished.python("-m", "cs336", "scores").stdout
    assert "mmlu sample" in scores and "gsm8k sample" in scores and "bits per byte" in scores


def test_the_filters_quality_is_a_job_of_its_own_and_off_without_data(copied):
    copied.run("data_quality")
    for name in job_assets("data_quality"):
        assert read_json(copied.artifacts / name / MANIFEST)["metadata"] == {"state": "off, no data"}, name


def test_a_second_run_makes_nothing(copied):
    printed = copied.run()
    assert "micro_all: 0 artifacts made" in printed and "micro_plan: 0 artifacts made" in printed


def test_dagster_asset_materialize_makes_an_artifact(project):
    done = project.python(
        "-m", "dagster", "asset", "materialize", "-m", "cs336_assets.definitions", "--select", "micro/eval_index"
    )
    assert done.returncode == 0, done.stderr
    assert (project.artifacts / "eval_index" / MANIFEST).exists()


@pytest.mark.slow
def test_dagster_asset_materialize_takes_a_shard(copied):
    (copied.artifacts / "extracted_text" / "docs-00001" / "documents.parquet").unlink()
    (copied.artifacts / "extracted_text" / "docs-00000" / "documents.parquet").write_bytes(b"nobody reads this")
    done = copied.python(
        *("-m", "dagster", "asset", "materialize", "-m", "cs336_assets.definitions"),
        *("--select", "micro/extracted_text", "--partition", "docs-00001"),
    )
    assert done.returncode == 0, done.stderr
    assert not verify(copied.artifacts / "extracted_text" / "docs-00001")


def test_a_check_looks_at_the_shards_of_the_run_and_at_the_others_if_need_be(finished, monkeypatch):
    monkeypatch.setenv("CS336_PRESETS", finished.environment["CS336_PRESETS"])
    store, seen = Store("micro", finished.folder / "artifacts"), []

    def first_shard_is_there(extracted_text):
        seen.append([folder.name for folder in extracted_text])
        return "docs-00000" in seen[-1], {}

    def said(of_shards, shards):
        seen.clear()
        check = Check(first_shard_is_there, "extracted_text", True, of_shards, {"extracted_text": True}, ())
        return evaluate(check, find_preset("micro"), store, shards)[0], seen

    both = ["docs-00000", "docs-00001"]
    assert said("all", ["docs-00001"]) == (True, [both])
    assert said("each", ["docs-00001"]) == (False, [["docs-00001"]])
    assert said("some", ["docs-00001"]) == (True, [["docs-00001"], both])
    assert said("some", ["docs-00000"]) == (True, [["docs-00000"]])
    assert said("some", None) == said("each", None) == (True, [both])


@pytest.mark.slow
def test_dg_launch_makes_an_artifact(project):
    done = project.python("-m", "dagster_dg_cli.cli", "launch", "--assets", "micro/crawl_plan")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (project.artifacts / "crawl_plan" / MANIFEST).exists()


def test_asset_functions_are_plain_functions(tmp_path):
    (tmp_path / "texts.txt").write_text("one document<|endoftext|>and another one, with more words")
    source = TextFiles(paths=(str(tmp_path / "texts.txt"),))
    plan, shard = tmp_path / "plan", tmp_path / "crawl"
    plan.mkdir(), shard.mkdir()
    shown = crawl_plan(Step(plan), source=source)
    assert shown["num_shards"] == 1
    assert crawl(Step(shard, part="texts"), crawl_plan=plan, source=source)["num_records"] == 3
    assert (shard / "texts.warc.gz").exists()


def test_a_called_tokenizer_asset_learns_from_the_documents(finished, tmp_path):
    folders = sorted((finished.artifacts / "deduplicated_text").iterdir())
    shown = tokenizer(
        Step(tmp_path), deduplicated_text=folders, bpe=BpeConfig(vocab_size=300), split=SplitConfig(valid_fraction=0.1)
    )
    assert shown["vocab_size"] == 300 and shown["num_merges"] == 300 - 257
    assert Tokenizer.load(tmp_path).vocab_size == 300


def test_text_of_every_shard_is_encoded_and_decoded_again(tmp_path, monkeypatch):
    (tmp_path / "tokenizer").mkdir()
    Tokenizer({number: bytes([number]) for number in range(256)}, [], []).save(tmp_path / "tokenizer")
    shards = [tmp_path / f"shard-{number:03}" for number in range(120)]
    for folder in shards:
        folder.mkdir()
        write_documents(folder, [Document(f"{number}", "u", "w", number, "fine") for number in range(60)])
    decode = Tokenizer.decode
    monkeypatch.setattr(Tokenizer, "decode", lambda *arguments: decode(*arguments).replace("zebra", ""))
    passed, facts = text_survives_a_round_trip(tmp_path / "tokenizer", shards[:2])
    assert passed and facts == {"num_documents": 100, "num_shards": 2, "broken": []}
    write_documents(shards[2], [Document("0", "u", "w", 0, "of a zebra")])
    passed, facts = text_survives_a_round_trip(tmp_path / "tokenizer", shards[:3])
    assert not passed and facts["broken"] == ["shard-002: document 0"]
    assert text_survives_a_round_trip(tmp_path / "tokenizer", shards[3:])[1]["num_shards"] == 100


def test_dagster_assets_can_be_materialized_in_process(tmp_path, monkeypatch):
    monkeypatch.setenv("CS336_ARTIFACTS", str(tmp_path))
    definitions = build_definitions(TINY)
    keys = [dg.AssetKey(["tiny", "eval_index"])]
    result = definitions.resolve_job_def("tiny_data").execute_in_process(asset_selection=keys)
    assert result.success
    assert Store("tiny", tmp_path).manifest("eval_index")


def test_text_enters_after_extraction_and_reaches_the_model(project, tmp_path):
    words = "the quick brown fox jumps over the lazy dog and runs home through the dark wood at night "
    documents = [f"Story number {i}. " + " ".join(words.split()[i % 7 :] * 12) + f" It was day {i}." for i in range(60)]
    (tmp_path / "stories.txt").write_text("<|endoftext|>".join(documents))
    presets = tmp_path / "presets.toml"
    source = f'source = {{kind = "text", paths = ["{tmp_path}/stories.txt"]}}'
    presets.write_text(
        (ROOT / "tests" / "presets.toml").read_text()
        + f'[stories]\nbase = "micro"\nlines = {{min_words = 5}}\n{source}\n'
    )
    project.environment["CS336_PRESETS"] = str(presets)
    project.run("data", preset="stories")
    kept = list(read_documents(project.folder / "artifacts" / "stories" / "extracted_text" / "stories"))
    assert [document.text for document in kept] == documents


@pytest.mark.parametrize("job", ["data", "evals"])
def test_a_missing_input_is_one_line_with_the_remedy(project, job):
    if job == "evals":
        project.run("plan")
        done = project.python("-m", "cs336", "run", "--preset", "micro", "--job", "evals")
        assert done.returncode == 1
        assert "materialize micro/" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    else:
        done = project.python("-m", "cs336", "run", "--preset", "nonsense")
        assert done.returncode == 1 and done.stderr.strip().startswith("cs336: no preset 'nonsense'")
        assert len(done.stderr.strip().splitlines()) == 1
