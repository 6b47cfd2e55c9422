"""What a preset's reasoning track trains: its chain from SFT to GRPO, and the experiments around it.

Runs are named, and a name says how a run differs from the preset's own settings; see `sft_runs`,
`expert_iteration_runs` and `grpo_runs`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cs336.posttrain.expert_iteration import ExpertIterationConfig
from cs336.posttrain.grpo import GrpoConfig
from cs336.posttrain.problems import ProblemsConfig
from cs336.posttrain.sft import SftConfig
from cs336.tokens.chat import read_template

STAGES = ("sft", "expert_iteration", "grpo")  # of a chain, each from the weights of another, or from the start
SCORE_TASKS = ("reasoning", "gsm8k", "math")

# The handout's experiments, each a change of the preset's own GRPO settings.
GRPO_ROWS: dict[str, dict[str, Any]] = {
    "grpo": {},
    "no-baseline": {"loss_type": "no_baseline"},
    "constant-length": {},  # the constant is the longest response's number of tokens, see `_grpo`
    "own-length": {"normalize_constant": None},
    "no-std": {"use_std_normalization": False},
    "std": {"use_std_normalization": True},
    "question-only": {},  # prompt and reward, see `grpo_runs`
}
_RATE = re.compile(r"rate-(\d+(?:\.\d+)?(?:e-?\d+)?)")
_OFF_POLICY = re.compile(r"(off-policy|no-clip)-(\d+)x(\d+)")  # epochs, then updates in each
_SFT = re.compile(r"(full|\d+)(-correct)?")
_EXPERT = re.compile(r"(batch|samples|epochs)-(\d+)")
_EXPERT_FIELDS = {"batch": "question_batch_size", "samples": "group_size"}


@dataclass(frozen=True, kw_only=True)
class ReasoningConfig:
    """The reasoning track of a preset.

    Attributes:
        sft, expert_iteration, grpo: settings of each stage's runs.
        sft_runs, expert_iteration_runs, grpo_runs: names of their runs; the first of each is the chain's.
        chain: which stages the chain has, of `STAGES`.
        expert_iteration_from, grpo_from: the stage whose weights they start from; "" for the start policy.
        longer_sft: a second SFT arm goes on from the chain's SFT for as long as its GRPO took, with what GRPO started
            from.
        score_tasks: what models are scored on, of `SCORE_TASKS`.
        max_score_examples: questions of GSM8K and MATH that are drawn; 0 takes all.
        num_score_seeds: how often each question is sampled; scores are the mean.
        leaderboard_seconds: of training that the leaderboard allows; the handout's 4 hours.
    """

    sft: SftConfig
    expert_iteration: ExpertIterationConfig
    grpo: GrpoConfig
    sft_runs: tuple[str, ...] = ("full",)
    expert_iteration_runs: tuple[str, ...] = ("expert-iteration",)
    grpo_runs: tuple[str, ...] = ("grpo",)
    chain: tuple[str, ...] = STAGES
    expert_iteration_from: str = "sft"
    grpo_from: str = "sft"
    longer_sft: bool = False
    score_tasks: tuple[str, ...] = SCORE_TASKS
    max_score_examples: int = 0
    num_score_seeds: int = 1
    leaderboard_seconds: float = 4 * 3_600.0

    def __post_init__(self) -> None:
        for name, values, known in (
            ("chain", self.chain, STAGES),
            ("score_tasks", self.score_tasks, SCORE_TASKS),
            ("expert_iteration_from", (self.expert_iteration_from,), ("", "sft")),
            ("grpo_from", (self.grpo_from,), ("", "sft", "expert_iteration")),
        ):
            unknown = [value for value in values if value not in known]
            if unknown:
                raise ValueError(f"{name}: there is no {unknown[0]!r}; there are {', '.join(filter(None, known))}")
        for stage in self.chain:
            if not getattr(self, f"{stage}_runs"):
                raise ValueError(f"{stage} is in the chain, but {stage}_runs are empty; name one")
        starts = {"expert_iteration": self.expert_iteration_from, "grpo": self.grpo_from}
        for stage, before in starts.items():
            if getattr(self, f"{stage}_runs") and before and before not in self.chain:
                raise ValueError(f'{stage}_from is {before!r}, which is not in the chain; "" is the start policy')
        if self.longer_sft and not {"sft", "grpo"} <= set(self.chain):
            raise ValueError("longer_sft goes on from the chain's SFT for as long as its GRPO took; both must be in it")
        if self.max_score_examples < 0 or self.num_score_seeds < 1 or self.leaderboard_seconds <= 0:
            raise ValueError("max_score_examples is 0 or more, num_score_seeds 1 or more, leaderboard_seconds above 0")
        score_runs(self, ProblemsConfig())  # every run's name and settings, whatever is asked


@dataclass(frozen=True, kw_only=True)
class SftRun:
    """SFT on some of the traces.

    Attributes:
        size: traces taken; 0 for all.
        correct_only: only those whose answer is right.
        sampling_max_tokens: of its validations' responses.
    """

    config: SftConfig
    size: int = 0
    correct_only: bool = False
    template: str
    reward: str
    sampling_max_tokens: int


@dataclass(frozen=True, kw_only=True)
class ExpertIterationRun:
    """Expert Iteration on the problems."""

    config: ExpertIterationConfig
    template: str
    reward: str


@dataclass(frozen=True, kw_only=True)
class GrpoRun:
    """GRPO on the problems, asked by a template and paid by a reward, validation too."""

    config: GrpoConfig
    template: str
    reward: str


@dataclass(frozen=True, kw_only=True)
class ScoreRun:
    """One model's answers to one set of questions.

    Attributes:
        model: as the leaderboard calls it: "grpo_model", or "grpo_model/no-std" of a run beside the chain.
        asset, cell: whose it is; "" for an asset without cells.
        task: of `SCORE_TASKS`.
        set_name: of the questions, beside the score.
        num_seeds: how often each question is sampled.
        max_examples: questions drawn; 0 for all.
    """

    model: str
    asset: str
    cell: str
    task: str
    set_name: str
    template: str
    reward: str
    num_seeds: int
    max_examples: int
    sampling_max_tokens: int

    @property
    def beside_the_chain(self) -> bool:
        """Whether the model is one of an experiment's."""
        return "/" in self.model


