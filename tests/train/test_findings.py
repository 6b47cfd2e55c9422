"""Sentences about experiments: the numbers in them are those of the runs."""

from cs336.train.findings import comment_on_ablations, comment_on_batches, comment_on_rates


def _run(rate, loss, *, diverged="", batch_size=8, max_seconds=0.0):
    return {
        "learning_rate": rate,
        "valid_loss": loss,
        "diverged": diverged,
        "batch_size": batch_size,
        "num_steps": 100,
        "num_tokens": 25_600,
        "train": {"max_seconds": max_seconds},
    }


def test_a_sweep_names_the_best_rate_and_its_distance_from_the_edge():
    runs = {"a": _run(0.001, 2.5), "b": _run(0.002, 2.0), "c": _run(0.004, 2.125)}
    runs["d"] = _run(0.016, None, diverged="nan")
    comment = comment_on_rates(runs)
    assert "Best is 0.002, with 2.0000 nats" in comment and "At 0.004 it is 0.1250 nats more" in comment
    assert "diverged is 0.016, 8 times the best" in comment and "did not is 0.004, and it ends 0.1250" in comment
    assert "is not known" in comment_on_rates({"a": _run(0.001, 2.5)})


def test_batches_by_the_clock_are_told_from_those_with_equal_tokens():
    best = {1: _run(0.1, 4.0, max_seconds=60.0), 64: _run(0.1, 3.0), 256: _run(0.2, 3.25)}
    comment = comment_on_batches(best)
    assert comment.startswith("Batch 1 had 60 s, in which it saw 25,600 tokens in 100 steps: loss 4.0000.")
    assert "batch 64 ends lowest (3.0000)" in comment and "0.2500 nats higher" in comment


def test_an_ablation_within_the_spread_of_seeds_says_so():
    variants = {
        "baseline": {"learning_rate": 0.01, "valid_loss": 3.0, "spread": 0.01, "diverged": "0 of 3"},
        "silu": {"learning_rate": 0.01, "valid_loss": 3.01, "spread": 0.01, "diverged": "0 of 3"},
        "no-positions": {"learning_rate": 0.01, "valid_loss": 3.2, "spread": 0.01, "diverged": "0 of 3"},
        "no-norm": {"learning_rate": 0.01, "valid_loss": None, "spread": None, "diverged": "3 of 3"},
    }
    comment = comment_on_ablations(variants)
    assert "silu at rate 0.01 costs +0.0100 nats, within the spread of seeds" in comment
    assert "no-positions at rate 0.01 costs +0.2000 nats, more than the seeds differ" in comment
    assert "no-norm at rate 0.01 diverged in 3 of 3 seeds" in comment
    variants["baseline"]["valid_loss"] = None
    assert "diverged in every seed" in comment_on_ablations(variants)
