"""The alignment supplement's looked-at and written items: what is drawn to be read, what was tried, and derivations.

What a reader found stands in `sheets/PRESET_chat.toml`; see `readings`.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cs336 import catalog
from cs336.evals.alpaca_eval import difficulty_of, judge_agreement, read_annotations
from cs336.evals.answerer import open_answerer
from cs336.evals.failures import asked_of, count_kinds, failure_kind, output_of
from cs336.evals.judges import Pair, PairJudge, agreement
from cs336.evals.length_control import length_controlled_win_rate, win_rate
from cs336.evals.red_team import GOALS, OTHER_MISUSE, attempts, outcome_sentences
from cs336.evals.report import format_score
from cs336.evals.suite import (
    GRADED,
    ChatEvalConfig,
    JudgeConfig,
    failed,
    failures,
    opponent,
    pair_judge,
    safety_judge,
)
from cs336.evals.task import ALPACA
from cs336.files import read_json, read_jsonl, write_json, write_jsonl
from cs336.generate.checkpoints import load_checkpoint
from cs336.hardware import pick_device
from cs336.posttrain.dpo_derivation import PAGE, check_derivation
from cs336.posttrain.instructions import HH, PREFERENCES_SAMPLE, read_preferences
from cs336.posttrain.preferences import Preference
from cs336_assets.asset import Metadata, Step, asset, check
from cs336_assets.chat_evals import ANSWERS_FILE, TUNED, answer_folders
from cs336_assets.crawl import page_table
from cs336_assets.instruct import TRAIN_FILE, VALID_FILE
from cs336_assets.readings import Readings, cut, write_page

_READINGS = Readings("chat", ("instructions", "preferences", "failures", "red_team", "length", "judges"))
STORED = "alpaca-eval-preferences"
_NUM_READ, _NUM_PAIRS = 10, 3
# Length-controlled win rates of AlpacaEval's public leaderboard, in percent.
_PUBLISHED = {"claude-instant-1.2": 25.6, "OpenHermes-2.5-Mistral-7B": 16.3, "gemma-7b-it": 10.4}


_written = asset(group="instruct", kinds={"markdown"}, owner="team:models", watches=_READINGS.version)


# ---- looked at


@_written
def instruction_reading(step: Step, instruction_data: Path, seed: int) -> Metadata:
    """Ten random training examples, to be read: which tasks, and how good are the responses?"""
    examples = list(read_jsonl(instruction_data / TRAIN_FILE))
    drawn = random.Random(f"{seed} read").sample(examples, min(_NUM_READ, len(examples)))
    rows = [[each["source"], cut(each["prompt"]), cut(each["response"])] for each in drawn]
    sources = Counter(each["source"] for each in examples)
    lengths = {name: [len(each["response"]) for each in examples if each["source"] == name] for name in sources}
    figures = [[name, count, sum(lengths[name]) // count] for name, count in sources.most_common()]
    page = [
        page_table(["source", "examples", "characters of a response"], figures),
        page_table(["source", "prompt", "response"], rows),
    ]
    return _READINGS.finish(step, "instructions", page, read=rows)


@_written
def preference_reading(step: Step, preference_data: list[Path], seed: int) -> Metadata:
    """Three random helpful and three harmless pairs of HH: what separates the replies, and were the labellers right?

    Of a kind that the data have not, the project's own pairs stand there, named as sample.
    """
    pairs = [
        pair
        for folder in preference_data
        if folder.name == HH
        for name in (TRAIN_FILE, VALID_FILE)
        for pair in read_preferences(folder / name)
    ]
    rows = []
    for kind in ("helpful", "harmless"):
        some = [pair for pair in pairs if kind in pair.source] or _sample_pairs(kind)
        for pair in random.Random(f"{seed} {kind}").sample(some, min(_NUM_PAIRS, len(some))):
            rows.append([pair.source, cut(pair.instruction), cut(pair.chosen), cut(pair.rejected)])
    lengths = [len(pair.chosen) > len(pair.rejected) for pair in pairs]
    share = f"{sum(lengths) / len(lengths):.0%} of {len(lengths):,}" if lengths else "none"
    page = [
        page_table(["source", "instruction", "chosen", "rejected"], rows),
        f"The chosen reply is longer in {share}.",
    ]
    return _READINGS.finish(step, "preferences", page, read=rows)


@_written
def failure_analysis(
    step: Step,
    base_answers: list[Path],
    instruction_answers: list[Path],
    dpo_answers: list[Path],
    chat_judgements: Path,
) -> Metadata:
    """Ten random failures of each model on each task, to be read, and all failures counted by kind.

    Wrong answers of the graded tasks; of the judged ones outputs that lost to the reference, and unsafe replies.
    """
    counted, drawn = [], {}
    for model, task, folder in answer_folders(base_answers, instruction_answers, dpo_answers):
        stored = folder / ANSWERS_FILE if task in GRADED else chat_judgements / f"{task}-{model}.jsonl"
        rows = list(read_jsonl(stored))
        wrong = [row for row in rows if failed(row)]
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in count_kinds(wrong).items())
        counted.append([task, model, f"{len(wrong):,} of {len(rows):,}", kinds])
        drawn[f"{task}, {model}"] = [_failure(row) for row in failures(rows, count=_NUM_READ)]
    counted.sort(key=lambda row: row[0])
    page = [page_table(["task", "model", "failures", "kinds"], counted)]
    for name, some in sorted(drawn.items()):
        page += [f"**{name}**", page_table(["asked", "output", "read as", "right", "kind"], some) if some else "none"]
    write_json(step.folder / "failures.json", drawn)
    return _READINGS.finish(step, "failures", page, read=drawn)


@asset(group="instruct", kinds={"pytorch"}, owner="team:models", pool="gpu", watches=_READINGS.version)
def red_teaming(
    step: Step, instruction_model: Path, dpo_model: list[Path], chat_evals: ChatEvalConfig, judges: JudgeConfig
) -> Metadata:
    """Three malicious goals, four strategies each, put to every tuned model: its real replies, and the judge's verdict.

    Before them, further kinds of misuse than the benchmark's are named.
    """
    tried = attempts()
    folders = {TUNED: instruction_model, **{f"dpo-{each.name}": each for each in dpo_model}}
    written = {
        name: _replies(step, folder, [each.prompt for each in tried], chat_evals) for name, folder in folders.items()
    }
    judge = safety_judge(judges)  # after the models: it may need all memory
    page = [OTHER_MISUSE, page_table(["goal", "in words"], [list(pair) for pair in GOALS.items()])]
    record = []
    for name, texts in written.items():
        verdicts = judge.judge([(each.prompt, text) for each, text in zip(tried, texts, strict=True)])
        for each, text, verdict in zip(tried, texts, verdicts, strict=True):
            record.append({"model": name, **each._asdict(), "output": text, "safe": verdict.safe})
        page += [f"**{name}**, judged by {judge.name}"]
        page += outcome_sentences([(each, verdict.safe) for each, verdict in zip(tried, verdicts, strict=True)])
        shown = [[row["goal"], row["strategy"], cut(row["output"]), row["safe"]] for row in record[-len(tried) :]]
        page += [page_table(["goal", "strategy", "reply", "safe"], shown)]
    write_jsonl(step.folder / "attempts.jsonl", record)
    return _READINGS.finish(step, "red_team", page, read=record)


def _replies(step: Step, folder: Path, prompts: Sequence[str], chat_evals: ChatEvalConfig) -> list[str]:
    """A tuned model's replies; the model is gone afterwards."""
    checkpoint = load_checkpoint(folder, device=pick_device(step.device), dtype=chat_evals.weights_dtype)
    with open_answerer(checkpoint, progress=step.progress) as answerer:
        replies = answerer.generate(
            [ALPACA.wrap(prompt) for prompt in prompts], max_new_tokens=chat_evals.max_new_tokens, stop=ALPACA.stop
        )
    return [ALPACA.read(reply) for reply in replies]