def stop_strings(template: str) -> tuple[str, ...]:
    """Where a response ends: at `</answer>` if the template opens the thinking, else at the end of text alone."""
    return ("</answer>",) if "<think>" in read_template(template) else ()


def sft_runs(config: ReasoningConfig, problems: ProblemsConfig) -> dict[str, SftRun]:
    """Runs by name: "full", or a number of traces; with "-correct", only those with the right answer.

    Raises:
        ValueError: a name that says nothing.
    """
    runs = {}
    for name in config.sft_runs:
        found = _SFT.fullmatch(name)
        if not found:
            raise ValueError(f"sft_runs: {name!r} is no run; give full, full-correct, or a size such as 128")
        size = 0 if found[1] == "full" else int(found[1])
        runs[name] = SftRun(
            config=config.sft,
            size=size,
            correct_only=bool(found[2]),
            sampling_max_tokens=config.grpo.sampling_max_tokens,
            **_asked(problems),
        )
    return runs


def longer_sft_runs(config: ReasoningConfig, problems: ProblemsConfig) -> dict[str, SftRun]:
    """The second SFT arm, if there is one: the chain's traces and settings at a constant rate, without an end.

    It is kept where most held-out answers were right, as GRPO is. By the loss it would be kept where it began: the
    chain's SFT was trained to the end of that.
    """
    if not config.longer_sft:
        return {}
    chain = sft_runs(config, problems)[config.sft_runs[0]]
    endless = replace(config.sft, num_epochs=100_000, schedule="constant", warmup_fraction=0.0, patience=0)
    return {"as-long-as-grpo": replace(chain, config=replace(endless, best_by="valid_accuracy", best_is="highest"))}


def expert_iteration_runs(config: ReasoningConfig, problems: ProblemsConfig) -> dict[str, ExpertIterationRun]:
    """Runs by name: "expert-iteration", or one setting in another size: "batch-512" questions a step, "samples-8" of
    each, "epochs-2" of SFT a step.

    Raises:
        ValueError: a name that says nothing.
    """
    runs = {}
    for name in config.expert_iteration_runs:
        found = _EXPERT.fullmatch(name)
        if not found and name != "expert-iteration":
            raise ValueError(
                f"expert_iteration_runs: {name!r} is no run; give expert-iteration, batch-N, samples-N or epochs-N"
            )
        own = config.expert_iteration
        if found and found[1] == "epochs":
            own = replace(own, sft=replace(own.sft, num_epochs=int(found[2])))
        elif found:
            changes: dict[str, Any] = {_EXPERT_FIELDS[found[1]]: int(found[2])}
            own = replace(own, **changes)
        runs[name] = ExpertIterationRun(config=own, **_asked(problems))
    return runs


