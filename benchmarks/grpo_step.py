"""A whole step of GRPO by the loop itself: seconds, shares of generating, grading and training, idle share of the GPU.

  python -m benchmarks grpo_step                                          Qwen2.5-Math-1.5B's shape, random weights
  python -m benchmarks grpo_step --shape reasoner --micro-batch-size 256  the small model of the preset reasoner
  python -m benchmarks grpo_step --generators ours vllm --hand-over       vLLM beside ours, each asleep while it trains

The handout's step: 32 questions, 8 responses each, up to 1,024 tokens; no token ends a text, so all have that many.
Weights go from trainer to generator before every batch, and each row has the largest difference of their
log-probabilities. Answers are graded by r1_zero's reward in a watched process. The idle share is 1 - the share of a
step's time in which a kernel ran, by PyTorch's profiler on a step of its own, which it slows a little; rows have it of
each part of the step, too, and the kernels' seconds and number.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import gc
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import Unavailable, hardware
from benchmarks.rollouts import SHAPES, start_vllm
from cs336.evals.rewards import WatchedReward, r1_zero_reward_fn
from cs336.files import append_jsonl, read_jsonl
from cs336.generate.backend import Backend
from cs336.generate.generators import GENERATORS, generator_for
from cs336.hardware import pick_device
from cs336.model.transformer import ModelConfig, TransformerLM
from cs336.posttrain.grpo import GrpoConfig
from cs336.posttrain.grpo_loop import train_grpo
from cs336.posttrain.rollouts import Problem
from cs336.revision import describe_commit
from cs336.train.metrics import METRICS_FILE

REASONER = ModelConfig(context_length=1_152, d_model=512, num_layers=8, num_heads=8, d_ff=1_408, vocab_size=1_024)
_SHAPES = SHAPES | {"reasoner": REASONER}
_PARTS = ("sync", "generate", "grade")
STEPS_OF_A_RUN = 200  # the handout's


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model's shape and the step's; the defaults are the handout's."""
    parser.add_argument("--shape", choices=tuple(_SHAPES), default="qwen2.5-1.5b", help="(default %(default)s)")
    parser.add_argument("--generators", nargs="+", choices=GENERATORS, default=["ours"], help="(default ours)")
    parser.add_argument("--rollouts", type=int, default=256, help="responses in a step (default %(default)s)")
    parser.add_argument("--group-size", type=int, default=8, help="to each question (default %(default)s)")
    parser.add_argument("--tokens", type=int, default=1_024, help="of each response (default %(default)s)")
    parser.add_argument("--prompt-tokens", type=int, default=128, help="(default %(default)s)")
    parser.add_argument("--micro-batch-size", type=int, default=8, help="responses at once (default %(default)s)")
    parser.add_argument("--memory-share", type=float, default=0.4, help="of the GPU, for vLLM (default %(default)s)")
    parser.add_argument("--hand-over", action="store_true", help="the generator sleeps while the policy trains")
    parser.add_argument(
        "--fp32-weights", action="store_true", help="as in the preset qwen_math: bf16 under autocast only"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default %(default)s)")
    parser.add_argument("--folder", type=Path, help="for the run's files, some GB (default: a temporary one)")


def instead_of_cases(options: argparse.Namespace) -> int:
    """Run steps with each generator, append and print their rows; `--repeats` steps are timed, after one to warm up."""
    failed = False
    for kind in options.generators:
        try:
            figures = _measure(kind, options)
        except (Unavailable, ValueError, RuntimeError) as error:  # beside the figures of the others
            failed = failed or kind == "ours"
            figures = {"failure": f"{type(error).__name__}: {error}".splitlines()[0]}
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        row = {"subject": "grpo_step", "case": options.shape, "contender": kind} | figures
        row |= {
            "settings": {
                name: getattr(options, name)
                for name in (
                    *("rollouts", "group_size", "tokens", "prompt_tokens", "micro_batch_size"),
                    *("hand_over", "fp32_weights"),
                )
            },
            "hardware": hardware(),
            "commit": describe_commit(),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        append_jsonl(options.results / "grpo_step.jsonl", row)
        print(_in_words(row), flush=True)
    return int(failed)


class _Ids:
    """A tokenizer whose texts are numbers, and whose end of text never comes."""

    end_of_text_id = -1
    pad_token_id = 0

    def encode(self, text: str) -> list[int]:
        return [int(number) for number in text.split()]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))

    def save(self, folder: Path) -> None:
        """There is nothing to it."""


def _reward(response: str, ground_truth: str) -> dict[str, float]:
    """What the grader has to do for an answer, whatever the text: it reads a number, right for every other one."""
    answer = sum(map(ord, response[-8:])) % 2
    return r1_zero_reward_fn(f"{response} </think> <answer> \\boxed{{{answer}}} </answer>", ground_truth)