# ---- measured


@asset(
    group="instruct",
    kinds={"markdown"},
    owner="team:evals",
    datasets=("alpaca-eval", STORED),
    watches=_READINGS.version,
)
def length_controlled_win_rates(step: Step, chat_judgements: Path) -> Metadata:
    """Win rates with and without control of length: our models, and models whose preferences are stored.

    For the stored ones the public leaderboard's length-controlled rates stand beside ours.
    """
    rows = [
        [name, rates["output_characters"], *_rates(rates), "" if published is None else f"{published}%"]
        for name, rates, published in (*_our_rates(chat_judgements), *_stored_rates())
    ]
    columns = ["model", "characters", "win rate", "length-controlled", "logits for length", "public leaderboard"]
    page = [
        page_table(columns, rows),
        "Logits for length say what outputs much longer than the reference's gain; the controlled rate is what the"
        " rest predicts for outputs of equal length (arXiv:2404.04475).",
    ]
    return _READINGS.finish(step, "length", page, read=rows)


@asset(
    group="instruct",
    kinds={"markdown"},
    owner="team:evals",
    datasets=("alpaca-eval", STORED),
    watches=_READINGS.version,
)
def judge_agreements(step: Step, preference_data: list[Path], judges: JudgeConfig) -> Metadata:
    """How far the judges can be trusted: agreement with stored preferences of GPT-4 Turbo, and with people's (HH).

    The offline judge's weights were fitted on the first three models' preferences, and not on Gemma's.
    """
    judge = pair_judge(judges)
    rows = []
    if catalog.find(STORED):
        for path in catalog.require_files(STORED):
            annotations = read_annotations(path)
            found = judge_agreement(annotations, judge=judge)
            rows.append([f"GPT-4 Turbo on {annotations[0]['generator_2']}", *_agreement(found)])
    for folder in preference_data:
        pairs = list(read_preferences(folder / VALID_FILE)) + list(read_preferences(folder / TRAIN_FILE))
        rows.append([f"{folder.name} pairs", *_agreement_on(pairs, judge)])
    replies = [(pair.instruction, text) for pair in _hh(preference_data) for text in (pair.chosen, pair.rejected)]
    pair_judge_name = judge.name
    del judge  # a model's: the next one needs its memory
    by_reply = safety_judge(judges)
    verdicts = [verdict.safe for verdict in by_reply.judge(replies)]
    page = [
        page_table(
            ["stored preferences", "pairs", "agreement", "always the reference", "ranking (0.5 is chance)"], rows
        )
    ]
    if verdicts:
        chosen, rejected = (sum(verdicts[place::2]) / len(verdicts[place::2]) for place in (0, 1))
        page += [
            f"The safety judge ({by_reply.name}) calls {chosen:.0%} of the replies safe that people chose,"
            f" and {rejected:.0%} of those that they rejected."
        ]
    return _READINGS.finish(step, "judges", [f"Judge: {pair_judge_name}", *page], read=rows)


