"""Runs of the reasoning track between folders: a policy and problems in, a better policy out."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from cs336.evals.answerer import Answerer
from cs336.evals.competition_math import correct_traces, question_of
from cs336.evals.reasoning import evaluate_reasoning, pool_seeds
from cs336.evals.rewards import RewardAll, WatchedReward, reward_named
from cs336.evals.task import EvalResult
from cs336.files import read_jsonl, write_json, write_jsonl
from cs336.generate.backend import Backend, SamplingParams, codec_of
from cs336.generate.generators import is_same_device, opened_generator
from cs336.model.transformer import TransformerLM
from cs336.posttrain.config import ExpertIterationRun, GrpoRun, ScoreRun, SftRun, stop_strings
from cs336.posttrain.expert_iteration import train_expert_iteration
from cs336.posttrain.grpo_loop import train_grpo
from cs336.posttrain.loop import Outcome, drop_checkpoints
from cs336.posttrain.problems import ProblemSet, prompts_of
from cs336.posttrain.rollouts import Problem, RolloutValidation, Sampler
from cs336.posttrain.sft import train_sft
from cs336.posttrain.start import PolicyConfig, load_policy
from cs336.progress import Progress, silent
from cs336.train.metrics import METRICS_FILE, Report, read_rows

T = TypeVar("T")

COUNTS_FILE = "traces.json"  # how many traces an SFT run was given, kept and took
PARTS = ("train", "valid", "test", "traces", "valid_traces")


def write_problems(problems: ProblemSet, folder: Path) -> None:
    """One file for each part."""
    for name in PARTS:
        write_jsonl(folder / f"{name}.jsonl", getattr(problems, name))


def read_records(folder: Path, part: str) -> list[dict[str, Any]]:
    """A part of what `write_problems` wrote."""
    return list(read_jsonl(folder / f"{part}.jsonl"))


def read_problems(folder: Path, part: str, template: str) -> list[Problem]:
    """Problems of a part as a policy is asked."""
    records = read_records(folder, part)
    prompts = prompts_of(records, template)
    return [Problem(prompt, record["answer"]) for prompt, record in zip(prompts, records, strict=True)]


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where and how a run is made, apart from what it is.

    Attributes:
        start: folder of the policy that it starts from.
        problems: folder of problems and traces.
        folder: of the run.
        policy: how the policy is read, and what generates.
        device: of the policy, and of the generator but where its settings name another.
        num_workers: processes that grade, and threads that compute on a CPU.
    """

    start: Path
    problems: Path
    folder: Path
    policy: PolicyConfig
    seed: int
    device: torch.device | str = "cpu"
    num_workers: int = 1
    report: Report = lambda row: None
    progress: Progress = silent


@dataclass(frozen=True)
class _Policy:
    """A policy in memory, with what draws and grades its responses."""

    model: TransformerLM
    tokenizer: Any
    backend: Backend
    reward: RewardAll
    hand_over: bool


@contextlib.contextmanager
def _opened(site: Site, reward: str) -> Iterator[_Policy]:
    model, tokenizer = load_policy(site.start, site.policy, device=site.device)
    device = _generator_device(site)
    hand_over = _hands_over(site, device)
    num_threads = torch.get_num_threads()
    with opened_generator(
        model, tokenizer, site.policy.generator, device=device, memory_share=site.policy.memory_share
    ) as backend:
        if torch.device(site.device).type == "cpu":
            torch.set_num_threads(site.num_workers)  # more than there are cores for would wait for one another
        try:
            yield _Policy(model, tokenizer, backend, _graders(reward, site.num_workers).score, hand_over)
        finally:
            torch.set_num_threads(num_threads)


@functools.cache
def _graders(reward: str, num_workers: int) -> WatchedReward:
    """Processes that grade for all runs of this one, with which they end: each takes a second to be ready."""
    return WatchedReward(reward_named(reward), num_workers=num_workers)


def _generator_device(site: Site) -> torch.device:
    """The generator's device: the one that is set; else the policy's, or a second GPU for ours where one cannot hold
    both.
    """
    policy, trainer = site.policy, torch.device(site.device)
    if policy.generator_device:
        return torch.device(policy.generator_device)
    spare = policy.hand_over and policy.generator == "ours" and torch.cuda.device_count() > 1
    return torch.device("cuda", 1 - (trainer.index or 0) % 2) if spare and trainer.type == "cuda" else trainer


def _hands_over(site: Site, generator: torch.device) -> bool:
    """Whether generator and trainer take turns: elsewhere it has nobody to make room for."""
    return site.policy.hand_over and is_same_device(generator, site.device)


