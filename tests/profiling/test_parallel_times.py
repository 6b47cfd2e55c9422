"""The studies of data parallelism, optimizer states and sharded parameters, all their forms in one job over Gloo."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.distributed import HashStore

from cs336.files import read_jsonl
from cs336.parallel.cost_model import best_bucket_bytes, bucketed_overhead_seconds
from cs336.parallel.process_group import Rank, run_ranks
from cs336.profiling import ddp_times, fsdp_times, optimizer_memory
from cs336.profiling.rank_cells import Rows, Stopwatch, run_cell
from cs336.profiling.rank_steps import new_model
from cs336.profiling.spread import pooled
from tests.profiling.shapes import CONFIG

SETTING = CONFIG.setting()
RANKS = {"processes": 2, "device": "cpu"}
FACTS = {"hardware": {"cpu": "this", "gpus": []}}


def rows_of_all(place, folder):
    """Cells as the studies describe them, without a job of their own for each."""
    rows = [
        {"cell": {"form": form} | RANKS | SETTING.described()} | ddp_times.time_form(place, form, SETTING)
        for form in ddp_times.forms(CONFIG)
    ]
    for form in ddp_times.PROFILED:
        profiled = ddp_times.profile_form(place, form, SETTING, folder / f"{form}.json.gz")
        rows.append({"cell": {"profiled": form} | RANKS | SETTING.described()} | profiled)
    return rows


def optimizer_rows(place):
    return [
        {"cell": {"optimizer": name} | RANKS | SETTING.described()}
        | optimizer_memory.measure_optimizer(place, name, SETTING)
        for name in optimizer_memory.OPTIMIZERS
    ]


def fsdp_rows(place):
    return [
        {"cell": {"form": form} | RANKS | SETTING.described()} | fsdp_times.time_form(place, form, SETTING)
        for form in fsdp_times.FORMS
    ]


def test_data_parallel_forms_train_alike_and_are_compared(tmp_path):
    rows = run_ranks(rows_of_all, 2, tmp_path, timeout_seconds=200, start_method="forkserver")[0]
    table = ddp_times.compared(rows, "own")
    assert [line["form"] for line in table] == ddp_times.forms(CONFIG)
    losses = [line["last_loss"] for line in table if line["form"] != ddp_times.ALONE]
    assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-5)
    assert {line["form"]: line["num_messages"] for line in table} == {
        "nothing sent": 0,
        "naive": 21,  # 7 matrices and 2 norms for each layer, embedding, head and last norm
        "flat": 1,
        "overlapped": 21,
        "buckets of 0.001 MB": 18,  # every matrix alone; the last norm with those of the layer before it, and 2 more
        "buckets of 1 MB": 1,
        "PyTorch's DDP": None,
    }
    for line in table[1:]:
        assert line["exposed_ms"] == line["ms"] - table[0]["ms"]
    assert ddp_times.draw_timelines(rows, tmp_path, "own", tmp_path / "timeline.png")
    assert all(row["communication_ms"] > 0 for row in rows if "trace" in row)
    said = ddp_times.page(rows)
    assert "Fastest: " in said and "In one profiled step" in said and "PyTorch's DDP" in said


def test_a_form_that_does_not_exist_is_an_error():
    with pytest.raises(ValueError, match="no form 'sideways'"):
        ddp_times.wrap("sideways", torch.nn.Linear(1, 1), Rank(0, 1, torch.device("cpu"), HashStore()))


def test_optimizers_hold_what_the_closed_forms_say():
    rows = run_ranks(optimizer_rows, 2, timeout_seconds=200, start_method="forkserver")[0]
    for row in rows:
        stages = row["stages"]
        first, before, after = (
            max(stages[stage]["counted"], key=lambda kinds: sum(kinds.values()))
            for stage in ("initialization", "before the update", "after the update")
        )
        assert first["gradients"] == first["states"] == before["states"] == 0
        assert first["parameters"] == before["parameters"] == after["gradients"] == before["gradients"]
        if row["cell"]["optimizer"] in optimizer_memory.FORM_OF:
            expected = optimizer_memory.expected_bytes(row["cell"])
            assert {**after, "total": sum(after.values())} == expected
        else:
            assert 0 < after["states"] < 1.5 * after["parameters"]
    said = optimizer_memory.page(rows)
    assert "Sharding saves" in said and "1.50 times as much" in said and "update, ms" in said


def test_sharded_forms_hold_half_and_every_gather_is_seen():
    rows = run_ranks(fsdp_rows, 2, timeout_seconds=200, start_method="forkserver")[0]
    whole, ahead, in_turn, backend, peer = ({**row["counted"][0], **row} for row in rows)
    for form in (ahead, in_turn, backend, peer):
        assert whole["parameters"] / 2 <= form["parameters"] < 0.6 * whole["parameters"]
        assert form["parameters"] == form["gradients"]
        assert form["states"] == pytest.approx(2 * form["parameters"], rel=0.01)  # PyTorch's count their steps too
    for form in (ahead, in_turn):
        forward = [gather["name"] for gather in form["gathers"][0] if gather["forward"]]
        assert forward == ["token_embeddings", "layers.0", "layers.1", "lm_head"]
        assert all(gather["slack_ms"] <= 0 for gather in form["gathers"][0])  # a CPU sees the wait only
        backward = [gather["name"] for gather in form["gathers"][0] if not gather["forward"]]
        assert sorted(backward) == sorted(set(forward) - {"token_embeddings"})
    said = fsdp_times.page(rows)
    assert "expected saving" in said and "of 4 units were there in time" in said
    assert "16 sharded weights in 4 units: those of a block in one message" in said and "gathered 7 times; " in said
    assert "gathers 7 times, reduce-scatters 4 times" in said
    assert "ours with prefetch takes, of the time, " in said
    assert (
        "TF32" not in said
        and "`--parallel fsdp2` is what runs have" in said
        and "medians of 2 steps, their spread the quartiles" in said
    )


def gradients_of_two_steps(place):
    """Of a rank's first weight, in each form over PyTorch's, after the same pass once and twice."""
    found = {}
    for form in (fsdp_times.BACKEND, fsdp_times.PEER):
        wrapped = fsdp_times.wrap(form, new_model(SETTING, place.device), "float32", place)
        for group in wrapped.optimizer.param_groups:
            group["lr"] = group["weight_decay"] = 0.0
        step = fsdp_times._step(wrapped, SETTING, place)
        found[form] = []
        for _ in range(2):
            step(Stopwatch(place.device))
            first = wrapped.optimizer.param_groups[0]["params"][0].grad
            found[form].append(getattr(first, "to_local", lambda first=first: first)().abs().sum().item())
    return found


def test_each_step_of_the_backend_has_the_gradients_of_the_direct_call():
    for found in run_ranks(gradients_of_two_steps, 2, timeout_seconds=200, start_method="forkserver"):
        once, twice = found[fsdp_times.BACKEND]
        assert once > 0 and twice == pytest.approx(once, rel=1e-6)  # no gradient of the step before is left
        assert found[fsdp_times.PEER] == pytest.approx([once, once], rel=1e-5)


def test_pages_of_older_rows_say_that_they_are_means():
    folder = Path(__file__).parents[2] / "benchmarks/results/runs/course"
    rows = list(read_jsonl(folder / "fsdp_study/rows.jsonl"))
    said = fsdp_times.page(pooled(rows))
    assert "Times are means of 10 steps" in said and "ours, prefetch, float32: the weights of 33 of 34 units" in said
    assert "products of float32 in TF32" in said
    assert "of the peak memory, 0.501 of whole (DDP)" in said and fsdp_times.BACKEND not in said
    assert "float32: weights, gradients and states take 50.8 GiB whole and 25.4 GiB sharded" in said
    assert "measured, of the peaks, 31.7 (63.5 to 31.8)" in said
    rows = list(read_jsonl(folder / "data_parallel_times/rows.jsonl"))
    assert ddp_times.bucket_page(pooled(rows), "xl") in (folder / "bucket_overhead/page.md").read_text()
    said = ddp_times.page(pooled(rows))
    assert "Fastest: buckets of 100 MB, 219.9 ms, 8.4% of it communicating; slowest: PyTorch's DDP." in said
    assert "may be chance: buckets of 1000 MB, PyTorch's DDP." in said
    assert "hides 15% of what naive sending adds, though the spreads of the two overlap" in said
    rows = list(read_jsonl(folder / "optimizer_state_memory/rows.jsonl"))
    slower = {line["optimizer"]: line["slower"] for line in optimizer_memory.time_table(pooled(rows), "xl")}
    assert slower == {
        "whole": None,
        "sharded": "0.96 (spreads overlap)",
        "PyTorch's ZeroRedundancyOptimizer": "1.11 (spreads overlap)",
    }


def test_the_peaks_measured_on_gpus_are_those_expected_of_the_update():
    rows = read_jsonl(Path(__file__).parents[2] / "benchmarks/results/runs/course/fsdp_study/rows.jsonl")
    of_form = {row["cell"].get("form"): row for row in rows if row["cell"]["precision"] == "float32"}
    whole, ours = (of_form[form] for form in (fsdp_times.WHOLE, fsdp_times.AHEAD))
    measured = max(whole["memory"]["peak"]) - max(ours["memory"]["peak"])
    expected = fsdp_times.expected_saving(ours["cell"], 4)
    assert expected["saved_in_update"] == pytest.approx(measured, rel=2e-3)
    assert expected["saved"] < 0.8 * measured  # what is held alone does not say it


def row(form, ms, **more):
    cell = {"form": form} | RANKS | SETTING.described()
    times = {
        "ms": ms,
        "ms_std": 0.0,
        "num_steps": 10,
        "last_loss": 1.0,
        "parts_ms": {"synchronization": 0.5},
        "memory": None,
    }
    return {"cell": cell, "num_messages": 1, "gradient_bytes": 80_000_000} | times | more


def test_the_share_communicating_and_the_bucket_model_by_hand():
    rows = [
        {
            "cell": {"form": "all-reduce", "bytes": [10**6, 10**9]},
            "1000000": {"ms": 1.1},
            "1000000000": {"ms": 1_000.1},
        },
        row("nothing sent", 75.0),
        row("naive", 100.0),
        row("overlapped", 80.0),
        row("buckets of 10 MB", 90.0, num_messages=8),
        {"cell": {"form": "flat"} | RANKS | SETTING.described(), "state": "out of memory"},
    ]
    table = {line["form"]: line for line in ddp_times.compared(rows, "own")}
    assert table["naive"]["share"] == "25.0%" and table["overlapped"]["exposed_ms"] == 5.0
    assert table["flat"] == {"form": "flat", "state": "out of memory"}
    assert "hides 80% of what naive sending adds" in ddp_times.page(rows)
    slower = [*rows[:2], row("naive", 80.0), row("overlapped", 90.0)]
    assert "costs 3 times what naive sending adds" in ddp_times.page(slower)
    assert "less than the steps vary" in ddp_times.page([*rows[:2], row("naive", 74.0), row("overlapped", 90.0)])
    # w = 1 GB/s and o = 0.1 ms: 80 MB in 8 buckets add 10 ms + 0.8 ms; best is sqrt(80e6 x 1e9 x 1e-4) bytes.
    modelled, best = ddp_times.bucket_model(rows, "own")
    assert modelled[0]["modelled_ms"] == pytest.approx(10.8, rel=1e-3) and modelled[0]["measured_ms"] == 15.0
    assert best == pytest.approx(2.83e6, rel=1e-2)


def test_no_number_of_buckets_beats_the_best():
    best = 1e9 / best_bucket_bytes(1e9, 2e10, 5e-5)
    overheads = [bucketed_overhead_seconds(1e9, best * factor, 2e10, 5e-5) for factor in (0.5, 0.9, 1.0, 1.1, 2.0)]
    assert min(overheads) == overheads[2] == pytest.approx(2 * (1e9 / 2e10 * 5e-5) ** 0.5)


def test_where_the_size_does_not_fit_the_smaller_one_is_measured_too(tmp_path, monkeypatch):
    sizes = []
    timed = {key: value for key, value in row("", 5.0).items() if key != "cell"}
    timed |= {"steps_ms": [5.0], "ms_by_rank": [5.0, 5.0]}

    def cell(function, world_size, *arguments, **options):
        setting = next((each for each in arguments if hasattr(each, "described")), None)
        if setting is None:
            return {str(size): {"ms": 1e-9 * size + 1} for size in arguments[0]}
        sizes.append(setting.name)
        return {"state": "out of memory"} if setting.name == "own" else timed

    monkeypatch.setattr("cs336.profiling.rank_steps.run_cell", cell)
    rows = Rows(tmp_path / "rows.jsonl", FACTS)
    found = ddp_times.measure_ddp(replace(CONFIG, smaller_size="small"), rows, tmp_path, lambda line: None)
    assert set(sizes) == {"own", "small"} and sizes.count("small") == len(ddp_times.forms(CONFIG)) + 2
    assert ddp_times.sizes_of(found) == ["own", "small"] and "out of memory" in ddp_times.page(found)


def test_contenders_take_turns_in_rounds_and_make_one_row_each(tmp_path, monkeypatch):
    order, calls = [], []

    def cell(function, world_size, *arguments, **options):
        if function is ddp_times.time_all_reduces:
            calls.append(arguments[-1])
            return {str(size): {"ms": 1e-9 * size + 1} for size in arguments[0]}
        if function is ddp_times.profile_form:
            return {"trace": "", "communication_ms": 1.0, "hidden_share": 0.0}
        form = arguments[0]
        order.append(form)
        if form == "flat":
            return {"state": "out of memory"}
        ms = 10.0 * len(order)
        return {key: value for key, value in row(form, ms).items() if key not in ("cell", "ms_std")} | {
            "steps_ms": [ms, ms + 1],
            "ms_quartiles": [ms, ms + 1],
            "ms_by_rank": [ms, ms],
            "num_steps": 2,
        }

    monkeypatch.setattr("cs336.profiling.rank_steps.run_cell", cell)
    config = replace(CONFIG, num_rounds=3)
    found = ddp_times.measure_ddp(config, Rows(tmp_path / "rows.jsonl", FACTS), tmp_path, lambda line: None)
    others = [form for form in ddp_times.forms(CONFIG) if form != "flat"]
    assert order == [*ddp_times.forms(CONFIG), *others, *others] and calls == [3 * CONFIG.num_steps]
    table = ddp_times.compared(found, "own")
    assert [line["form"] for line in table] == ddp_times.forms(CONFIG)
    assert found[1]["num_steps"] == 6 and found[1]["ms"] == pytest.approx(80.5)  # of 10, 11, 80, 81, 140, 141
    assert "medians of 6 steps of 3 rounds by turns" in ddp_times.page(found)
    again = ddp_times.measure_ddp(config, Rows(tmp_path / "rows.jsonl", FACTS), tmp_path, lambda line: None)
    assert again == found and len(order) == 7 + 6 + 6  # nothing is measured a second time


def test_a_study_runs_its_cells_in_jobs_of_their_own(tmp_path):
    found = run_cell(ddp_times.time_form, 2, "naive", SETTING, device="cpu", timeout_seconds=100)
    assert found["ms"] > 0 and found["parts_ms"].keys() == {"forward", "backward", "synchronization", "optimizer"}
