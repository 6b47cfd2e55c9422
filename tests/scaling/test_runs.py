import dataclasses
import gzip
import json
import math
import multiprocessing

import pytest

from cs336.files import UserError
from cs336.scaling.runs import Run, append_run, finished_runs, read_runs, thinned_curve


def made_run(**changes):
    values = {
        "parameters": 98_304,
        "compute_budget": 1e13,
        "train_flops": 1e13,
        "final_loss": 6.5,
        "valid_loss": 6.6,
        "d_model": 64,
        "num_layers": 2,
        "num_heads": 2,
        "batch_size": 128,
        "learning_rate": 1e-3,
        "seed": 0,
        "steps": 258,
        "tokens": 258 * 65_536,
        "epochs": 0.5,
        "tail_steps": 13,
        "real_flops": 2.3e14,
        "wall_seconds": 1.5,
        "utilisation": 0.15,
        "packed": 3,
        "loss_curve": ((1, 10.5), (258, 6.5)),
        "outcome": "finished",
        "config_hash": "abc",
        "code": "1234",
        "data": "5678",
        "hardware": "none",
        "date": "2026-11-26T00:00:00Z",
    }
    return Run(**(values | changes))


def test_rows_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "rows" / "runs.jsonl"
    runs = [made_run(), made_run(seed=1, utilisation=None)]
    for run in runs:
        append_run(path, run)
    assert read_runs(path) == runs


def test_a_run_without_losses_says_why_and_is_no_finished_one(tmp_path):
    append_run(tmp_path / "runs.jsonl", made_run(final_loss=math.nan, valid_loss=math.nan, outcome="diverged: step 3"))
    (run,) = read_runs(tmp_path / "runs.jsonl")
    assert math.isnan(run.final_loss) and math.isnan(run.valid_loss) and run.outcome == "diverged: step 3"
    assert finished_runs([run, made_run()]) == [made_run()]
    assert "NaN" not in (tmp_path / "runs.jsonl").read_text()  # not JSON


@pytest.mark.parametrize("torn", ['{"parameters": 98', '{"parameters": 98}'])
def test_a_torn_last_row_is_not_read_and_the_next_one_takes_its_place(tmp_path, torn):
    path = tmp_path / "runs.jsonl"
    append_run(path, made_run())
    with path.open("a") as file:
        file.write(torn)
    assert read_runs(path) == [made_run()]
    append_run(path, made_run(seed=1))
    assert read_runs(path) == [made_run(), made_run(seed=1)]


def test_packed_rows_are_read_and_never_added_to(tmp_path):
    append_run(tmp_path / "runs.jsonl", made_run())
    packed = tmp_path / "runs.jsonl.gz"
    packed.write_bytes(gzip.compress((tmp_path / "runs.jsonl").read_bytes()))
    before = packed.read_bytes()
    with pytest.raises(UserError, match="gunzip"):
        append_run(packed, made_run(seed=1))
    assert packed.read_bytes() == before and read_runs(packed) == [made_run()]


def test_a_row_that_is_no_run_is_named(tmp_path):
    path = tmp_path / "runs.jsonl"
    append_run(path, made_run())
    path.write_text(path.read_text() + path.read_text().replace('"seed"', '"sead"'))
    with pytest.raises(UserError, match=r"runs\.jsonl:2: not a run \(sead, seed\)"):
        read_runs(path)
    with pytest.raises(UserError, match="not found"):
        read_runs(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("field", "value"),
    [("parameters", "many"), ("final_loss", None), ("steps", 2.5), ("seed", True), ("loss_curve", [[1]]), ("data", 1)],
)
def test_a_row_with_a_damaged_field_is_named(tmp_path, field, value):
    path = tmp_path / "runs.jsonl"
    append_run(path, made_run())
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}) + "\n")
    with pytest.raises(UserError, match=rf"runs\.jsonl:1: not a run \({field} "):
        read_runs(path)


def _append_many(path, seed):
    for number in range(20):
        append_run(path, made_run(seed=1_000 * seed + number))


def test_processes_append_at_the_same_time_without_losing_a_row(tmp_path):
    path = tmp_path / "runs.jsonl"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_append_many, args=(path, seed)) for seed in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(run.seed for run in read_runs(path)) == [1_000 * s + n for s in range(3) for n in range(20)]


def test_a_thinned_curve_keeps_first_and_last_step():
    losses = [10.0 - step / 1_000 for step in range(5_000)]
    curve = thinned_curve(losses, points=50)
    assert len(curve) <= 51 and curve[0] == (1, 10.0) and curve[-1] == (5_000, round(losses[-1], 5))
    assert [step for step, _ in curve] == sorted({step for step, _ in curve})
    assert thinned_curve([3.0, math.nan]) == ((1, 3.0),)
    assert thinned_curve([]) == ()


def test_every_field_is_described():
    for field in dataclasses.fields(Run):
        assert field.name in Run.__doc__ or field.name in {
            "d_model", "num_layers", "num_heads", "batch_size", "learning_rate", "seed", "vocab_size", "context_length"
        }  # fmt: skip
