"""What a larger crawl would take, from what a small one took."""

import json

import pytest

from cs336_assets.cost import hours


def test_hours_by_hand():
    assert hours(2.0, num_files=5_000, megabytes=81.0, cores=100) == 2.25


@pytest.mark.slow
def test_costs_are_told_by_asset_and_carried_to_more_files(copied):
    for path in copied.artifacts.rglob("manifest.json"):
        manifest = json.loads(path.read_text())
        manifest["cpu_seconds"] = {"extracted_text": 3.0, "tokenizer": 7.0}.get(manifest["asset"].partition("/")[2], 0)
        if manifest["asset"] == "micro/crawl":
            manifest["files"] = {"one.warc.gz": {"bytes": 2_000_000}}
        path.write_text(json.dumps(manifest))
    done = copied.python("-m", "cs336", "cost", "--preset", "micro", "--files", "600", "--cores", "2")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "2 files of 2.0 MB, 2 shards; core-seconds a MB:"
    assert [line.split() for line in lines[1:3]] == [
        ["tokenizer", "1.750", "one", "for", "all", "shards:", "7.0", "s"],
        ["extracted_text", "1.500"],
    ]
    assert lines[-3].split() == ["all", "that", "spreads", "1.500"]
    assert lines[-2] == "a file of 2.0 MB: 3.0 core-seconds"
    assert lines[-1].strip() == "600 files: 0.2 h on 2 cores"  # 600 x 3 / 2 / 3,600 = 0.25, and halves go to even


def test_without_a_crawl_it_is_one_line(project):
    done = project.python("-m", "cs336", "cost", "--preset", "micro")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
