"""Expert Iteration: sample responses, keep those that are right, fine-tune on them, and again from there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from cs336.evals.rewards import RewardAll
from cs336.files import read_json, read_jsonl, write_json, write_jsonl
from cs336.generate.backend import Backend, SamplingParams
from cs336.posttrain.policy import mark_of_weights, save_policy
from cs336.posttrain.rollouts import (
    Problem,
    RolloutValidation,
    Sampler,
    mark_of_problems,
    problems_of_step,
)
from cs336.posttrain.sft import SftConfig, train_sft
from cs336.progress import Progress, silent
from cs336.train.metrics import METRICS_FILE, Clock, Report
from cs336.train.resume import check_identity

KEPT_FILE = "kept.jsonl"
_RUN_FILE, _SAMPLED_FILE = "run.json", "sampled.json"


def _sft() -> SftConfig:
    return SftConfig(
        batch_size=64,
        learning_rate=1e-5,
        best_by="valid_accuracy",
        best_is="highest",
        keep="last",
        valid_interval=10**9,
    )


@dataclass(frozen=True, kw_only=True)
class ExpertIterationConfig:
    """Settings of an Expert Iteration run; the first two defaults are of the handout's grid.

    Attributes:
        n_ei_steps: rounds of sampling and fine-tuning.
        question_batch_size: questions asked in a round, the handout's |D_b|.
        group_size: responses to each, the handout's G.
        distinct: of equal right responses to a question keep one.
        sft: how the policy is tuned on a round's right responses; its optimizer starts anew each round.
        sampling_temperature, sampling_max_tokens: of rollouts, and of validations.
        sampling_min_tokens: of rollouts alone, where a response without tokens has no mean loss.

    Raises:
        ValueError: a number that is not positive, or fine-tuning that keeps its best by what no round measures.
    """

    n_ei_steps: int = 5
    question_batch_size: int = 512
    group_size: int = 4
    distinct: bool = True
    sft: SftConfig = field(default_factory=_sft)
    sampling_temperature: float = 1.0
    sampling_min_tokens: int = 4
    sampling_max_tokens: int = 1024

    def __post_init__(self) -> None:
        for name in ("n_ei_steps", "question_batch_size", "group_size", "sampling_min_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.sft.best_by.startswith("valid_") or self.sft.best_by in ("valid_loss", "valid_entropy"):
            raise ValueError(f"sft.best_by is {self.sft.best_by!r}; rounds are validated by rollouts: valid_accuracy")


def train_expert_iteration(
    model: nn.Module,
    tokenizer: Any,
    backend: Backend,
    train_problems: Sequence[Problem],
    valid_problems: Sequence[Problem],
    config: ExpertIterationConfig,
    *,
    reward: RewardAll,
    seed: int,
    folder: Path,
    stop: tuple[str, ...] = (),
    hand_over: bool = False,
    report: Report = lambda row: None,
    progress: Progress = silent,
) -> list[dict[str, Any]]:
    """Tune a policy on its own right responses, round after round.

    `folder` gets model and tokenizer of the last round and `metrics.jsonl`, a row a round (0: before the first): the
    rewards, lengths and number of the sampled responses and of those kept, `token_entropy` of the policy on the first
    batch of these before it was tuned on them, and the validation after it. Each round has a folder, `round-01/` and so
    on, with the responses it kept, and curve, checkpoint and weights of its fine-tuning. A run that was killed goes on
    where it was: finished rounds are read, not made again.

    Arguments as of `cs336.posttrain.grpo_loop.train_grpo`.

    Returns:
        The rows.

    Raises:
        ValueError: fewer problems than a round asks, or none to validate on.
        UserError: the folder holds a run of other settings.
    """
    if len(train_problems) < config.question_batch_size or not valid_problems:
        raise ValueError(
            f"{len(train_problems)} training and {len(valid_problems)} validation problems; a round asks"
            f" {config.question_batch_size} questions, and a validation at least one"
        )
    params = SamplingParams(
        temperature=config.sampling_temperature,
        min_tokens=config.sampling_min_tokens,
        max_tokens=config.sampling_max_tokens,
        stop=stop,
    )
    sampler = Sampler(backend, tokenizer, reward, params, seed=seed, hand_over=hand_over)
    validation = partial(RolloutValidation, sampler, valid_problems, precision=config.sft.precision)
    _check_run(folder, model, train_problems, valid_problems, config, seed)
    metrics = folder / METRICS_FILE
    rows = list(read_jsonl(metrics)) if metrics.exists() else []
    clock = Clock(rows[-1]["seconds"] if rows else 0.0)
    if not rows:
        validated = validation(folder)(model.eval(), 0)
        rows = [{"step": 0} | validated | {"seconds": round(clock.seconds(), 3)}]
        write_jsonl(metrics, rows)
        report(rows[-1])
    for number in progress(range(1, config.n_ei_steps + 1), unit="rounds", label="expert iteration"):
        home = folder / f"round-{number:02d}"
        problems = problems_of_step(train_problems, config.question_batch_size, number - 1, seed=seed)
        sampled = _keep_right_ones(home, sampler, model, problems, config, number)
        kept = [(row["prompt"], row["response"]) for row in read_jsonl(home / KEPT_FILE)]
        before = _of_validation(rows[number - 1])
        tuned = before
        if kept:
            evaluate = _Validation(validation(home), before)
            train_sft(model, tokenizer, kept, (), config.sft, seed=seed + number, folder=home, evaluate=evaluate)
            tuned = _tuning(home)
        if number == len(rows):
            rows.append({"step": number} | sampled | tuned | {"seconds": round(clock.seconds(), 3)})
            write_jsonl(metrics, rows)
            report(rows[-1])
    save_policy(model.eval(), tokenizer, folder)
    return rows


def _check_run(
    folder: Path,
    model: nn.Module,
    train_problems: Sequence[Problem],
    valid_problems: Sequence[Problem],
    config: ExpertIterationConfig,
    seed: int,
) -> None:
    """Start the folder's run, or see that it is this one; more rounds than before may follow."""
    settings = {name: value for name, value in asdict(config).items() if name != "n_ei_steps"}
    identity = {
        "config": json.loads(json.dumps(settings)),
        "seed": seed,
        "data": {
            "train_problems": mark_of_problems(train_problems),
            "valid_problems": mark_of_problems(valid_problems),
            "initial_weights": mark_of_weights(model),
        },
    }
    path = folder / _RUN_FILE
    if path.exists():
        check_identity(path, read_json(path), identity)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, identity)


