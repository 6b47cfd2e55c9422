"""Grids of experiments, and what is read from their curves."""

import json
import math
from dataclasses import replace

import pytest

from cs336.files import write_jsonl
from cs336.model.accounting import count_parameters
from cs336.model.transformer import ModelConfig
from cs336.presets import COURSE, PRESETS
from cs336.train.experiments import (
    DIVERGED_FILE,
    OUTCOME_FILE,
    ExperimentConfig,
    Run,
    SpeedrunConfig,
    ablation_runs,
    at_rate,
    batch_size_runs,
    best_run,
    context_length_runs,
    learning_rate_runs,
    mean_and_spread,
    read_curves,
    read_outcomes,
    variant_of,
    vocab_size_runs,
    within_budget,
    write_outcome,
)
from cs336.train.loop import TrainConfig

MODEL = ModelConfig(context_length=256, d_model=512, num_layers=4, num_heads=16, d_ff=1_344, vocab_size=10_000)
TRAIN = TrainConfig(batch_size=32, num_steps=5, learning_rate=1e-3, min_learning_rate=1e-4, warmup_steps=0)
GRID = ExperimentConfig(
    num_tokens=40_960_000,
    learning_rates=(1e-3, 1e-2),
    batch_sizes=(1, 64),
    lower_rate_factors=(0.1,),
    num_seeds=2,
    context_lengths=(128, 512),
    vocab_sizes=(2_000,),
)


def test_a_budget_fixes_steps_and_what_follows_from_them():
    train = within_budget(TRAIN, 40_960_000, 256)
    assert (train.num_steps, train.warmup_steps, train.valid_interval) == (5_000, 250, 250)
    assert within_budget(TRAIN, 40_960_000, 256, batch_size=64).num_steps == 2_500
    assert within_budget(TRAIN, 10, 256).num_steps == 1
    in_parts = replace(TRAIN, micro_batch_size=16)
    assert [within_budget(in_parts, 10, 256, batch_size=size).micro_batch_size for size in (1, 24, 64)] == [0, 0, 16]


def test_the_sweep_varies_the_rate_alone():
    runs = learning_rate_runs(MODEL, TRAIN, GRID)
    assert list(runs) == ["rate-0.001", "rate-0.01"]
    first, second = runs.values()
    assert second.train == replace(first.train, learning_rate=1e-2, min_learning_rate=1e-3)
    assert first.model == second.model == MODEL


def test_batches_keep_the_tokens_and_the_smallest_stop_by_the_clock():
    runs = batch_size_runs(MODEL, TRAIN, GRID)
    factors = ("0.5", "1", "2")
    assert list(runs) == [f"batch-{size}-rate-x{f}" for size in (1, 64, "limit") for f in factors]
    # Nobody knows how many steps a minute has, so a share of them cannot be the warm-up.
    assert (runs["batch-1-rate-x2"].train.warmup_steps, runs["batch-1-rate-x2"].train.valid_interval) == (500, 2_500)
    assert (runs["batch-1-rate-x1"].train.max_seconds, runs["batch-64-rate-x1"].train.max_seconds) == (60, 0)
    assert runs["batch-64-rate-x2"].train.num_steps * 64 * 256 == 40_960_000


def test_the_best_rate_is_carried_on_by_the_square_root_of_the_batch():
    runs = batch_size_runs(MODEL, TRAIN, GRID)
    best = {"best_rate": 4e-3, "best_rate_batch_size": 16, "largest_batch_size": 1_000}
    assert runs["batch-64-rate-x0.5"].resolved(**best).learning_rate == pytest.approx(4e-3)  # 0.5 * sqrt(64 / 16)
    limit = runs["batch-limit-rate-x1"].resolved(**best)
    assert (limit.batch_size, limit.num_steps) == (1_000, 160)
    assert limit.learning_rate == pytest.approx(4e-3 * math.sqrt(1_000 / 16))
    assert limit.min_learning_rate == pytest.approx(limit.learning_rate / 10)


def test_a_run_of_its_own_rate_keeps_it():
    run = Run(model=MODEL, train=at_rate(TRAIN, 0.5), num_tokens=1)
    assert run.resolved(best_rate=1.0, best_rate_batch_size=1, largest_batch_size=1) == run.train


