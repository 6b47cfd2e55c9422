"""The handout's experiments on reasoning, what they say, the timed leaderboard, and what a policy wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from cs336.files import read_json, replacing, write_json
from cs336.leaderboard import SCORES_FILE, scores_version
from cs336.posttrain.config import ReasoningConfig
from cs336.posttrain.rollouts import rollouts_path
from cs336.posttrain.runs import COUNTS_FILE, read_records, training_seconds
from cs336.train.metrics import METRICS_FILE, read_rows
from cs336_assets import reasoning_plots
from cs336_assets.asset import Metadata, Step, asset, check
from cs336_assets.crawl import table
from cs336_assets.extract import preview
from cs336_assets.reasoning import of_chain
from cs336_assets.reasoning_scores import accuracies_over_seeds

STUDY_FILE = "study.json"
_LOGGED = 8  # responses of a validation on the page
_study = asset(group="reasoning", kinds={"matplotlib"}, owner="team:posttrain")
_comparison = asset(group="reasoning", kinds={"matplotlib"}, owner="team:posttrain", watches=scores_version)


# ---- the log of rollouts


@asset(
    group="reasoning",
    kinds={"markdown"},
    owner="team:posttrain",
    takes={"grpo_model": of_chain("grpo_model")},
)
def rollout_log(step: Step, grpo_model: Path | None) -> Metadata:
    """What GRPO's policy wrote at every validation: the same held-out problems from its start to its end, with rewards.

    One page to be read, and how accuracy, format and length moved.
    """
    if grpo_model is None:
        return {"state": "the chain of this preset has no GRPO"}
    rows = [row for row in read_rows(grpo_model / METRICS_FILE) if "valid_accuracy" in row]
    pages = []
    for row in rows:
        written = rollouts_path(grpo_model, row["step"])
        read = "\n\n".join(_read_aloud(each) for each in read_records(written.parent, written.stem)[:_LOGGED])
        pages.append(f"## Step {row['step']:,}: {row['valid_accuracy']:.1%} right\n\n{read}")
    with replacing(step.folder / "rollouts.md", "w") as file:
        file.write("\n\n".join(pages) + "\n")
    columns = ("step", "valid_accuracy", "valid_format", "valid_length", "valid_truncated")
    return {
        "num_validations": len(rows),
        "validations": table(list(columns), [[_number(row[name]) for name in columns] for row in rows]),
        "first": {"markdown": pages[0]},
        "last": {"markdown": pages[-1]},
    }


def _read_aloud(row: Mapping[str, Any]) -> str:
    """One response with what it earned."""
    earned = f"format {row['format_reward']:g}, reward {row['reward']:g}, right answer `{row['ground_truth']}`"
    entropy = row.get("mean_token_entropy")  # an empty response has none
    sure = "" if entropy is None else f", {entropy:.2f} nats of entropy a token"
    return f"{preview(row['prompt'][-600:] + row['response'], 2_000)}\n{earned}, {row['num_tokens']} tokens{sure}"


# ---- runs side by side


@_comparison
def sft_study(step: Step, sft_model: list[Path], reasoning_scores: list[Path]) -> Metadata:
    """SFT by number of traces, and on the right ones alone: validation curves and final scores.

    How many traces the filter for right answers left stands beside each.
    """
    columns = ("valid_accuracy", "valid_loss", "nats_per_token", "token_entropy", "grad_norm")
    shown = _compare(step, sft_model, reasoning_scores, columns)
    counts = [[folder.name, *read_json(folder / COUNTS_FILE).items()] for folder in sft_model]
    kept = [[name, ", ".join(f"{key} {value:,}" for key, value in facts)] for name, *facts in counts]
    return shown | {"traces": table(["run", "traces"], kept)}


@_comparison
def expert_iteration_study(step: Step, expert_iteration_model: list[Path], reasoning_scores: list[Path]) -> Metadata:
    """Expert Iteration by questions a round, samples and epochs: accuracy, entropy and length over the rounds."""
    columns = ("valid_accuracy", "reward", "token_entropy", "mean_length")
    return _compare(step, expert_iteration_model, reasoning_scores, columns)


@_comparison
def grpo_study(step: Step, grpo_model: list[Path], reasoning_scores: list[Path]) -> Metadata:
    """GRPO's variants from the same start: baseline, length normalisation, group deviation, learning rate, off-policy
    with and without clipping, prompt. One table; accuracy, entropy, length and gradient norm by step, and accuracy by
    the clock. Scores of other seeds of this preset that are on this machine are pooled beside its own, and drawn.
    """
    shared = ("valid_accuracy", "reward", "token_entropy", "mean_length", "grad_norm")
    columns = (*shared, "clip_fraction", "would_clip_fraction", "ratio_max")
    return _compare(step, grpo_model, reasoning_scores, columns)


@check(asset="grpo_study")
def a_baseline_helps(grpo_study: Path) -> tuple[bool, Metadata]:
    """GRPO with a baseline ends no lower than without one, where both were run."""
    runs = read_json(grpo_study / STUDY_FILE)
    both = [runs[name]["best_valid_accuracy"] for name in ("grpo", "no-baseline") if name in runs]
    return len(both) < 2 or both[0] >= both[1], {"with_and_without": both}


def _compare(step: Step, runs: Sequence[Path], scores: Sequence[Path], columns: Sequence[str]) -> Metadata:
    """Curves and scores side by side, and a row for each run: validations, score, that of all seeds, means, time."""
    if not runs:
        write_json(step.folder / STUDY_FILE, {})
        return {"state": "this preset has no such runs"}
    curves = {folder.name: list(read_rows(folder / METRICS_FILE)) for folder in runs}
    accuracies = accuracies_of(scores)
    pooled = accuracies_over_seeds(scores[0], step.preset) if scores else {}
    findings = {}
    for folder in runs:
        model = model_of(folder, runs, accuracies)
        findings[folder.name] = _finding(curves[folder.name], accuracies.get(model, {}), pooled.get(model, {}))
    write_json(step.folder / STUDY_FILE, findings)
    reasoning_plots.run_panels(curves, columns, step.folder / "curves.png")
    reasoning_plots.run_panels(curves, ("valid_accuracy",), step.folder / "by_time.png", over="seconds")
    _draw_scores(findings, step.folder / "scores.png")
    header = list(next(iter(findings.values())))
    rows = [[name, *(_number(each[column]) for column in header)] for name, each in findings.items()]
    return {
        "summary": table(["run", *header], rows),
        "curves": {"image": "curves.png"},
        "by_time": {"image": "by_time.png"},
        "scores": {"image": "scores.png"},
    }


def _draw_scores(findings: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Each run's score over all seeds, and by seed."""
    scored = {name: each for name, each in findings.items() if each["num_seeds"]}
    scores = {
        name: tuple(each[f"seeds_{part}"] for part in ("accuracy", "low", "high")) for name, each in scored.items()
    }
    by_seed = {name: list(each["by_preset"].values()) for name, each in scored.items()}
    reasoning_plots.scores_over_seeds(scores, by_seed, path)


