"""The handout's zero-shot analysis: what the answers before any training come to, and why most of them earn nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cs336.evals.reasoning import draw_of_category
from cs336.evals.report import Share, wilson_interval
from cs336.evals.unrewarded import AMONG_WORDS, REASONS, count_reasons, ends_in_the_right_answer, why_unrewarded
from cs336.files import read_jsonl, write_json
from cs336.fingerprint import digest
from cs336.leaderboard import scores_version
from cs336.posttrain.config import ReasoningConfig, score_runs
from cs336.posttrain.problems import ProblemsConfig
from cs336.presets import Preset
from cs336_assets.asset import Metadata, Step, asset
from cs336_assets.crawl import page_table
from cs336_assets.readings import Readings, cut
from cs336_assets.reasoning_scores import GENERATIONS_FILE

READINGS = Readings("reasoning", ("zero_shot", "length", "expert_iteration", "off_policy", "prompt"))
REASONS_FILE = "reasons.json"
_START = "start_policy"


def _cells(reasoning: ReasoningConfig, problems: ProblemsConfig) -> dict[str, str]:
    """Models of the chain -> the cell of their answers to the held-out problems."""
    runs = score_runs(reasoning, problems).items()
    return {run.model: name for name, run in runs if run.task == "reasoning" and not run.beside_the_chain}


def _before_training(preset: Preset, part: str | None) -> str | None:
    return _cells(preset.reasoning, preset.problems).get(_START)


def _watched(root: Path) -> str:
    return digest([READINGS.version(root), scores_version(root)])


@asset(
    group="reasoning",
    kinds={"markdown"},
    owner="team:posttrain",
    watches=_watched,
    takes={"reasoning_scores": _before_training},
)
def zero_shot_analysis(
    step: Step, reasoning_scores: Path | None, reasoning: ReasoningConfig, problems: ProblemsConfig, seed: int
) -> Metadata:
    """The start policy's answers by format and correctness, why they earn nothing, and ten of each kind to be read.

    Whether the parser is at fault or the model: how many answers of the wrong form end in the right number. Beside it
    the same counts of the chain's tuned models, as far as they are on this machine.
    """
    answers = _answers(reasoning_scores, _cells(reasoning, problems))
    if _START not in answers:
        return READINGS.finish(step, "zero_shot", ["The start policy's answers to the problems are not here."], read={})
    rows = answers[_START]
    read = {str(pair): [_shown(row) for row in draw_of_category(rows, *pair, seed=seed)] for pair in ((0, 0), (1, 0))}
    reasons = {model: count_reasons(some) for model, some in answers.items()}
    write_json(step.folder / REASONS_FILE, reasons)
    by_reason = [[why, *(counts.get(why, 0) for counts in reasons.values())] for why in REASONS]
    page = [
        page_table(
            ["model", "answers", "(1,1)", "(1,0)", "(0,0)", "other"], [_counts(*each) for each in answers.items()]
        ),
        "By (format reward, answer reward), shares with 95 % intervals. Why the others earn nothing:",
        page_table(["reason", *answers], [row for row in by_reason if any(row[1:])]),
        _whose_fault(rows),
    ]
    for pair, some in read.items():
        page.append(f"**{pair}**, {len(some)} of the start policy's at random")
        page += [page_table(["asked", "output", "read as", "right", "why"], some)] if some else []
    return READINGS.finish(step, "zero_shot", page, read=read)


def _answers(start: Path | None, cells: Mapping[str, str]) -> dict[str, list[dict[str, Any]]]:
    """Answers of the chain's models that are here: beside the start policy's, which are an input."""
    if start is None:
        return {}
    written = {model: start.parent / cell / GENERATIONS_FILE for model, cell in cells.items()}
    return {model: list(read_jsonl(path)) for model, path in written.items() if path.exists()}


def _counts(model: str, rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    counts = Counter((int(row["format_reward"]), int(row["answer_reward"])) for row in rows)
    shares = []
    for pair in ((1, 1), (1, 0), (0, 0)):
        count = counts.pop(pair, 0)
        shares.append(f"{count:,}: {Share(count / len(rows), *wilson_interval(count, len(rows)))}")
    return [model, len(rows), *shares, counts.total()]


def _whose_fault(rows: Sequence[dict[str, Any]]) -> str:
    """Sentences on what a milder parser or grader could give, beside what it would give by chance."""
    unformatted = [row for row in rows if not row["format_reward"]]
    wrong = [row for row in rows if row["format_reward"] and not row["answer_reward"]]
    if not unformatted and not wrong:
        return "**Parser or model?** Every answer is right."
    # The next question's answer is right by chance alone.
    others = [row | {"example": after["example"]} for row, after in zip(rows, [*rows[1:], rows[0]], strict=True)]
    by_chance = sum(ends_in_the_right_answer(row) for row in others if not row["format_reward"])
    hidden = sum(map(ends_in_the_right_answer, unformatted))
    among_words = sum(why_unrewarded(row) == AMONG_WORDS for row in wrong)
    num_failures = len(unformatted) + len(wrong)
    return (
        f"**Parser or model?** Of the {len(unformatted):,} answers without the format {hidden:,} end in the right"
        f" answer all the same, and {by_chance:,} in that of the next question, which is chance. Of the {len(wrong):,}"
        f" well-formed wrong ones {among_words:,} hold the right answer among other words, which the grader does not"
        f" take. So the parser is at fault in at most {(hidden + among_words) / num_failures:.1%} of the"
        f" {num_failures:,} failures, and the model in the others."
    )


def _shown(row: Mapping[str, Any]) -> list[str]:
    example, read_as = row["example"], str(row["prediction"] or "")
    return [cut(example["question"]), cut(row["output"]), cut(read_as), str(example["answer"]), why_unrewarded(row)]