def _keep_right_ones(
    home: Path,
    sampler: Sampler,
    model: nn.Module,
    problems: Sequence[Problem],
    config: ExpertIterationConfig,
    number: int,
) -> dict[str, Any]:
    """Sample a round's responses and write the right ones, once; returns what they were like."""
    if (home / _SAMPLED_FILE).exists():
        return read_json(home / _SAMPLED_FILE)
    sampled = sampler.sample(model.eval(), problems, n=config.group_size, step=number)
    rollouts = sampled.rollouts
    right = [each for each in rollouts if each.rewards["reward"] == 1]
    if config.distinct:
        right = list({(each.problem.prompt, each.text): each for each in right}.values())
    facts = {
        "num_sampled": len(rollouts),
        "num_kept": len(right),
        "num_solved": len({each.problem.prompt for each in right}),
        **{
            name: sum(each.rewards[name] for each in rollouts) / len(rollouts)
            for name in ("reward", "format_reward", "answer_reward")
        },
        **sampled.metrics(),
    }
    home.mkdir(parents=True, exist_ok=True)
    write_jsonl(home / KEPT_FILE, [each.row() for each in right])
    write_json(home / _SAMPLED_FILE, facts)  # last: with it the round's sampling is done
    return facts


def _tuning(home: Path) -> dict[str, Any]:
    """Of a round's fine-tuning: entropy and loss at its first step, the validation at its last."""
    rows = list(read_jsonl(home / METRICS_FILE))
    first = {name: rows[1][name] for name in ("token_entropy", "nats_per_token")}
    return first | {"num_updates": rows[-1]["step"]} | _of_validation(rows[-1])


def _of_validation(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name.startswith("valid_")}


class _Validation:
    """Before its first step a round's policy is that of the round before, and known."""

    def __init__(self, validation: RolloutValidation, before: Mapping[str, float]) -> None:
        self._validation, self._before = validation, before

    def __call__(self, policy: nn.Module, step: int) -> Mapping[str, float]:
        return self._validation(policy, step) if step else self._before
