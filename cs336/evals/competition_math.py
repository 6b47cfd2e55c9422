"""MATH: competition problems with a final answer; and worked traces of its training problems.

Source: Hendrycks et al. 2021, arXiv:2103.03874. Prompts and scores follow the handout (alignment).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cs336.evals.rewards import RewardAll
from cs336.files import UserError, read_jsonl
from cs336.tokens.chat import read_template


@dataclass(frozen=True, kw_only=True)
class MathFields:
    """What the fields of a file of problems are called; the handout leaves it open.

    Attributes:
        question, answer: the problem and its final answer.
        level, subject: kept where the file has them.
    """

    question: str = "problem"
    answer: str = "answer"
    level: str = "level"
    subject: str = "subject"


def read_math(path: Path, fields: MathFields | None = None) -> list[dict[str, Any]]:
    """Problems as `question`, `answer` and, where the file has them, `level` and `subject`.

    An empty answer stays: evaluations leave such problems out and count them.

    Args:
        path: JSON Lines, gzipped or not.
        fields: names in the file; default `MathFields()`.

    Raises:
        UserError: file missing, or a row without question or answer.
    """
    fields = fields or MathFields()
    problems = []
    for number, row in enumerate(read_jsonl(path), 1):
        for name in (fields.question, fields.answer):
            if not isinstance(row, dict) or row.get(name) is None:
                raise UserError(f"{path}: record {number} has no {name!r}; name the fields of this file in MathFields")
        problem = {"question": row[fields.question], "answer": row[fields.answer]}
        problem |= {
            name: row[own] for name, own in (("level", fields.level), ("subject", fields.subject)) if own in row
        }
        problems.append(problem)
    return problems


def read_traces(path: Path) -> list[dict[str, str]]:
    """Worked traces, `prompt` (filled in) and `response`, with whatever other fields the file has.

    Args:
        path: JSON Lines, gzipped or not.

    Raises:
        UserError: file missing, or a row without prompt or response.
    """
    traces = list(read_jsonl(path))
    for number, row in enumerate(traces, 1):
        if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in ("prompt", "response")):
            raise UserError(f"{path}: record {number} has no prompt and response")
    return traces


def question_of(prompt: str, *, template: str = "r1_zero") -> str:
    """The question that a prompt was filled with; a prompt that is no such prompt is a question itself."""
    before, after = read_template(template).split("{question}")
    # Some published traces have an empty line after the preamble.
    for opening in (before, before.replace("\nUser: ", "\n\nUser: ")):
        if prompt.startswith(opening) and prompt.endswith(after):
            return prompt[len(opening) : len(prompt) - len(after)]
    return prompt


def correct_traces(
    traces: Sequence[Mapping[str, Any]],
    problems: Sequence[Mapping[str, Any]],
    *,
    reward: RewardAll,
    template: str = "r1_zero",
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Traces whose answer is right, joined with the answers of the problems by question.

    Args:
        traces: `prompt` and `response`; they have no answer of their own, so theirs is not looked at.
        problems: `question` and `answer`.
        reward: scores responses; see `reward_each`.
        template: of the prompts.

    Returns:
        The traces kept, in order, with `ground_truth`, and how many were "kept", "wrong", "not in form" (which earns
        nothing, however right the answer), or had "no problem" of their question.
    """
    answers = {_key(problem["question"]): problem["answer"] for problem in problems}
    keys = [_key(question_of(trace["prompt"], template=template)) for trace in traces]
    joined = [
        dict(trace) | {"ground_truth": answers[key]} for trace, key in zip(traces, keys, strict=True) if key in answers
    ]
    rewards = reward([trace["response"] for trace in joined], [trace["ground_truth"] for trace in joined])
    kept = [trace for trace, scores in zip(joined, rewards, strict=True) if scores["reward"] == 1]
    formless = sum(scores["format_reward"] == 0 for scores in rewards)
    return kept, {
        "kept": len(kept),
        "wrong": len(joined) - len(kept) - formless,
        "not in form": formless,
        "no problem": len(traces) - len(joined),
    }


def _key(question: str) -> str:
    """Questions are the same whatever their white space: files differ in it."""
    return " ".join(question.split())
