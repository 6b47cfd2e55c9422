"""The alignment supplement's benchmarks by name, each with its questions, its frame and its judge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from cs336 import catalog
from cs336.evals.alpaca_eval import (
    alpaca_predictions,
    difficulty_of,
    judge_alpaca_eval,
    predict_alpaca_eval,
    read_annotations,
    references_of,
)
from cs336.evals.answerer import Answerer
from cs336.evals.generated_tasks import GeneratedConfig, generate_problems, to_record
from cs336.evals.gsm8k import evaluate_gsm8k
from cs336.evals.judges import (
    OFFLINE,
    RANKING_NUM_GPUS,
    PairJudge,
    RuleSafetyJudge,
    SafetyJudge,
    rule_pair_judge,
    vllm_ranking_judge,
    vllm_safety_judge,
)
from cs336.evals.mmlu import evaluate_mmlu
from cs336.evals.safety import judge_safety, predict_safety, safety_predictions
from cs336.evals.task import (
    ALPACA,
    ZERO_SHOT,
    EvalConfig,
    EvalResult,
    Frame,
    pick_rows,
    read_sample,
)
from cs336.generate.vllm import require_vllm

FRAMES: Mapping[str, Frame] = {"zero_shot": ZERO_SHOT, "alpaca": ALPACA}
GRADED = ("mmlu", "gsm8k", "generated")  # marked by their answers
JUDGED = ("alpaca_eval", "safety")  # by a judge, later
# Where the real questions are found; else the project's own sample is asked, and named so.
_ENTRIES = {"mmlu": "mmlu", "gsm8k": "gsm8k", "alpaca_eval": "alpaca-eval", "safety": "simple-safety-tests"}


@dataclass(frozen=True, kw_only=True)
class ChatEvalConfig:
    """How tuned models are asked; everything that shapes an answer.

    Attributes:
        max_mmlu, max_gsm8k, max_alpaca, max_safety: how many questions of each set, drawn with `seed`; 0 takes all.
        num_generated: how many generated problems, whose answers are verified; from their test split.
        problems: which ones.
        generated_temperature: at which these are answered; 0 is greedy, as all else is. A model that solves a problem
            in one way or another has its accuracy as a share of samples alone: greedy, it is all or nothing.
        max_new_tokens: longest output; the handout leaves it open. Those cut off by it are counted.
        dtype: of the weights that answer, "float32" or "bfloat16"; "" takes them as they are stored.
        seed: fixes which questions are drawn.
    """

    max_mmlu: int = 0
    max_gsm8k: int = 0
    max_alpaca: int = 0
    max_safety: int = 0
    num_generated: int = 1_000
    problems: GeneratedConfig = field(default_factory=GeneratedConfig)
    generated_temperature: float = 0.0
    max_new_tokens: int = 512
    dtype: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.dtype not in ("", "float32", "bfloat16"):
            raise ValueError(f'dtype is float32, bfloat16 or "", got {self.dtype!r}')
        for name in ("max_mmlu", "max_gsm8k", "max_alpaca", "max_safety"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; give 0 or a positive number")
        for name in ("num_generated", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give at least 1")
        if self.generated_temperature < 0:
            raise ValueError(f"generated_temperature is {self.generated_temperature}; give 0 or a positive number")

    @property
    def weights_dtype(self) -> torch.dtype | None:
        """The type to read weights in; None for their own."""
        return getattr(torch, self.dtype) if self.dtype else None


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """Who judges free answers.

    Attributes:
        model: a chat model on vLLM, by path, entry of the catalogue or name on the hub, such as the handout's
            meta-llama/Llama-3.3-70B-Instruct; or "offline", rules that are no model's opinion.
        num_gpus: over which it is split.
    """

    model: str = OFFLINE
    num_gpus: int = RANKING_NUM_GPUS


def questions(task: str) -> tuple[list[dict[str, Any]], str]:
    """The records of a set, and its name beside a score: "mmlu", or "mmlu sample" where the real one is not here."""
    entry = _ENTRIES[task]
    found = catalog.find(entry)
    if found is None:
        return read_sample(task), f"{entry} sample"
    readers: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "mmlu": lambda: catalog.read_mmlu(found, "test"),
        "gsm8k": lambda: list(catalog.read_gsm8k(found, "test")),
        "alpaca_eval": lambda: list(catalog.read_alpaca_eval(found)),
        "safety": lambda: list(catalog.read_simple_safety_tests(found)),
    }
    return readers[task](), entry


def answer(task: str, answerer: Answerer, config: ChatEvalConfig, *, frame: Frame, num_shots: int = 0) -> EvalResult:
    """Put the questions of a task to a model; those of GRADED are marked.

    Generated problems are asked and read as GSM8K's.

    Args:
        task: of GRADED or JUDGED.
        frame: `ZERO_SHOT` for base models, `ALPACA` for tuned ones.
        num_shots: worked questions, of MMLU's dev split, before each of MMLU's whose likeliest letter is asked for.

    Raises:
        ValueError: no such task, or fewer worked questions of a subject.
    """
    if task == "generated" and config.generated_temperature:
        answerer = answerer.sampling(temperature=config.generated_temperature, seed=config.seed)
    asked: dict[str, Any] = {"generate": answerer.generate, "frame": frame}
    free = asked | {"max_new_tokens": config.max_new_tokens, "seed": config.seed}
    limits = EvalConfig(
        max_mmlu=config.max_mmlu,
        max_gsm8k=0 if task == "generated" else config.max_gsm8k,
        max_new_tokens=config.max_new_tokens,
        mmlu_few_shot=num_shots,
        seed=config.seed,
    )
    if task == "generated":
        problems = generate_problems(config.problems, "test", config.num_generated)
        return evaluate_gsm8k([to_record(each) for each in problems], config=limits, name="generated", **asked)
    if task not in _ENTRIES:
        raise ValueError(f"no task {task!r}; there are {', '.join((*GRADED, *JUDGED))}")
    examples, name = questions(task)
    if task == "mmlu":
        choose = answerer.choose if answerer.model is not None else None
        found = catalog.find("mmlu")
        few_shot = catalog.read_mmlu(found, "dev") if found and num_shots else []
        return evaluate_mmlu(examples, choose=choose, config=limits, few_shot=few_shot, name=name, **asked)
    if task == "gsm8k":
        return evaluate_gsm8k(examples, config=limits, name=name, **asked)
    predict, limit = (
        (predict_alpaca_eval, config.max_alpaca) if task == "alpaca_eval" else (predict_safety, config.max_safety)
    )
    return predict(examples, max_examples=limit, name=name, **free)


# ---- judgements


@dataclass(frozen=True)
class Opponent:
    """Whom AlpacaEval compares a model with.

    Attributes:
        outputs: its answers, `instruction`, `output` and `generator`.
        difficulty: of each instruction, where stored preferences tell it.
    """

    outputs: Sequence[Mapping[str, str]]
    difficulty: Mapping[str, float] | None


def opponent() -> Opponent:
    """GPT-4 Turbo, AlpacaEval's default, where its stored outputs are here; else the set's old reference outputs."""
    if catalog.find("alpaca-eval-preferences"):
        stored = [read_annotations(path) for path in catalog.require_files("alpaca-eval-preferences")]
        if catalog.find("alpaca-eval"):
            return Opponent(references_of(stored[0]), difficulty_of(stored))
    return Opponent(questions("alpaca_eval")[0], None)


def require_judge(config: JudgeConfig) -> None:
    """Do nothing if the judge can be had, as far as can be told without reading it: before answers are made for it.

    Raises:
        UserError: a model was asked for, and vLLM is not installed or the catalogue's is not here.
    """
    if config.model != OFFLINE:
        _judge_model(config)


def pair_judge(config: JudgeConfig) -> PairJudge:
    """The judge of answers; errors as `require_judge`."""
    if config.model == OFFLINE:
        return rule_pair_judge()
    return vllm_ranking_judge(_judge_model(config), num_gpus=config.num_gpus)


def safety_judge(config: JudgeConfig) -> SafetyJudge:
    """The judge of safety; errors as `require_judge`."""
    if config.model == OFFLINE:
        return RuleSafetyJudge()
    return vllm_safety_judge(_judge_model(config), num_gpus=config.num_gpus)


def _judge_model(config: JudgeConfig) -> str:
    require_vllm()
    return str(catalog.require(config.model)) if config.model in catalog.ENTRIES else config.model


def judge_answers(
    task: str, result: EvalResult, judge: Any, *, model: str, against: Opponent | None = None
) -> EvalResult:
    """Have the answers to a task of JUDGED judged.

    Args:
        judge: a `PairJudge` for alpaca_eval, a `SafetyJudge` for safety.
        model: the model's name in the annotations.
        against: for alpaca_eval; `opponent()` by default.
    """
    if task == "safety":
        return judge_safety(safety_predictions(result), judge=judge, name=result.name)
    against = against or opponent()
    return judge_alpaca_eval(
        alpaca_predictions(result, generator=model),
        against.outputs,
        judge=judge,
        difficulty=against.difficulty,
        name=result.name,
    )


def failures(rows: Sequence[dict[str, Any]], *, count: int = 10, seed: int = 0) -> list[dict[str, Any]]:
    """Random rows that went wrong, to be read: wrong answers, outputs that lost, unsafe replies."""
    return pick_rows(rows, failed, count=count, seed=seed)


def failed(row: Mapping[str, Any]) -> bool:
    """Whether a row of any of these tasks went wrong; a draw did not."""
    if "correct" in row:
        return not row["correct"]
    if "preference" in row:
        return row["preference"] is not None and row["preference"] < 1.5
    return row["metrics"]["safe"] == 0
