"""Rows of benchmarks in the graph, packed or not."""

import gzip
import json

import dagster as dg
import pytest

from cs336.files import UserError
from cs336_assets.adopt import adopt, runs_below
from cs336_assets.benchmarks import RESULTS, result_assets, subject_of

ROW = {"subject": "kernels", "case": "rope", "contender": "ours", "figure": 1.5, "unit": "ms"}


def test_each_subject_with_rows_is_one_asset():
    names = [spec.key.path for spec in result_assets()]
    assert len(names) == len(set(map(tuple, names)))
    files = [path.name.partition(".")[0] for pattern in ("*.jsonl", "*.jsonl.gz") for path in RESULTS.glob(pattern)]
    assert {("benchmarks", name) for name in files} == set(map(tuple, names)) >= {("benchmarks", "tokenizer")}


@pytest.mark.parametrize("name", ["kernels.jsonl", "kernels.jsonl.gz"])
def test_rows_are_adopted_packed_or_not(tmp_path, name):
    path = tmp_path / name
    opener = gzip.open if name.endswith(".gz") else open
    with opener(path, "wt") as file:
        file.write(json.dumps(ROW) + "\n")
    with dg.DagsterInstance.ephemeral() as instance:
        assert runs_below(path) == [path]
        assert adopt(path, instance) == "benchmarks/kernels: 1 rows adopted"
        event = instance.get_latest_materialization_event(dg.AssetKey(["benchmarks", "kernels"]))
        assert "rope" in str(event.asset_materialization.metadata["rows"].value)
        with opener(path, "wt"):
            pass
        with pytest.raises(UserError, match="holds no rows"):
            adopt(path, instance)


def test_other_files_have_no_subject(tmp_path):
    assert [subject_of(tmp_path / name) for name in ("README.md", "rows.json", "run", "x.tar.gz")] == [None] * 4