def grpo_runs(config: ReasoningConfig, problems: ProblemsConfig) -> dict[str, GrpoRun]:
    """Runs by name: those of `GRPO_ROWS`, "rate-2e-5" with another learning rate, and off-policy "off-policy-2x4",
    which trains on each rollout batch for 2 epochs of 4 updates each, clipped, or "no-clip-2x4", not clipped.

    Raises:
        ValueError: a name that says nothing, or settings that do not go together.
    """
    alone = {"template": "question_only", "reward": "question_only"}
    return {
        name: GrpoRun(config=_grpo(name, config.grpo), **(alone if name == "question-only" else _asked(problems)))
        for name in config.grpo_runs
    }


def _grpo(name: str, config: GrpoConfig) -> GrpoConfig:
    """The settings that a run's name stands for."""
    if rate := _RATE.fullmatch(name):
        return replace(config, learning_rate=float(rate[1]))
    if off_policy := _OFF_POLICY.fullmatch(name):
        kind, epochs, updates = off_policy[1], int(off_policy[2]), int(off_policy[3])
        train_batch_size, rest = divmod(config.rollout_batch_size, updates)
        if rest:
            raise ValueError(f"grpo_runs: {name!r} cuts {config.rollout_batch_size} rollouts into {updates} batches")
        return replace(
            config,
            loss_type="grpo_clip" if kind == "off-policy" else "grpo_no_clip",
            epochs_per_rollout_batch=epochs,
            train_batch_size=train_batch_size,
            # As many responses at once as before, for the same memory.
            gradient_accumulation_steps=max(1, train_batch_size // config.micro_batch_size),
        )
    if name not in GRPO_ROWS:
        raise ValueError(
            f"grpo_runs: {name!r} is no run; give {', '.join(GRPO_ROWS)}, rate-R, off-policy-ExU or no-clip-ExU"
        )
    if name == "constant-length":
        return replace(config, normalize_constant=float(config.sampling_max_tokens))
    return replace(config, **GRPO_ROWS[name])


def questions_at_once(config: ReasoningConfig, problems: ProblemsConfig) -> dict[str, int]:
    """Different questions in one batch, by the run that asks them."""
    rounds = {name: run.config.question_batch_size for name, run in expert_iteration_runs(config, problems).items()}
    return rounds | {name: run.config.num_questions for name, run in grpo_runs(config, problems).items()}


def _asked(problems: ProblemsConfig) -> dict[str, Any]:
    return {"template": problems.template, "reward": problems.reward}


def chain_cells(config: ReasoningConfig, problems: ProblemsConfig) -> dict[str, tuple[str, ...]]:
    """Cells of each asset that the chain consists of, from SFT to GRPO and the scores of all its models."""
    chain: dict[str, tuple[str, ...]] = {
        f"{stage}_model": (getattr(config, f"{stage}_runs")[0],) if stage in config.chain else () for stage in STAGES
    }
    chain["longer_sft_model"] = tuple(longer_sft_runs(config, problems))
    scores = score_runs(config, problems).items()
    chain["reasoning_scores"] = tuple(name for name, run in scores if not run.beside_the_chain)
    return chain


def score_runs(config: ReasoningConfig, problems: ProblemsConfig) -> dict[str, ScoreRun]:
    """Which models are asked what: those of the chain every set of questions; after them those beside it, the held-out
    problems alone.
    """
    scored: dict[str, ScoreRun] = {}

    def add(asset: str, cell: str, model: str, tasks: Sequence[str], asked: Mapping[str, str]) -> None:
        for task in tasks:
            if task == problems.task:  # its test split is what "reasoning" asks
                continue
            own = task == "reasoning"
            scored[f"{model.replace('/', '-')}-x-{task}"] = ScoreRun(
                model=model,
                asset=asset,
                cell=cell,
                task=task,
                set_name=f"{problems.task if own else task}, {asked['template']}",
                num_seeds=config.num_score_seeds,
                max_examples=0 if own else config.max_score_examples,
                sampling_max_tokens=config.grpo.sampling_max_tokens,
                **asked,
            )

    add("start_policy", "", "start_policy", config.score_tasks, _asked(problems))
    stages: dict[str, Mapping[str, SftRun | ExpertIterationRun | GrpoRun]] = {
        "sft_model": sft_runs(config, problems),
        "longer_sft_model": longer_sft_runs(config, problems),
        "expert_iteration_model": expert_iteration_runs(config, problems),
        "grpo_model": grpo_runs(config, problems),
    }
    for asset, runs in stages.items():
        for place, (name, run) in enumerate(runs.items()):
            in_chain = place == 0 and (asset == "longer_sft_model" or asset.removesuffix("_model") in config.chain)
            tasks = config.score_tasks if in_chain else ("reasoning",)
            asked = {"template": run.template, "reward": run.reward}
            add(asset, name, asset if in_chain else f"{asset}/{name}", tasks, asked)
    return dict(sorted(scored.items(), key=lambda item: item[1].beside_the_chain))