def _finding(rows: Sequence[Mapping[str, Any]], score: Mapping[str, Any], pooled: Mapping[str, Any]) -> dict[str, Any]:
    valid = [row["valid_accuracy"] for row in rows if "valid_accuracy" in row]
    means = {}
    for name in ("token_entropy", "mean_length", "grad_norm", "clip_fraction"):
        values = [row[name] for row in rows if row.get(name) is not None]
        means[name] = fmean(values) if values else None
    return {
        "first_valid_accuracy": valid[0],
        "best_valid_accuracy": max(valid),
        "last_valid_accuracy": valid[-1],
        **{f"test_{name}": score.get(name) for name in ("value", "low", "high")},
        "num_seeds": len(pooled.get("by_preset", {})),
        **{f"seeds_{name}": pooled.get(name) for name in ("accuracy", "low", "high", "spread")},
        "by_preset": pooled.get("by_preset", {}),
        **means,
        "steps": rows[-1]["step"],
        "seconds": rows[-1]["seconds"],
    }


def model_of(folder: Path, runs: Sequence[Path], accuracies: Mapping[str, Any]) -> str:
    """What the scores call a run: the chain's, which is the first, by its asset alone."""
    asset = folder.parent.name
    own = f"{asset}/{folder.name}"
    return asset if own not in accuracies and folder == runs[0] else own