def test_ablations_change_one_thing_each_and_match_the_parameters():
    runs = ablation_runs(MODEL, TRAIN, GRID)
    names = ["baseline", "no-norm", "post-norm", "no-positions", "silu", "no-norm-rate-x0.1"]
    assert list(runs) == [f"{name}-seed-{seed}" for name in names for seed in (0, 1)]
    assert [runs[f"silu-seed-{seed}"].seed for seed in (0, 1)] == [0, 1]
    assert runs["no-norm-rate-x0.1-seed-0"].model == runs["no-norm-seed-0"].model
    assert runs["no-norm-rate-x0.1-seed-0"].rate_factor == 0.1
    silu, gated = (count_parameters(runs[f"{name}-seed-0"].model).total for name in ("silu", "baseline"))
    assert silu == pytest.approx(gated, rel=0.01)
    assert {variant_of(name) for name in runs} == set(names)


def test_shorter_contexts_take_more_sequences_and_as_many_tokens():
    runs = context_length_runs(MODEL, TRAIN, GRID)
    assert {name: (r.model.context_length, r.train.batch_size, r.train.num_steps) for name, r in runs.items()} == {
        "context-128": (128, 64, 5_000),
        "context-512": (512, 16, 5_000),
    }
    assert list(vocab_size_runs(MODEL, TRAIN, GRID)) == ["vocab-2000"]


def test_the_presets_runs_keep_their_budgets():
    for preset in PRESETS.values():
        for name, run in ablation_runs(preset.model, preset.train, preset.experiments).items():
            tokens = run.train.num_steps * run.train.batch_size * run.model.context_length
            assert tokens <= run.num_tokens < 2 * tokens, (preset.name, name)
    assert COURSE.experiments.num_tokens >= 41e6 and COURSE.experiments.num_seeds >= 3
    assert {1, 8, 64, 128, 256} <= set(COURSE.experiments.batch_sizes)
    shape = replace(COURSE.speedrun.model, vocab_size=32_000)
    assert count_parameters(shape).total <= COURSE.speedrun.max_parameters
    assert COURSE.speedrun.train.max_seconds <= 8.5 * 60


def test_a_speedrun_needs_a_clock():
    with pytest.raises(ValueError, match="time limit"):
        SpeedrunConfig(model=MODEL, train=TRAIN)


def _finished(folder, losses):
    folder.mkdir()
    rows = [
        {"step": i + 1, "num_tokens": 10 * (i + 1), "seconds": 0.5, "tokens_per_second": 20, "train_loss": loss}
        | ({"valid_loss": loss} if i % 2 else {})
        for i, loss in enumerate(losses)
    ]
    write_jsonl(folder / "metrics.jsonl", rows)
    return folder


def test_outcomes_tell_sound_runs_from_those_that_rose_or_blew_up(tmp_path):
    sound = _finished(tmp_path / "sound", [9.0, 8.0, 7.0, 6.0])
    rose = _finished(tmp_path / "rose", [9.0, 6.0, 6.1, 6.5])
    blew_up = _finished(tmp_path / "blew_up", [9.0, 11.7, 7.0, 6.5])  # guessing costs 9.21
    lost = _finished(tmp_path / "lost", [9.0, 5.0])
    (lost / DIVERGED_FILE).write_text("the loss became nan at step 3")
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    (nothing / DIVERGED_FILE).write_text("the loss became nan at step 1")
    for folder in (sound, rose, blew_up, lost, nothing):
        write_outcome(folder, MODEL, TRAIN, seed=3)
    outcomes = read_outcomes([sound, rose, blew_up, lost, nothing])
    assert (outcomes["sound"]["valid_loss"], outcomes["sound"]["diverged"], outcomes["sound"]["seed"]) == (6.0, "", 3)
    assert outcomes["rose"]["diverged"] == "the loss rose from 6.000 to 6.500"
    assert outcomes["blew_up"]["diverged"] == "the loss rose to 11.700; guessing costs 9.210"
    assert outcomes["lost"]["valid_loss"] is None and "step 3" in outcomes["lost"]["diverged"]
    assert outcomes["nothing"]["num_steps"] == 0
    assert best_run(outcomes) == "sound"
    assert [row["step"] for row in read_curves([rose])["rose"]] == [2, 4]
    assert json.loads((sound / OUTCOME_FILE).read_text())["model"]["d_model"] == 512


def test_when_all_diverge_there_is_no_best():
    with pytest.raises(ValueError, match="lower learning_rates"):
        best_run({"a": {"valid_loss": None, "diverged": "nan"}})


def test_mean_and_spread_by_hand():
    assert mean_and_spread([1.0, 2.0, 3.0]) == (2.0, 1.0)
    assert mean_and_spread([1.5]) == (1.5, 0.0)