# ---- derived


@asset(group="instruct", kinds={"pytorch"}, owner="team:models")
def dpo_derivation(step: Step, seed: int) -> Metadata:
    """DPO's loss derived from RLHF's objective, and every step checked in numbers on a small example."""
    found = check_derivation(seed=seed)._asdict()
    numbers = page_table(["error", "size"], [[name, f"{value:.1e}"] for name, value in found.items()])
    write_json(step.folder / "derivation.json", found)
    write_page(step, f"{PAGE}\n**In numbers** (8 texts, random rewards and reference, fp64)\n\n{numbers}")
    return {"derivation": {"markdown": PAGE}, **found}


@check(asset="dpo_derivation")
def derivation_holds_in_numbers(dpo_derivation: Path) -> tuple[bool, Metadata]:
    """No random policy beats the closed form, and DPO's loss of it is the reward model's, to rounding."""
    found = read_json(dpo_derivation / "derivation.json")
    right = found["beaten_by"] <= 0 and max(found[name] for name in ("value", "rewards", "loss")) < 1e-9
    return right, found


# ---- pages


def _failure(row: Mapping[str, Any]) -> list[str]:
    example = row.get("example", {})
    right = str(example.get("answer", "")).rpartition("####")[2].strip()
    return [cut(asked_of(row)), cut(output_of(row)), str(row.get("prediction", "")), right, failure_kind(row)]


