"""Scores of the base model, and the leaderboard of every preset's models."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cs336 import catalog
from cs336.documents import read_documents
from cs336.evals.byte_ngram import WittenBellByteModel
from cs336.evals.gsm8k import evaluate_gsm8k
from cs336.evals.mmlu import evaluate_mmlu
from cs336.evals.perplexity import evaluate_perplexity
from cs336.evals.report import ScoreRow, markdown_table, score_rows
from cs336.evals.task import EvalConfig, EvalResult, pick_rows, read_sample, sample_path
from cs336.files import UserError, read_json, write_json, write_jsonl
from cs336.generate.engine import continuation_logprobs, generate
from cs336.hardware import pick_device
from cs336.leaderboard import SCORES_FILE, collect_scores, scores_version
from cs336.model.transformer import load_model
from cs336.store import MANIFEST
from cs336.tokenizer.bpe import Tokenizer
from cs336.tokens.chat import template_path
from cs336.tokens.index import read_index
from cs336.tokens.shards import SplitConfig, concatenate, document_key, is_held_out
from cs336_assets.asset import Metadata, Step, asset, check
from cs336_assets.crawl import table

# What shapes the prompts, so that a changed word is another score.
MMLU_FILES = (sample_path("mmlu"), template_path("mmlu"), template_path("zero_shot"))
GSM8K_FILES = (sample_path("gsm8k"), template_path("gsm8k"), template_path("zero_shot"))


@asset(group="evals", kinds={"numpy"}, owner="team:evals")
def byte_ngrams(step: Step, deduplicated_text: list[Path], split: SplitConfig) -> Metadata:
    """What a model must beat: interpolated Witten-Bell byte n-grams of orders 1 to 5.

    Trained on the same training documents, measured in bits per byte on the same held-out ones.
    """
    texts: dict[bool, list[str]] = {True: [], False: []}
    for folder in deduplicated_text:
        for document in read_documents(folder):
            texts[is_held_out(document_key(document.url, document.id), split)].append(document.text)
    if not any(texts[True]) or not any(texts[False]):
        raise UserError(
            f"{len(texts[False])} documents to train on and {len(texts[True])} held out: both need text;"
            " take more pages, or another split.valid_fraction"
        )
    bits_per_byte = WittenBellByteModel(texts[False], max_order=5).bits_per_byte(texts[True])
    facts = {
        "bits_per_byte": bits_per_byte,
        "num_training_bytes": sum(len(text.encode()) for text in texts[False]),
        "num_held_out_bytes": sum(len(text.encode()) for text in texts[True]),
    }
    write_json(step.folder / "baseline.json", facts)
    return facts


@asset(group="evals", kinds={"pytorch"}, owner="team:evals", pool="gpu")
def perplexity(
    step: Step, base_model: Path, tokenizer: Path, token_shards: list[Path], validation_tokens: Path
) -> Metadata:
    """Loss on all held-out documents: nats per token, perplexity, bits per byte.

    Each held-out token is predicted once. Bits per byte do not depend on the tokenizer, so models
    with different vocabularies compare.
    """
    return write_held_out_scores(step, base_model, tokenizer, [*token_shards, validation_tokens])


@check(asset="perplexity")
def model_beats_byte_ngrams(perplexity: Path, byte_ngrams: Path) -> tuple[bool, Metadata]:
    """The model has learnt: fewer bits per byte on held-out documents than Witten-Bell byte n-grams."""
    rows: list[ScoreRow] = read_json(perplexity / SCORES_FILE)
    ours = next(row["value"] for row in rows if row["metric"] == "bits_per_byte")
    theirs = read_json(byte_ngrams / "baseline.json")["bits_per_byte"]
    return ours < theirs, {"model_bits_per_byte": ours, "ngram_bits_per_byte": theirs, "ratio": theirs / ours}


@asset(group="evals", kinds={"pytorch"}, owner="team:evals", datasets=("mmlu",), files=MMLU_FILES, pool="gpu")
def mmlu(step: Step, base_model: Path, tokenizer: Path, evals: EvalConfig) -> Metadata:
    """Knowledge: multiple-choice questions, answered in words and by the likeliest letter.

    MMLU's test split where it is found; else the project's own questions, named *mmlu sample*.
    """
    found = catalog.find("mmlu")
    examples = catalog.read_mmlu(found, "test") if found else read_sample("mmlu")
    few_shot = catalog.read_mmlu(found, "dev") if found and evals.mmlu_few_shot else []
    answer = _Answerer(step, base_model, tokenizer)
    result = evaluate_mmlu(
        examples,
        generate=answer.generate,
        choose=answer.choose,
        config=evals,
        few_shot=few_shot,
        name="mmlu" if found else "mmlu sample",
    )
    return _write_result(step, result, task="mmlu")


@asset(group="evals", kinds={"pytorch"}, owner="team:evals", datasets=("gsm8k",), files=GSM8K_FILES, pool="gpu")
def gsm8k(step: Step, base_model: Path, tokenizer: Path, evals: EvalConfig) -> Metadata:
    """Reasoning: grade-school word problems, the last number of the output counts.

    GSM8K's test split where it is found; else the project's own problems, named *gsm8k sample*.
    """
    found = catalog.find("gsm8k")
    examples = catalog.read_gsm8k(found, "test") if found else read_sample("gsm8k")
    answer = _Answerer(step, base_model, tokenizer)
    result = evaluate_gsm8k(examples, generate=answer.generate, config=evals, name="gsm8k" if found else "gsm8k sample")
    return _write_result(step, result, task="gsm8k")


@check(asset="leaderboard", blocking=True)
def questions_were_kept_out_of_training(mmlu: Path, gsm8k: Path, eval_index: Path) -> tuple[bool, Metadata]:
    """The questions asked are those that the training text was checked against."""
    checked = read_json(eval_index / MANIFEST)["inputs"]
    asked = read_json(mmlu / MANIFEST)["inputs"] | read_json(gsm8k / MANIFEST)["inputs"]
    unchecked = [name for name, version in asked.items() if name.startswith("data:") and checked.get(name) != version]
    return not unchecked, {"unchecked": unchecked}


@asset(group="evals", kinds={"python"}, owner="team:evals", watches=scores_version)
def leaderboard(step: Step, perplexity: Path, mmlu: Path, gsm8k: Path) -> Metadata:
    """Scores of every preset's models side by side, those measured elsewhere included.

    Reads the manifests in the artifact folders of all presets, so it also changes when another
    preset's scores do.
    """
    rows = collect_scores(perplexity.parents[1])
    write_json(step.folder / "leaderboard.json", rows)
    return {"num_scores": len(rows), "table": {"markdown": markdown_table(rows)}}


def write_held_out_scores(step: Step, model_folder: Path, tokenizer: Path, token_shards: list[Path]) -> Metadata:
    """Scores of a model on all held-out documents."""
    model = load_model(model_folder, device=pick_device(step.device))
    num_bytes = sum(document.num_text_bytes for folder in token_shards for document in read_index(folder, "valid"))
    valid = concatenate(token_shards, "valid")
    metrics = evaluate_perplexity(
        model,
        valid[: len(valid)],
        context_length=model.config.context_length,
        num_bytes=num_bytes,
        end_of_text=Tokenizer.load(tokenizer).end_of_text_id,
        device=pick_device(step.device),
        progress=step.progress,
    )
    return _write_scores(step, metrics, task="perplexity", set_name="held-out documents", model=model_folder.name)


class _Answerer:
    """A loaded model behind the plain callables that tasks ask for."""

    def __init__(self, step: Step, base_model: Path, tokenizer: Path):
        model = load_model(base_model, device=pick_device(step.device))
        codec = Tokenizer.load(tokenizer)
        self.generate = functools.partial(generate, model, codec, progress=step.progress)
        self.choose = functools.partial(continuation_logprobs, model, codec, progress=step.progress)


def _write_result(step: Step, result: EvalResult, *, task: str) -> Metadata:
    write_jsonl(step.folder / "generations.jsonl", result.rows)
    shown = _write_scores(step, result.metrics, task=task, set_name=result.name)
    failures = pick_rows(result.rows, lambda row: not row["correct"], count=5)
    return shown | {
        "wrong_answers": table(
            ["question", "output", "parsed as"],
            [
                [row["example"]["question"][:160], row["output"][:160] or "*nothing*", row["prediction"]]
                for row in failures
            ],
        )
    }


def _write_scores(
    step: Step, metrics: Mapping[str, Any], *, task: str, set_name: str, model: str = "base_model"
) -> Metadata:
    """Write what the leaderboard reads; wall-clock figures go to the metadata alone."""
    rows = score_rows(metrics, preset=step.preset, model=model, task=task, set_name=set_name)
    write_json(step.folder / SCORES_FILE, rows)
    numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    return {"set": set_name, "scores": {"markdown": markdown_table(rows)}, **numbers}
