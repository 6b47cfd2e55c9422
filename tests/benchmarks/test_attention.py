"""The benchmark of attention, dry: in Triton's interpreter beside the plain formula."""

import json

import pytest

from benchmarks.__main__ import main
from benchmarks.attention import Shape


def test_a_dry_run_gives_a_row_for_each_pass_with_its_error(tmp_path):
    arguments = ["attention", "--device", "cpu", "--shapes", "1x2x16x64", "--contenders", "ours", "plain", "flash"]
    assert main([*arguments, "--repeats", "1", "--results", str(tmp_path)]) == 0
    rows = [json.loads(line) for line in (tmp_path / "attention.jsonl").open()]
    assert [(row["case"], row["contender"]) for row in rows] == [
        (f"h2-d16-T64-float32-{part}", name)
        for part in ("forward", "forward+backward")
        for name in ("ours", "plain", "flash")
    ]
    assert [row.get("failure") for row in rows[2::3]] == ["Unavailable: flash needs a GPU"] * 2
    for row in rows[0::3]:
        assert 0 < max(row["error_against_fp64"].values()) < 1e-5
        passes = 3.5 if row["case"].endswith("backward") else 1.0
        assert row["figure"] * row["seconds"] == pytest.approx(passes * 2 * 2 * 64**2 * 16 / 1e12)


def test_a_shape_is_four_numbers():
    assert Shape.parse("1x2x64x256") == Shape(batch=1, heads=2, d_head=64, length=256)
    with pytest.raises(Exception, match="not BATCHxHEADSxD_HEADxLENGTH"):
        Shape.parse("1x2x64")
