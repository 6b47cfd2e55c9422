"""What a step asks for is fetched, and no more."""

from __future__ import annotations

from pathlib import Path

import pytest

from cs336 import catalog
from cs336.documents import Document, write_documents
from cs336.files import write_json
from cs336.filters.quality import QualityConfig
from cs336.presets import COURSE, DATA_COURSE
from cs336.shared_storage import SharedStorage
from cs336.store import Store, Version
from cs336_assets import filters
from cs336_assets.asset import Step, input_folders
from cs336_assets.flow import STAGES
from cs336_assets.parts import PLAN_ASSET, PLAN_FILE

SHARDS = [f"shard-{number}" for number in range(4)]


@pytest.fixture
def node(tmp_path: Path) -> Store:
    """A machine without a thing, beside a storage with the text of four shards."""
    storage, stores = SharedStorage(str(tmp_path / "shared")), []
    for name in ("maker", "node"):
        stores.append(Store(DATA_COURSE.name, tmp_path / name))
        stores[-1]._shared = storage
    maker, node = stores
    with maker.staging(PLAN_ASSET, None, Version("1", "c")) as (folder, _):
        write_json(folder / PLAN_FILE, {"shards": [{"name": shard, "items": []} for shard in SHARDS]})
    maker.share(PLAN_ASSET)
    for asset in ("extracted_text", "deduplicated_text"):
        for shard in SHARDS:
            with maker.staging(asset, shard, Version("1", "c")) as (folder, _):
                text = f"words of {shard}"
                write_documents(folder, [Document(f"<{shard}>", f"http://{shard}/", "a.warc", 0, text)])
            maker.share(asset, shard)
    return node


def here(node: Store, asset: str) -> list[str]:
    return sorted(path.name for path in (node.folder / asset).glob("*"))


def inputs(node: Store, stage: str) -> dict:
    known = {name: whole for name, whole in STAGES[stage].inputs.items() if whole}
    return input_folders(known, DATA_COURSE, node)


def test_only_parts_that_are_asked_for_are_fetched(node: Store):
    parts = inputs(node, "tokenizer")["deduplicated_text"]
    assert len(parts) == 4 and not here(node, "deduplicated_text")
    assert parts[-1] == parts[2:][1] == node.path("deduplicated_text", SHARDS[3])
    assert here(node, "deduplicated_text") == SHARDS[3:]
    assert [folder.name for folder in parts] == SHARDS == here(node, "deduplicated_text")


@pytest.mark.parametrize("quality", [DATA_COURSE.quality, COURSE.quality])
def test_a_quality_classifier_without_its_list_reads_no_text(node: Store, tmp_path: Path, monkeypatch, quality):
    monkeypatch.setattr(catalog, "find", lambda name: None)
    texts = inputs(node, "quality_classifier")["extracted_text"]
    told = filters.quality_classifier(Step(tmp_path), texts, tmp_path / "none", quality)
    assert told["state"].startswith("off, no model") and not here(node, "extracted_text")
    assert DATA_COURSE.quality == QualityConfig() and told["state"].endswith("here") == (quality == COURSE.quality)


def test_a_quality_classifier_learns_from_some_shards_of_a_large_crawl(node: Store, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(filters, "MAX_SHARDS", 2)
    texts = inputs(node, "quality_classifier")["extracted_text"]
    quality = QualityConfig(reference_pattern="shard-[02]")
    told = filters.quality_classifier(Step(tmp_path), texts, tmp_path / "none", quality)
    assert told["num_positives"] + told["num_negatives"] == 2 == len(here(node, "extracted_text"))