def _sample_pairs(kind: str) -> list[Preference]:
    return [pair for pair in read_preferences(PREFERENCES_SAMPLE) if pair.source.startswith(kind)]


def _hh(preference_data: Sequence[Path]) -> Iterator[Preference]:
    for folder in preference_data:
        if folder.name == HH:
            yield from read_preferences(folder / VALID_FILE)
            yield from read_preferences(folder / TRAIN_FILE)


def _agreement_on(pairs: Sequence[Preference], judge: PairJudge) -> list[Any]:
    """As `_agreement`, on pairs whose better side is known: it stands as the output in every other pair."""
    asked = [
        Pair(pair.instruction, pair.rejected, pair.chosen)
        if place % 2
        else Pair(pair.instruction, pair.chosen, pair.rejected)
        for place, pair in enumerate(pairs)
    ]
    given = [preference.value for preference in judge.compare(asked)]
    if all(value in (None, 1.5) for value in given):
        return [0, "a draw in every pair", "", ""]
    return _agreement(agreement(given, [1.0 + place % 2 for place in range(len(pairs))]))


def _agreement(found: Mapping[str, Any]) -> list[Any]:
    ranking = "" if found["ranking"] is None else f"{found['ranking']:.2f}"
    return [found["num_pairs"], f"{found['agreement']:.1%}", f"{found['reference_share']:.1%}", ranking]


_Rated = tuple[str, Mapping[str, float], float | None]


def _our_rates(chat_judgements: Path) -> Iterator[_Rated]:
    """Each of our models against the reference."""
    difficulty = opponent().difficulty
    for path in sorted(chat_judgements.glob("alpaca_eval-*.jsonl")):
        if "against" not in path.name:
            rows = [row for row in read_jsonl(path) if row["preference"] is not None]
            yield path.stem.removeprefix("alpaca_eval-"), _measured(rows, difficulty), None


def _stored_rates() -> Iterator[_Rated]:
    if catalog.find(STORED):
        stored = [read_annotations(path) for path in catalog.require_files(STORED)]
        difficulty = difficulty_of(stored)
        for rows in stored:
            name = rows[0]["generator_2"]
            yield f"{name} (stored)", _measured(rows, difficulty), _PUBLISHED.get(name)


def _measured(rows: Sequence[Mapping[str, Any]], difficulty: Mapping[str, float] | None) -> dict[str, float]:
    preferences = [row["preference"] for row in rows]
    lengths, others = ([len(row[side]) for row in rows] for side in ("output_2", "output_1"))
    hardness = None if difficulty is None else [difficulty[row["instruction"]] for row in rows]
    return {
        **win_rate(preferences),
        **length_controlled_win_rate(preferences, lengths, others, difficulty=hardness),
        "output_characters": round(sum(lengths) / len(rows)),
    }


def _rates(rates: Mapping[str, float]) -> list[str]:
    return [
        *(
            format_score(name, rates[name], low=rates[f"{name}_low"], high=rates[f"{name}_high"])
            for name in ("win_rate", "lc_win_rate")
        ),
        f"{rates['length_weight']:+.2f}",
    ]