def _measure(kind: str, options: argparse.Namespace) -> dict[str, Any]:
    device = pick_device(options.device)
    shape = _SHAPES[options.shape]
    torch.manual_seed(0)
    on_gpu = device.type == "cuda"
    in_bf16 = on_gpu and not options.fp32_weights
    policy = TransformerLM(shape, device=device, dtype=torch.bfloat16 if in_bf16 else torch.float32)
    config = GrpoConfig(
        n_grpo_steps=options.repeats + 3,  # one to warm up, one under the profiler, and the last, which validates
        rollout_batch_size=options.rollouts,
        train_batch_size=options.rollouts,
        group_size=options.group_size,
        gradient_accumulation_steps=options.rollouts // options.micro_batch_size,
        sampling_max_tokens=options.tokens,
        sampling_min_tokens=options.tokens,
        precision="bfloat16" if on_gpu and options.fp32_weights else "float32",
        valid_interval=10**6,
        keep="last",
    )
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(shape.vocab_size, (config.num_questions, options.prompt_tokens), generator=generator)
    problems = [Problem(_Ids().decode(ids), "1") for ids in prompts.tolist()]
    profiled = _ProfiledStep(options.repeats + 1) if on_gpu else None
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    with (
        tempfile.TemporaryDirectory(dir=options.folder) as folder,
        WatchedReward(_reward) as reward,
    ):
        train_grpo(
            policy,
            _Ids(),
            _generator(kind, policy, options),
            problems,
            problems[:1],
            config,
            reward=reward.score,
            seed=0,
            folder=Path(folder),
            hand_over=options.hand_over,
            report=profiled or (lambda row: None),
        )
        rows = list(read_jsonl(Path(folder) / METRICS_FILE))[2 : options.repeats + 2]
    seconds = [row["step_seconds"] for row in rows]
    median, num_tokens = statistics.median(seconds), options.rollouts * options.tokens
    shares = {
        f"{part}_share": statistics.median(row[f"{part}_seconds"] / row["step_seconds"] for row in rows)
        for part in _PARTS
    }
    figures = {
        "figure": median,
        "unit": "s a step",
        "spread": [min(seconds), max(seconds)],
        "repeats": len(seconds),
        **shares,
        "train_share": 1 - sum(shares.values()),
        "tokens_per_second": num_tokens / median,
        "generated_tokens_per_second": num_tokens / statistics.median(row["generate_seconds"] for row in rows),
        "hours_of_200_steps": STEPS_OF_A_RUN * median / 3_600,
        "max_logprob_difference": max(row["max_logprob_difference"] for row in rows),
        "mean_logprob_difference": statistics.fmean(row["mean_logprob_difference"] for row in rows),
        "peak_bytes": max(row["peak_bytes"] or 0 for row in rows),
    }
    return figures | (profiled.figures if profiled else {})


def _generator(kind: str, policy: TransformerLM, options: argparse.Namespace) -> Backend:
    if kind == "vllm":
        longest = options.prompt_tokens + options.tokens
        return start_vllm(
            copy.deepcopy(policy).bfloat16() if options.fp32_weights else policy,
            memory_share=options.memory_share,
            max_model_len=longest,
            sleep_mode=options.hand_over,
        )
    return generator_for(policy, _Ids())


class _ProfiledStep:
    """Stands as a run's `report`: watches the kernels of the step after so many.

    Attributes:
        figures: `idle_share` of the GPU in that step, and `profiled_seconds`, what it took under the profiler.
    """

    def __init__(self, after: int) -> None:
        self._after = after
        self.figures: dict[str, float] = {}

    def __call__(self, row: dict[str, Any]) -> None:
        if row["step"] == self._after:
            self._profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
            self._profiler.start()
        elif row["step"] == self._after + 1:
            self._profiler.stop()
            spans = device_spans(self._profiler)
            results = self._profiler.profiler.kineto_results  # type: ignore[union-attr]
            busy = busy_nanoseconds(spans) / 1e9
            self.figures = {
                "idle_share": 1 - busy / row["step_seconds"],
                **idle_shares(spans, results.trace_start_ns(), row),
                "profiled_seconds": row["step_seconds"],
                "kernel_seconds": busy,
                "num_kernels": len(spans),
            }


def device_spans(profiler: torch.profiler.profile) -> list[tuple[int, int]]:
    """Beginnings and ends of what ran on the GPU, in nanoseconds, in the order of their beginnings.

    From the profiler's raw records: its own list of events has an object with 40 fields for each of a step's
    millions, launches among them, and took minutes and 25 GB to make.
    """
    results = profiler.profiler.kineto_results  # type: ignore[union-attr]
    on_gpu = torch.profiler.DeviceType.CUDA
    kernels = (each for each in results.events() if each.device_type() == on_gpu and not each.is_user_annotation())
    return sorted((each.start_ns(), each.end_ns()) for each in kernels)


def idle_shares(spans: Sequence[tuple[int, int]], start: int, row: Mapping[str, float]) -> dict[str, float]:
    """Idle share of each part of a step that begins at `start`, in nanoseconds; training is what the others leave."""
    seconds = {part: row[f"{part}_seconds"] for part in _PARTS}
    seconds["train"] = row["step_seconds"] - sum(seconds.values())
    shares = {}
    for part, length in seconds.items():
        end = start + round(length * 1e9)
        within = [(max(first, start), min(last, end)) for first, last in spans if first < end and last > start]
        shares[f"{part}_idle_share"] = 1 - busy_nanoseconds(within) / max(1, end - start)
        start = end
    return shares


def busy_nanoseconds(spans: Sequence[tuple[int, int]]) -> int:
    """Time that at least one of some spans covers; they come in the order of their beginnings."""
    busy = end = 0
    for first, last in spans:
        busy += max(0, last - max(first, end))
        end = max(end, last)
    return busy


def _in_words(row: dict[str, Any]) -> str:
    head = f"{row['case']}, {row['contender']}: "
    if "failure" in row:
        return head + row["failure"]
    parts = ", ".join(f"{name} {row[f'{name}_share']:.0%}" for name in (*_PARTS, "train"))
    idle = f"; GPU idle {row['idle_share']:.1%}" if "idle_share" in row else ""
    return (
        f"{head}{row['figure']:.2f} s a step ({row['spread'][0]:.2f} to {row['spread'][1]:.2f}): {parts}{idle};"
        f" {row['tokens_per_second']:,.0f} tokens/s, {row['peak_bytes'] / 2**30:.1f} GiB,"
        f" {row['hours_of_200_steps']:.2f} h for {STEPS_OF_A_RUN} steps; log-probabilities within"
        f" {row['max_logprob_difference']:.3g} of the policy's"
    )
