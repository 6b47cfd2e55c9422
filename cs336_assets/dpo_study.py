"""What DPO on each kind of pairs did: rewards told apart on held-out pairs, and right answers on generated problems."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cs336.evals.reasoning import pool_seeds
from cs336.evals.report import Z_95, format_score, wilson_interval
from cs336.evals.seeds import without_seed
from cs336.evals.task import EvalResult
from cs336.files import read_json, read_jsonl, write_json
from cs336.leaderboard import scores_version
from cs336.store import MANIFEST
from cs336.train.metrics import METRICS_FILE
from cs336_assets import chat_plots
from cs336_assets.asset import Metadata, Step, asset, check
from cs336_assets.chat_evals import ANSWERS_FILE
from cs336_assets.crawl import page_table
from cs336_assets.instruct import KEPT_FILE

STUDY_FILE = "study.json"


@asset(group="instruct", kinds={"matplotlib"}, owner="team:evals", watches=scores_version)
def dpo_study(step: Step, dpo_model: list[Path], instruction_answers: list[Path], dpo_answers: list[Path]) -> Metadata:
    """DPO by kind of pairs: reward accuracy and margin on held-out pairs, and the accuracy on generated problems.

    Pooled over the seeds of this preset that were made on this machine (`NAME_seed_N`): their pairs are added up, and
    their models are asked the same problems. The change is from the model before DPO, which answered them too; its
    interval is that of the mean difference, question by question.
    """
    root = dpo_model[0].parents[2]
    stem = without_seed(step.preset)
    kinds = [folder.name for folder in dpo_model]
    presets = [each for each in sorted(root.iterdir()) if without_seed(each.name) == stem and _is_whole(each, kinds)]
    study = {kind: _of_kind(presets, kind) for kind in kinds}
    write_json(step.folder / STUDY_FILE, study)
    curves = {kind: [list(read_jsonl(each / "dpo_model" / kind / METRICS_FILE)) for each in presets] for kind in kinds}
    chat_plots.preferences_by_kind(curves, _shares(study), step.folder / "study.png")
    return {
        "num_seeds": len(presets),
        "study": {"markdown": _page(study)},
        "figure": {"image": "study.png"},
    }


@check(asset="dpo_study")
def rewards_tell_held_out_pairs_apart(dpo_study: Path) -> tuple[bool, Metadata]:
    """Of each kind more than half of the held-out pairs have the greater reward on the chosen side."""
    shares = {kind: each["reward_accuracy"]["value"] for kind, each in read_json(dpo_study / STUDY_FILE).items()}
    return all(share > 0.5 for share in shares.values()), {"reward_accuracy": shares}


def _is_whole(preset: Path, kinds: Sequence[str]) -> bool:
    """Whether all of a preset's runs and answers are there."""
    folders = [preset / "instruction_answers" / "generated"]
    for kind in kinds:
        folders += [preset / "dpo_model" / kind, preset / "dpo_answers" / f"{kind}-generated"]
    return all((folder / MANIFEST).exists() for folder in folders)


def _of_kind(presets: Sequence[Path], kind: str) -> dict[str, Any]:
    """One kind's row: each number over all seeds, and of every seed."""
    kept = [read_json(each / "dpo_model" / kind / KEPT_FILE) for each in presets]
    num_pairs = sum(row["num_valid_pairs"] for row in kept)
    right = sum(_reward_accuracy(row) * row["num_valid_pairs"] for row in kept)
    low, high = wilson_interval(round(right), num_pairs)
    before = [_answers(each / "instruction_answers" / "generated") for each in presets]
    after = [_answers(each / "dpo_answers" / f"{kind}-generated") for each in presets]
    return {
        "num_valid_pairs": num_pairs,
        "reward_accuracy": {"value": right / num_pairs, "low": low, "high": high},
        "margin": sum(row["valid_margin"] for row in kept) / len(kept),
        "before": pool_seeds(before),
        "after": pool_seeds(after),
        "change": _change(before, after),
        "by_preset": {
            preset.name: {
                "reward_accuracy": _reward_accuracy(row),
                "margin": row["valid_margin"],
                "best_step": row["step"],
                "before": pool_seeds([old])["accuracy"],
                "after": pool_seeds([new])["accuracy"],
            }
            for preset, row, old, new in zip(presets, kept, before, after, strict=True)
        },
    }


def _reward_accuracy(row: Mapping[str, Any]) -> float:
    """Share of pairs whose chosen side has more reward; before the first step all are equal, which is chance."""
    return row["valid_implicit_accuracy"] if row["step"] else 0.5


def _answers(folder: Path) -> EvalResult:
    return EvalResult("generated", list(read_jsonl(folder / ANSWERS_FILE)), {})


def _change(before: Sequence[EvalResult], after: Sequence[EvalResult]) -> dict[str, float]:
    """Mean difference of right answers over the questions, each the mean of all seeds, with its 95 % interval."""
    num_seeds = len(before)
    by_question = [0.0] * len(before[0].rows)
    for old, new in zip(before, after, strict=True):
        for place, (was, now) in enumerate(zip(old.rows, new.rows, strict=True)):
            by_question[place] += (now["correct"] - was["correct"]) / num_seeds
    mean = sum(by_question) / len(by_question)
    variance = sum((each - mean) ** 2 for each in by_question) / max(1, len(by_question) - 1)
    half = Z_95 * math.sqrt(variance / len(by_question))
    return {"value": mean, "low": mean - half, "high": mean + half}


def _share(of: Mapping[str, float]) -> str:
    return format_score("accuracy", of["value"], low=of["low"], high=of["high"])


def _accuracy(pooled: Mapping[str, Any]) -> dict[str, float]:
    return {"value": pooled["accuracy"], "low": pooled["accuracy_low"], "high": pooled["accuracy_high"]}


def _points(change: Mapping[str, float]) -> str:
    return f"{100 * change['value']:+.1f} ({100 * change['low']:+.1f} to {100 * change['high']:+.1f})"


def _shares(study: Mapping[str, Any]) -> dict[str, tuple[float, float, float]]:
    """Accuracy on generated problems with its interval: before DPO, and after each kind."""
    pooled = {"before": next(iter(study.values()))["before"]}
    pooled |= {f"after {kind}": each["after"] for kind, each in study.items()}
    return {name: tuple(_accuracy(each).values()) for name, each in pooled.items()}  # type: ignore[misc]


def _page(study: Mapping[str, Any]) -> str:
    columns = ["pairs", "held out", "reward accuracy", "margin, nats", "problems, before", "after", "change, points"]
    rows = [
        [
            kind,
            each["num_valid_pairs"],
            _share(each["reward_accuracy"]),
            f"{each['margin']:.3f}",
            _share(_accuracy(each["before"])),
            _share(_accuracy(each["after"])),
            _points(each["change"]),
        ]
        for kind, each in study.items()
    ]
    seeds = [
        [
            preset,
            kind,
            of["best_step"],
            f"{of['reward_accuracy']:.1%}",
            f"{of['margin']:.3f}",
            f"{of['before']:.1%}",
            f"{of['after']:.1%}",
        ]
        for kind, each in study.items()
        for preset, of in each["by_preset"].items()
    ]
    of_seed = ["preset", "pairs", "step kept", "reward accuracy", "margin, nats", "problems, before", "after"]
    return "\n\n".join([page_table(columns, rows), page_table(of_seed, seeds)])