def accuracies_of(scores: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Score of each model on the held-out problems."""
    rows = [row for folder in scores for row in read_json(folder / SCORES_FILE)]
    return {row["model"]: row for row in rows if row["task"] == "reasoning" and row["metric"] == "accuracy"}


# ---- the leaderboard


@_study
def reasoning_leaderboard(
    step: Step,
    sft_model: list[Path],
    expert_iteration_model: list[Path],
    grpo_model: list[Path],
    reasoning_scores: list[Path],
    reasoning: ReasoningConfig,
) -> Metadata:
    """The best accuracy within a time of training: validations over the clock of every run, and their ranking by score.

    A score is that of the final evaluation, on all held-out problems; a run that took longer than allowed has none.
    The best validation in time, the highest of several on fewer problems, is too good by chance and ranks nobody.

    The clock is that of `metrics.jsonl`: wall time of training, sampling, grading and validation, since the start
    policy: what a run started from took its time, too. Rules, after the handout's: the start policy is the same for
    all, training problems alone are learnt from, and each held-out problem is answered once at temperature 1.
    """
    before = {"sft_model": 0.0, "": 0.0, "sft": 0.0, "expert_iteration": 0.0}
    if sft_model:
        before["sft"] = training_seconds(sft_model[0])
    before["expert_iteration_model"] = before[reasoning.expert_iteration_from]
    if expert_iteration_model:
        before["expert_iteration"] = before["expert_iteration_model"] + training_seconds(expert_iteration_model[0])
    before["grpo_model"] = before[reasoning.grpo_from]
    curves, ranking = {}, []
    accuracies = accuracies_of(reasoning_scores)
    for runs in (sft_model, expert_iteration_model, grpo_model):
        for folder in runs:
            name = model_of(folder, runs, accuracies)
            curve = [
                (before[folder.parent.name] + row["seconds"], row["valid_accuracy"])
                for row in read_rows(folder / METRICS_FILE)
                if "valid_accuracy" in row
            ]
            curves[name] = curve
            within = [point for point in curve if point[0] <= reasoning.leaderboard_seconds]
            seconds, best = max(within, key=lambda point: point[1], default=(None, None))
            took = curve[-1][0]
            score = accuracies.get(name, {}).get("value") if took <= reasoning.leaderboard_seconds else None
            ranking.append([name, score, best, seconds, took])
    ranking.sort(key=lambda row: -(row[1] if row[1] is not None else -1.0))
    facts = {"limit_seconds": reasoning.leaderboard_seconds, "curves": curves, "ranking": ranking}
    write_json(step.folder / STUDY_FILE, facts)
    reasoning_plots.accuracy_over_time(curves, reasoning.leaderboard_seconds, step.folder / "over_time.png")
    columns = ["run", "score", "best validation in time", "reached after, s", "whole run, s"]
    return {
        "limit_seconds": reasoning.leaderboard_seconds,
        "ranking": table(columns, [[_number(value) for value in row] for row in ranking]),
        "over_time": {"image": "over_time.png"},
    }


def _number(value: Any) -> Any:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {each:.4g}" for name, each in value.items()) or "-"
    return "-" if value is None else round(value, 4) if isinstance(value, float) else value
