"""Scores over seeds, by hand."""

import pytest

from cs336.evals.report import ScoreRow
from cs336.evals.seeds import over_seeds, seed_in, seeds_table, without_seed


def _score(preset, value, *, model="grpo_model", metric="accuracy", measured="here"):
    return ScoreRow(
        preset=preset,
        model=model,
        task="reasoning",
        set_name="generated",
        metric=metric,
        value=value,
        low=None,
        high=None,
        num_examples=10,
        measured=measured,
    )


def test_scores_that_differ_in_the_seed_alone_are_one_row():
    rows = [
        _score("reasoner", 0.75),
        _score("reasoner", 0.1, model="start_policy"),
        _score("reasoner_seed_1", 0.85, measured="H100"),
        _score("reasoner_seed_2", 0.80, measured="H100"),
        _score("reasoner_seed_2", 1.5, metric="nats_per_token"),
        _score("other", 0.5),
    ]
    found = over_seeds(rows)
    assert [(row["preset"], row["model"], row["metric"], row["num_seeds"]) for row in found] == [
        ("reasoner", "grpo_model", "accuracy", 3),
        ("reasoner", "start_policy", "accuracy", 1),
        ("reasoner", "grpo_model", "nats_per_token", 1),
        ("other", "grpo_model", "accuracy", 1),
    ]
    first = found[0]
    assert first["mean"] == pytest.approx(0.8) and first["spread"] == pytest.approx(0.05)  # n - 1
    assert (first["lowest"], first["highest"], first["measured"]) == (0.75, 0.85, "here, H100")
    assert found[1]["spread"] is None, "one seed says nothing of the others"


def test_the_table_reads_as_its_metrics_do():
    head, _, first, second = seeds_table(
        over_seeds([_score("a", 0.75), _score("a_seed_1", 0.85), _score("a", 1.5, metric="nats_per_token")])
    ).splitlines()
    assert head.split()[-7:] == ["std", "over", "seeds", "lowest", "highest", "seeds", "measured"]
    assert first.split()[-6:] == ["80.0%", "7.1%", "75.0%", "85.0%", "2", "here"]
    assert second.split()[-5:] == ["1.500", "1.500", "1.500", "1", "here"]


def test_seeds_in_names():
    assert [without_seed(name) for name in ("a_seed_12", "a_seed", "seed_1", "a_seed_1_b")] == [
        "a",
        "a_seed",
        "seed_1",
        "a_seed_1_b",
    ]
    assert (seed_in("a_seed_12"), seed_in("a")) == (12, None)