def run_sft(run: SftRun, site: Site, *, max_seconds: float = 0.0) -> tuple[Outcome, dict[str, int]]:
    """Tune on traces; the folder gets what `train_sft` writes, but its checkpoints.

    Args:
        max_seconds: of wall time; 0 keeps what the run's settings say.

    Returns:
        How it ended, and how many traces there were, were right where that was asked, were taken, and of these left
        out as too long.

    Raises:
        ValueError: no trace is left to train on.
    """
    config = replace(run.config, max_seconds=max_seconds) if max_seconds else run.config
    with _opened(site, run.reward) as policy:
        traces, counts = _chosen_traces(run, site, policy.reward)
        params = SamplingParams(max_tokens=run.sampling_max_tokens, stop=stop_strings(run.template))
        sampler = Sampler(
            policy.backend,
            policy.tokenizer,
            policy.reward,
            params,
            seed=site.seed,
            hand_over=policy.hand_over,
        )
        valid_traces = [(each["prompt"], each["response"]) for each in read_records(site.problems, "valid_traces")]
        outcome = train_sft(
            policy.model,
            policy.tokenizer,
            traces,
            valid_traces,
            config,
            seed=site.seed,
            folder=site.folder,
            evaluate=RolloutValidation(
                sampler,
                read_problems(site.problems, "valid", run.template),
                site.folder,
                precision=run.config.precision,
            ),
            report=site.report,
            progress=site.progress,
        )
        counts |= {"num_left_out": outcome.num_left_out}
        write_json(site.folder / COUNTS_FILE, counts)
        drop_checkpoints(site.folder)
        return outcome, counts


def _chosen_traces(run: SftRun, site: Site, reward: RewardAll) -> tuple[list[tuple[str, str]], dict[str, int]]:
    """The traces of a run, as prompt and response."""
    traces = read_records(site.problems, "traces")
    counts = {"num_traces": len(traces)}
    if run.correct_only:
        answers = [
            {"question": question_of(each["prompt"], template=run.template), "answer": each["ground_truth"]}
            for each in traces
            if each.get("ground_truth") is not None
        ]
        answers += read_records(site.problems, "train")
        traces, joined = correct_traces(traces, answers, reward=reward, template=run.template)
        counts |= {f"num_{name.replace(' ', '_')}": count for name, count in joined.items()}
    if run.size > len(traces):
        raise ValueError(f"{run.size} traces are asked for, there are {len(traces)}; raise problems.num_traces")
    chosen = traces[: run.size or None]
    return [(each["prompt"], each["response"]) for each in chosen], counts | {"num_train_traces": len(chosen)}


def run_expert_iteration(run: ExpertIterationRun, site: Site) -> list[dict[str, Any]]:
    """Tune on own right responses, round after round; the folder keeps of each round its curve and responses.

    Returns:
        The rows, one a round.
    """
    rows = _on_rewards(train_expert_iteration, run, site)
    for home in sorted(site.folder.glob("round-*")):
        drop_checkpoints(home)
        for weights in home.glob("*.safetensors"):  # the last round's stand in the run's own folder
            weights.unlink()
    return rows


def run_grpo(run: GrpoRun, site: Site) -> Outcome:
    """Train on rewards; the folder gets what `train_grpo` writes, but its checkpoints."""
    outcome = _on_rewards(train_grpo, run, site)
    drop_checkpoints(site.folder)
    return outcome


def _on_rewards(train: Callable[..., T], run: ExpertIterationRun | GrpoRun, site: Site) -> T:
    """Train a policy on rewards for its own responses to the site's problems."""
    with _opened(site, run.reward) as policy:
        return train(
            policy.model,
            policy.tokenizer,
            policy.backend,
            read_problems(site.problems, "train", run.template),
            read_problems(site.problems, "valid", run.template),
            run.config,
            reward=policy.reward,
            seed=site.seed,
            folder=site.folder,
            stop=stop_strings(run.template),
            hand_over=policy.hand_over,
            report=site.report,
            progress=site.progress,
        )


def training_seconds(folder: Path) -> float:
    """Wall time of a run by its own clock, validations included."""
    return [0.0, *(row["seconds"] for row in read_rows(folder / METRICS_FILE))][-1]


def score_policy(run: ScoreRun, examples: Sequence[dict[str, Any]], site: Site) -> EvalResult:
    """Ask a policy, `site.start`, each question as often as the run says, at temperature 1.

    Returns:
        The first sampling's rows, and its metrics with the accuracy of all samplings in place of its own; see
        `pool_seeds`.

    Raises:
        ValueError: no usable example.
    """
    with _opened(site, run.reward) as policy:
        answerer = Answerer(
            backend=policy.backend,
            codec=codec_of(policy.tokenizer),
            context_length=policy.model.config.context_length,
            progress=site.progress,
        )
        results = [
            evaluate_reasoning(
                examples,
                reward=policy.reward,
                generate=answerer.sampling(temperature=1.0, seed=site.seed + number).generate,
                name=run.set_name,
                template=run.template,
                max_new_tokens=run.sampling_max_tokens,
                max_examples=run.max_examples,
                seed=site.seed,
            )
            for number in range(run.num_seeds)
        ]
        first = results[0]
        return first if len(results) == 1 else EvalResult(first.name, first.rows, first.metrics | pool_seeds(results))
