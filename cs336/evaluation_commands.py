"""`cs336 evaluate`: score any model on any of the tasks."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from cs336.command_line import add_action
from cs336.files import UserError

if TYPE_CHECKING:
    from cs336.evals.answerer import Answerer
    from cs336.evals.report import ScoreRow
    from cs336.evals.suite import ChatEvalConfig, JudgeConfig
    from cs336.evals.task import EvalResult

CHOICES = ("arc_easy", "arc_challenge", "commonsense_qa", "copa", "openbook_qa", "piqa", "winograd_wsc", "winogrande")
TASKS = ("mmlu", "gsm8k", "math", "generated", "alpaca_eval", "safety", *CHOICES)
CHAT_FRAMES = ("zero_shot", "alpaca")
TEMPLATES = ("r1_zero", "r1_zero_short", "question_only")  # those of reasoning, scored by a reward
REASONED = ("gsm8k", "math", "generated")

DESCRIPTION = """Score a model on one or more tasks; its answers are kept, and scores come with 95 % intervals.

tasks:
  mmlu         57 subjects, four options: the letter it writes, and the letter it finds likeliest
  gsm8k        grade-school word problems: the last number counts
  math         competition problems, answered between tags after thinking (the handout's r1_zero prompt)
  generated    word problems without end, with verified answers: --levels 1 (one step) to 8
  alpaca_eval  805 instructions, free answers: a judge compares them with GPT-4 Turbo's
  safety       SimpleSafetyTests: 100 dangerous requests; a judge says whether the replies are safe
  arc_easy, arc_challenge, commonsense_qa, copa, openbook_qa, piqa, winograd_wsc, winogrande
               nothing is written: the option it finds likeliest, as a whole and per byte; also for small models

the model (--model):
  a folder of ours, such as artifacts/tiny/base_model or artifacts/tiny/dpo_model/hh;
  a Hugging Face checkpoint's folder (Llama, Qwen2, Qwen3); an entry of `cs336 data list`; or a name on the hub.

how it is asked (--frame):
  zero_shot     the handout's system prompt: for base models (default but for math)
  alpaca        the Alpaca form: for models tuned on it
  r1_zero       think, then answer between tags: math (default), gsm8k, generated; also r1_zero_short, question_only

examples:
  cs336 evaluate mmlu gsm8k                                the tiny base model, zero-shot
  cs336 evaluate arc_easy piqa --shots 5                   the likeliest options, after five worked questions
  cs336 evaluate generated --model artifacts/tiny/instruction_model --frame alpaca --levels 1
  cs336 evaluate math --model Qwen/Qwen2.5-Math-1.5B --engine vllm --seeds 0 1 2
  cs336 evaluate alpaca_eval safety --model llama-3.1-8b --engine vllm --judge llama-3.3-70b-instruct

Each task leaves OUT/TASK/seed-N/ with rows.jsonl (prompt, output, mark) and metrics.json; OUT/scores.json has the
scores of the last call. Where mmlu, gsm8k, alpaca_eval or safety is not on this machine, the project's own sample is
asked, and named so; `cs336 data list` shows what is here. The judge "offline" goes by rules: it tells format from
gibberish, and is no model's opinion.
"""


def register(commands: argparse._SubParsersAction) -> None:
    """Add the command to `cs336`'s parser."""
    command = add_action(commands, "evaluate", DESCRIPTION, "score any model on MMLU, GSM8K, MATH, ARC and more")
    command.add_argument("tasks", nargs="+", choices=TASKS, metavar="TASK", help=", ".join(TASKS))
    command.add_argument("--model", metavar="MODEL", help="folder, entry or name (default: the preset's base_model)")
    command.add_argument("--tokenizer", type=Path, metavar="FOLDER", help="of a model that has none beside it")
    command.add_argument("--preset", default="tiny", help="whose base model, without --model (default: %(default)s)")
    command.add_argument("--frame", choices=(*CHAT_FRAMES, *TEMPLATES), help="what stands around a question")
    command.add_argument("--examples", type=int, default=0, metavar="N", help="questions of each task (default: all)")
    command.add_argument(
        "--shots",
        type=int,
        default=0,
        metavar="N",
        help="worked questions before one whose likeliest option counts (default: 0)",
    )
    command.add_argument("--levels", type=int, nargs="+", default=[1], help="of generated problems (default: 1)")
    command.add_argument(
        "--max-new-tokens", type=int, metavar="N", help="longest answer (default: 256, 1,024 with a reasoning frame)"
    )
    command.add_argument("--temperature", type=float, help="0 is greedy (default: 0, with a reasoning frame 1)")
    command.add_argument("--seeds", type=int, nargs="+", default=[0], help="a run each, pooled (default: 0)")
    command.add_argument("--engine", choices=("ours", "vllm"), default="ours", help="default: %(default)s")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    command.add_argument("--max-context", type=int, default=4_096, help="of a checkpoint (default: %(default)s)")
    command.add_argument("--judge", default="offline", help="offline, or a chat model for vLLM (default: %(default)s)")
    command.add_argument("--judge-gpus", type=int, default=2, help="over which it is split (default: %(default)s)")
    command.add_argument("--out", type=Path, help="folder for answers and scores (default: evaluations/MODEL)")
    command.set_defaults(run=_evaluate)


def _evaluate(options: argparse.Namespace) -> None:
    from cs336.evals.report import text_table
    from cs336.files import write_json

    _check(options)
    source, tokenizer = _model(options)
    folder = options.out or Path("evaluations") / str(source).strip("/").replace("/", "--")
    try:
        name, results = _all_answers(source, tokenizer, options, folder)
        scores = [row for task, of_seeds in results.items() for row in _scores(task, of_seeds, options, name, folder)]
    except ValueError as error:
        raise UserError(str(error)) from None
    write_json(folder / "scores.json", scores)
    print(text_table(scores))
    print(f"answers and scores: {folder}")


def _all_answers(
    source: Path | str, tokenizer: Path | None, options: argparse.Namespace, folder: Path
) -> tuple[str, dict[str, list[tuple[int, EvalResult]]]]:
    """The model's name and its answers by task; it is gone afterwards, as a judge may need all memory."""
    from cs336.evals.answerer import open_answerer
    from cs336.generate.checkpoints import load_checkpoint
    from cs336.hardware import pick_device
    from cs336.progress import bar, silent

    checkpoint = load_checkpoint(
        source, tokenizer=tokenizer, device=pick_device(options.device), max_context=options.max_context
    )
    shown = bar if sys.stderr.isatty() else silent
    with open_answerer(checkpoint, engine=options.engine, progress=shown) as answerer:
        return checkpoint.folder.name, {task: list(_answers(task, answerer, options, folder)) for task in options.tasks}


def _check(options: argparse.Namespace) -> None:
    """Refuse what has no meaning before a model is read.

    Raises:
        UserError: one line with the remedy.
    """
    if options.frame in TEMPLATES and (others := [task for task in options.tasks if task not in REASONED]):
        raise UserError(f"--frame {options.frame}: of {others[0]} there is no ground truth to reward; give zero_shot")
    if chosen := [task for task in options.tasks if task in CHOICES]:
        _check_choices(chosen[0], options)
    if options.frame in CHAT_FRAMES and "math" in options.tasks:
        raise UserError(f"--frame {options.frame}: math is asked with one of {', '.join(TEMPLATES)}")
    temperatures = [_temperature(task, options) for task in options.tasks]
    if len(options.seeds) > 1 and not all(temperatures):
        raise UserError("--seeds: greedy answers are the same with every seed; give --temperature 1, or one seed")
    if min(options.examples, options.shots, *temperatures, *options.seeds) < 0:
        raise UserError("--examples, --shots, --temperature and --seeds are 0 or more")
    if options.engine == "vllm":
        from cs336.generate.vllm import require_vllm

        require_vllm()
    if "math" in options.tasks:
        from cs336 import catalog

        catalog.require("math")
    from cs336.evals.suite import JUDGED, require_judge

    if set(options.tasks) & set(JUDGED):
        require_judge(_judge_config(options))


def _check_choices(task: str, options: argparse.Namespace) -> None:
    from cs336 import catalog

    if options.frame:
        raise UserError(f"--frame {options.frame}: of {task} the options are compared as they stand; leave it out")
    if options.engine != "ours":
        raise UserError(f"--engine {options.engine}: {task} needs the likelihood of options; take ours")
    catalog.require("icl-tasks")


def _model(options: argparse.Namespace) -> tuple[Path | str, Path | None]:
    if options.model:
        return options.model, options.tokenizer
    from cs336.preset_lookup import find_preset
    from cs336.store import Store

    preset = find_preset(options.preset)
    if start := preset.policy.start or preset.instructions.base:  # a checkpoint is its base model
        return start, options.tokenizer
    folder = Store(options.preset).path("base_model")
    if not folder.exists():
        raise UserError(f"{folder}: not there yet; `cs336 run --preset {options.preset}` makes it, or give --model")
    return folder, options.tokenizer


def _answers(
    task: str, answerer: Answerer, options: argparse.Namespace, folder: Path
) -> Iterator[tuple[int, EvalResult]]:
    """The results of each seed, kept as they come."""
    from cs336.evals.task import save_result

    for seed in options.seeds:
        drawing, frame = answerer.sampling(temperature=_temperature(task, options), seed=seed), _frame(task, options)
        if task in CHOICES:
            result = _chosen(task, drawing, options)
        elif frame in TEMPLATES:
            result = _reasoned(task, drawing, options, frame)
        else:
            result = _asked(task, drawing, options, frame)
        save_result(folder / task / f"seed-{seed}", result)
        print(f"{task}, seed {seed}: {_told(result.metrics)}", flush=True)
        yield seed, result


def _told(metrics: Mapping[str, Any]) -> str:
    """What stands beside a score: how fast answers came, what was cut off, and categories of format and answer."""
    if "generate_seconds" not in metrics:
        return (
            f"{metrics['num_examples']:,} questions in {metrics['choice_seconds']:.1f} s;"
            f" guessing gets {metrics['chance']:.1%}"
        )
    seconds, speed = metrics["generate_seconds"], metrics["examples_per_second"]
    parts = [f"{metrics['num_examples']:,} answers in {seconds:.1f} s, {speed:.1f} examples/s"]
    if prompts := metrics["num_prompts_truncated"]:
        parts.append(f"prompts without their beginning: {prompts:,}")
    if outputs := metrics["num_outputs_truncated"]:
        parts.append(f"answers cut off: {outputs:,}")
    if categories := metrics.get("categories"):
        counts = ", ".join(f"{pair} {found['count']:,}" for pair, found in categories.items())
        parts.append(f"(format, answer): {counts}")
    return "; ".join(parts)


def _frame(task: str, options: argparse.Namespace) -> str:
    return options.frame or ("r1_zero" if task == "math" else "zero_shot")


def _temperature(task: str, options: argparse.Namespace) -> float:
    """The handout samples answers that think at temperature 1, and takes the supplement's greedily."""
    return float(_frame(task, options) in TEMPLATES) if options.temperature is None else options.temperature


def _chosen(task: str, answerer: Answerer, options: argparse.Namespace) -> EvalResult:
    from cs336 import catalog
    from cs336.evals.choices import evaluate_choices, read_choice_items

    try:
        return evaluate_choices(
            read_choice_items(catalog.files_of("icl-tasks")[f"{task}.jsonl"]),
            choose=answerer.choose,
            name=task,
            num_shots=options.shots,
            max_examples=options.examples,
            seed=answerer.seed,
        )
    except ValueError as error:  # such as an option that is longer than a small model's context
        raise UserError(f"{task}: {error}; leave it out, or take a model with a longer context") from None


def _asked(task: str, answerer: Answerer, options: argparse.Namespace, frame: str) -> EvalResult:
    from cs336.evals.suite import FRAMES, answer

    return answer(task, answerer, _config(options, answerer), frame=FRAMES[frame], num_shots=options.shots)


def _config(options: argparse.Namespace, answerer: Answerer) -> ChatEvalConfig:
    from cs336.evals.generated_tasks import GeneratedConfig
    from cs336.evals.suite import ChatEvalConfig

    return ChatEvalConfig(
        max_mmlu=options.examples,
        max_gsm8k=options.examples,
        max_alpaca=options.examples,
        max_safety=options.examples,
        num_generated=options.examples or 1_000,
        problems=GeneratedConfig(levels=tuple(options.levels)),
        max_new_tokens=_longest(options, answerer, 256),
    )


def _longest(options: argparse.Namespace, answerer: Answerer, usual: int) -> int:
    """Tokens of an answer; as a rule at most half of a small model's context."""
    return options.max_new_tokens or min(usual, answerer.context_length // 2)


def _reasoned(task: str, answerer: Answerer, options: argparse.Namespace, template: str) -> EvalResult:
    """Questions answered after thinking, scored by the template's reward in processes that a clock watches."""
    from cs336.evals.reasoning import MAX_NEW_TOKENS, evaluate_reasoning
    from cs336.evals.rewards import WatchedReward, question_only_reward_fn, r1_zero_reward_fn

    examples, name = _questions(task, _config(options, answerer))
    reward_fn = question_only_reward_fn if template == "question_only" else r1_zero_reward_fn
    with WatchedReward(reward_fn) as reward:
        return evaluate_reasoning(
            examples,
            reward=reward.score,
            generate=answerer.generate,
            name=name,
            template=template,
            max_new_tokens=_longest(options, answerer, MAX_NEW_TOKENS),
            max_examples=options.examples,
        )


def _questions(task: str, config: ChatEvalConfig) -> tuple[list[dict[str, Any]], str]:
    """Questions with their ground truths, and the set's name."""
    from cs336 import catalog
    from cs336.evals.competition_math import read_math
    from cs336.evals.generated_tasks import generate_problems, to_question
    from cs336.evals.gsm8k import gsm8k_questions
    from cs336.evals.suite import questions

    if task == "math":
        return read_math(catalog.files_of("math")["test_answers.jsonl"]), "math"
    if task == "gsm8k":
        examples, name = questions("gsm8k")
        return list(gsm8k_questions(examples)), name
    return [to_question(each) for each in generate_problems(config.problems, "test", config.num_generated)], "generated"


def _scores(
    task: str, results: Sequence[tuple[int, EvalResult]], options: argparse.Namespace, name: str, folder: Path
) -> list[ScoreRow]:
    """Score rows of a task: of all seeds together where answers are marked, of each where they are judged."""
    from cs336.evals.reasoning import pool_seeds
    from cs336.evals.report import score_rows
    from cs336.evals.suite import JUDGED

    def rows(metrics: Mapping[str, Any], model: str = name) -> list[ScoreRow]:
        return score_rows(metrics, preset="", model=model, task=task, set_name=results[0][1].name)

    if task not in JUDGED:
        first = results[0][1].metrics
        if len(results) == 1:
            return rows(first)
        likeliest = {key: value for key, value in first.items() if key.startswith("choice_")}  # no sampling in these
        unparseable = {"unparseable_share": fmean(result.metrics["unparseable_share"] for _, result in results)}
        return rows(likeliest | unparseable | pool_seeds([result for _, result in results]))
    judge = _judge(task, options)  # one for all seeds: it may take minutes to read
    scores = []
    for seed, result in results:
        metrics = _judged(task, result, judge, name, folder / task / f"seed-{seed}")
        print(f"{task}, seed {seed}: judged by {metrics['judge']}")
        scores += rows(metrics, name if len(results) == 1 else f"{name}, seed {seed}")
    return scores


def _judge(task: str, options: argparse.Namespace) -> Any:
    from cs336.evals.suite import pair_judge, safety_judge

    config = _judge_config(options)
    return pair_judge(config) if task == "alpaca_eval" else safety_judge(config)


def _judge_config(options: argparse.Namespace) -> JudgeConfig:
    from cs336.evals.suite import JudgeConfig

    return JudgeConfig(model=options.judge, num_gpus=options.judge_gpus)


def _judged(task: str, result: EvalResult, judge: Any, name: str, folder: Path) -> dict[str, Any]:
    """Write the prediction file, have it judged, and write the judgements."""
    from cs336.evals.alpaca_eval import alpaca_predictions, write_predictions
    from cs336.evals.safety import safety_predictions
    from cs336.evals.suite import judge_answers
    from cs336.files import write_jsonl

    if task == "alpaca_eval":
        write_predictions(folder / "predictions.json", alpaca_predictions(result, generator=name))
    else:
        write_jsonl(folder / "predictions.jsonl", safety_predictions(result))
    judged = judge_answers(task, result, judge, model=name)
    write_jsonl(folder / "judgements.jsonl", judged.rows)
    return judged.metrics
