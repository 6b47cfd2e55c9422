"""The studies on several processes from the command line, over Gloo: rows, page, picture, and no second measurement."""

import argparse
import importlib

import pytest

from benchmarks.__main__ import main
from benchmarks.rank_studies import step_config
from cs336.files import read_jsonl, write_jsonl

SMALL = ["--device", "cpu", "--warmup", "1", "--repeats", "2"]


def test_all_reduces_are_measured_once_and_told(tmp_path, capsys):
    arguments = ["collectives", *SMALL, "--bytes", "1000", "1000000", "--processes", "2", "--results", str(tmp_path)]
    assert main(arguments) == 0 == main(arguments)
    rows = list(read_jsonl(tmp_path / "collectives.jsonl"))
    assert [row["cell"]["bytes"] for row in rows] == [1_000, 1_000_000] and all(row["commit"] for row in rows)
    said = capsys.readouterr().out
    assert said.count("there already") == 2 and (tmp_path / "collectives.md").read_text().strip() in said
    assert (tmp_path / "collectives.png").exists()
    assert main([*arguments, "--again"]) == 0 and len(list(read_jsonl(tmp_path / "collectives.jsonl"))) == 4


def test_every_study_has_a_dry_run(tmp_path):
    assert main(["collectives", *SMALL, "--tiny", "--results", str(tmp_path)]) == 0
    cells = [row["cell"] for row in read_jsonl(tmp_path / "collectives.jsonl")]
    assert max(cell["bytes"] for cell in cells) <= 10_000_000 and {cell["processes"] for cell in cells} == {2}
    for subject in ("ddp", "optimizer_shard", "fsdp"):
        parser = argparse.ArgumentParser()
        importlib.import_module(f"benchmarks.{subject}").add_arguments(parser)
        config = step_config(parser.parse_args(["--tiny", "--device", "cpu"]))
        assert config.num_rounds == 1 and step_config(parser.parse_args([])).num_calls == 30
        assert config.setting().model.d_model == 32 and max(config.all_reduce_bytes) <= 10_000_000


@pytest.mark.slow
def test_the_optimizers_memory_is_told_by_kind(tmp_path, capsys):
    assert main(["optimizer_shard", *SMALL, "--tiny", "--results", str(tmp_path)]) == 0
    rows = list(read_jsonl(tmp_path / "optimizer_shard.jsonl"))
    assert [row["cell"]["optimizer"] for row in rows][:2] == ["whole", "sharded"] and len(rows) == 3
    assert "Beside ZeRO's first stage" in capsys.readouterr().out


@pytest.mark.slow
def test_the_contests_step_is_compared_with_the_plain_model_in_a_row(tmp_path, capsys):
    common = ["full_step", "--device", "cpu", "--tiny", "--results", str(tmp_path)]
    assert main([*common, "--check", "--dtype", "float32"]) == 0
    (row,) = read_jsonl(tmp_path / "full_step.jsonl")
    found = row["differences"]
    assert found["weights"] < 1e-6 and found["output"] < 1e-5 and found["loss"] < 1e-5 and found["scale"] > 0.5
    assert row["cell"]["check"] == 3 and row["cell"]["model"]["num_layers"] == 2 and row["commit"] and "ms" not in row
    said = capsys.readouterr().out
    assert "**Checks**" in said and "ms a step" not in said
    # A check is made again, as the code may be another; a time stands beside it in a table of its own.
    assert main([*common, "--check", "--dtype", "float32"]) == 0 == main([*common, "--warmup", "1", "--rep", "1"])
    rows = list(read_jsonl(tmp_path / "full_step.jsonl"))
    assert ["check" in row["cell"] for row in rows] == [True, True, False] and "ms" in rows[2]
    _, first, *_, last = (tmp_path / "full_step.md").read_text().split("\n\n")
    assert "ms a step" in first and len(first.splitlines()) == 3
    assert "largest weight" in last and len(last.strip().splitlines()) == 3


@pytest.mark.slow
def test_what_another_machine_measured_stays_in_the_tables(tmp_path):
    common = ["full_step", "--device", "cpu", "--tiny", "--results", str(tmp_path)]
    assert main([*common, "--warmup", "1", "--rep", "1"]) == 0
    (row,) = read_jsonl(tmp_path / "full_step.jsonl")
    write_jsonl(tmp_path / "full_step.jsonl", [row | {"hardware": {"cpu": "Xeon", "gpus": ["H200", "H200"]}}])
    assert main([*common, "--check"]) == 0
    page = (tmp_path / "full_step.md").read_text()
    assert page.startswith("**2 x H200, Xeon**\n\n") and f"\n\n**{row['hardware']['cpu']}**\n\n" in page
    timed, checked = page.split(f"**{row['hardware']['cpu']}**")
    assert "| ranks |" in timed and "| ranks |" in checked, "the machine may have more GPUs"
    assert "ms a step" in timed and "ms a step" not in checked and "largest weight" in checked


def test_fp32_masters_are_compared_with_the_plain_models(tmp_path):
    arguments = ["full_step", "--device", "cpu", "--tiny", "--check", "--fp32-masters", "--results", str(tmp_path)]
    assert main(arguments) == 0
    (row,) = read_jsonl(tmp_path / "full_step.jsonl")
    found = row["differences"]
    # bf16 rounds by up to 2^-8: a gradient three times; bf16 masters would be off by that of a weight, 1e-2.
    assert 0 < found["gradients"] < 4 * 2**-8 and found["weights"] < 6e-4 and found["scale"] > 0.5


def test_a_check_that_fails_leaves_its_message(tmp_path, monkeypatch):
    monkeypatch.setattr("cs336.profiling.full_step_check.run_cell", lambda *arguments, **options: {"failure": "gone"})
    assert main(["full_step", "--device", "cpu", "--tiny", "--check", "--results", str(tmp_path)]) == 1
    (row,) = read_jsonl(tmp_path / "full_step.jsonl")
    assert row["failure"] == "gone" and "gone" in (tmp_path / "full_step.md").read_text()


def test_all_reduces_are_between_two_processes_or_more(capsys):
    with pytest.raises(SystemExit):
        main(["collectives", *SMALL, "--processes", "1"])
    assert "1 is too few; an all-reduce is between two processes or more" in capsys.readouterr().err


def test_all_reduces_between_any_number_of_processes(tmp_path):
    options = ["--bytes", "1000", "100000", "--processes", "4", "3", "--results", str(tmp_path)]
    assert main(["collectives", *SMALL, *options]) == 0
    said = (tmp_path / "collectives.md").read_text()
    assert "**gloo, 3 processes.**" in said and "**gloo, 4 processes.**" in said


def test_the_contests_step_has_a_row_for_fp32_masters_beside_the_other(tmp_path, capsys):
    common = ["full_step", "--device", "cpu", "--tiny", "--warmup", "1", "--rep", "1", "--results", str(tmp_path)]
    assert main(common) == 0 == main([*common, "--fp32-masters"])
    rows = list(read_jsonl(tmp_path / "full_step.jsonl"))
    assert [row["cell"]["work"] for row in rows] == ["full step", "full step, fp32 masters"]
    table = (tmp_path / "full_step.md").read_text().split("\n\n")[1].splitlines()
    assert [line.split("|")[1].strip() for line in table[2:]] == ["other", "fp32 masters"]


def test_without_gpus_one_line_says_so(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    for subject in ("collectives", "ddp", "optimizer_shard", "fsdp", "full_step"):
        assert main([subject, "--repeats", "1"]) == 1
        assert "needs 2 GPUs, this machine has 0" in capsys.readouterr().err
