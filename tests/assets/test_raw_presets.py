"""The handout's presets: planned without their files, and dry-run on a fragment of TinyStories."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from cs336.catalog import ENTRIES
from cs336.documents import read_documents
from cs336.files import UserError, read_json
from cs336.preset_lookup import find_preset
from cs336.presets import PRESETS
from cs336.store import Store
from cs336_assets.asset import Step, input_folders, make, shard_names
from cs336_assets.flow import CHECKS, STAGES
from cs336_assets.graph import build_definitions

FRAGMENT = """
[fragment]
base = "tinystories_low"
source = {paths = ["catalog:tinystories-sample"]}
bpe = {vocab_size = 1000}
model = {context_length = 64, d_model = 32, num_layers = 1, num_heads = 2, d_ff = 64}
train = {batch_size = 8, num_steps = 40, warmup_steps = 4, valid_interval = 20}
evals = {max_new_tokens = 8}
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without data, and the folder of all that it makes."""
    monkeypatch.delenv("CS336_DATA", raising=False)
    for variable in ("CS336_ARTIFACTS", "CS336_DOWNLOADS"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    monkeypatch.setenv("CS336_PRESETS", str(tmp_path / "presets.toml"))
    (tmp_path / "presets.toml").write_text(FRAGMENT)
    return tmp_path


@pytest.mark.parametrize("name", ["tinystories", "tinystories_low", "owt", "prose"])
def test_without_its_files_a_preset_is_one_line_that_says_how_to_get_them(machine, name):
    preset = PRESETS[name]
    assert build_definitions(preset).resolve_job_def(f"{name}_plan")  # the graph can be looked at all the same
    with pytest.raises(UserError) as caught:
        make(STAGES["crawl_plan"], preset, Store(name), Step(machine))
    line, wanted = str(caught.value), preset.source.paths[0].removeprefix("catalog:")
    assert "\n" not in line and line.startswith(wanted)
    if wanted in ENTRIES:
        assert f"run `cs336 data fetch {wanted}`, or put it at $CS336_DATA/text/" in line
    else:
        assert "CS336_DATA is not set; set it to the folder that holds the file" in line


def test_the_graph_of_tinystories_runs_on_a_fragment(machine, shared_data, monkeypatch):
    stories = shared_data / "text" / "tinystories"
    (machine / "data" / "text").mkdir(parents=True)
    (machine / "data" / "text" / "tinystories").symlink_to(stories)  # and no evaluations, which take their time
    monkeypatch.setenv("CS336_DATA", str(machine / "data"))
    preset, store = find_preset("fragment"), Store("fragment")
    for name in (*_upstream("perplexity"), "filter_ledger"):
        stage = STAGES[name]
        for shard in shard_names(store) if stage.per_shard else [None]:
            make(stage, preset, store, Step(machine, preset="fragment", part=shard))
        for check in (check for check in CHECKS.values() if check.asset == name and check.blocking):
            settings = {setting: getattr(preset, setting) for setting in check.settings}
            passed, facts = check.function(**input_folders(check.inputs, preset, store), **settings)
            assert passed, (check.function.__name__, facts)
    artifacts = store.folder

    # Raw: what enters is what is trained on, and the split is that of the files.
    for name in ("train", "valid"):
        text = gzip.decompress((stories / f"{name}.txt.gz").read_bytes()).decode()
        entered = [story.strip("\r\n") for story in text.split("<|endoftext|>") if story.strip()]
        assert [document.text for document in read_documents(artifacts / "deduplicated_text" / name)] == entered
        shard = read_json(artifacts / "token_shards" / name / "manifest.json")["metadata"]
        assert shard["num_documents"] == len(entered)
        assert shard["num_valid_documents"] == (len(entered) if name == "valid" else 0)
    states = {row["filter"]: row["state"] for row in read_json(artifacts / "filter_ledger" / "ledger.json")}
    assert states.pop("contaminated").startswith("on: ")
    assert set(states.values()) == {"off, by the preset"}
    for name in ("repeated_lines/train", "minhash_signatures/valid", "near_duplicates"):
        assert read_json(artifacts / name / "manifest.json")["metadata"]["state"] == "off, by the preset"

    scores = {row["metric"]: row["value"] for row in read_json(artifacts / "perplexity" / "scores.json")}
    assert 0 < scores["bits_per_byte"] < 8


def _upstream(name: str) -> list[str]:
    """An asset and all that it is made from, in the order of the flow."""
    wanted, waiting = set(), [name]
    while waiting:
        wanted.add(waiting[-1])
        waiting += STAGES[waiting.pop()].inputs
    return [stage for stage in STAGES if stage in wanted]
