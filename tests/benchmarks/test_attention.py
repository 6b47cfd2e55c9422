"""The benchmark of attention, dry: in Triton's interpreter beside the plain formula."""

import argparse
import gzip
import json

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from benchmarks.__main__ import main
from benchmarks.attention import Shape, cases, table_page


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
        for name, largest in row["error_against_fp64"].items():
            assert largest / 50 < row["rms_error_against_fp64"][name] < largest
        passes = 3.5 if row["case"].endswith("backward") else 1.0
        assert row["figure"] * row["seconds"] == pytest.approx(passes * 2 * 2 * 64**2 * 16 / 1e12)


def test_the_handouts_table_tells_each_pass_beside_the_formula_and_what_did_not_fit(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.attention.TABLE_LENGTHS", [32, 64])
    monkeypatch.setattr("benchmarks.attention.MAX_PLAIN_SCORES", 32**2)
    common = ["--device", "cpu", "--dtypes", "float32", "--contenders", "ours", "plain", "--repeats", "1"]
    for width in ("32", "16"):
        assert main(["attention", "--table", width, *common, "--results", str(tmp_path)]) == 0
    rows = {(row["case"], row["contender"]): row for row in map(json.loads, (tmp_path / "attention.jsonl").open())}
    head, _, *lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (tmp_path / "attention_table.md").read_text().splitlines()
        if line.startswith("|")
    ]
    assert [line[:3] for line in lines] == [["float32", d, T] for d in ("16", "32") for T in ("32", "64")]
    for line in lines:
        for name, cell in zip(head[3:], line[3:], strict=True):
            part, contender, _ = name.split(", ")
            row = rows[f"h1-d{line[1]}-T{line[2]}-float32-{part}", contender]
            if contender == "plain" and line[2] == "64":
                assert cell == "not tried"
            else:
                assert float(cell.replace(",", "")) == pytest.approx(1e3 * row["seconds"], rel=6e-3)
    assert (tmp_path / "attention_table.tex").read_text().count(r"\begin{table}") == 1
    # Rows that were packed away stay in the table.
    with gzip.open(tmp_path / "attention.jsonl.gz", "wb") as file:
        file.write((tmp_path / "attention.jsonl").read_bytes())
    (tmp_path / "attention.jsonl").unlink()
    before = (tmp_path / "attention_table.md").read_text()
    assert main(["attention", "--table", "16", *common, "--results", str(tmp_path)]) == 0
    assert (
        before.count("| float32 |  32 |")
        == (tmp_path / "attention_table.md").read_text().count("| float32 |  32 |")
        == 2
    )
    (row,) = [row for (case, name), row in rows.items() if case == "h1-d16-T64-float32-backward" and name == "plain"]
    row["hardware"]["gpus"] = ["H100", "H100"]  # of which one measured it
    page = table_page([*rows.values(), row | {"failure": "OutOfMemoryError: CUDA out of memory. Tried"}])
    assert "one head, H100**" in page.markdown()
    assert page.markdown().count("out of memory") == 1


def test_every_case_is_compiled_for_itself(monkeypatch):
    monkeypatch.setattr("benchmarks.attention.TABLE_LENGTHS", range(16, 26))
    counter = CompileCounter()

    @torch.compile(backend=counter, dynamic=False)
    def compiled(x):
        return x + 1

    options = argparse.Namespace(device="cpu", table=[16], shapes=None, dtypes=["float32"], contenders=["ours"])
    num_cases = sum(1 for number, _ in enumerate(cases(options)) if compiled(torch.zeros(number)) is not None)
    assert counter.frame_count == num_cases == 30


def test_a_shape_is_four_numbers():
    assert Shape.parse("1x2x64x256") == Shape(batch=1, heads=2, d_head=64, length=256)
    with pytest.raises(Exception, match="not BATCHxHEADSxD_HEADxLENGTH"):
        Shape.parse("1x2x64")
