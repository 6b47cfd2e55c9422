"""Sweeps and ablations (CS336, assignment 1): runs as partitions, and for each set of runs what it says."""

from __future__ import annotations

import dataclasses
import itertools
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cs336.documents import read_documents
from cs336.files import read_json, write_compact_json, write_json
from cs336.hardware import pick_device
from cs336.model.transformer import ModelConfig
from cs336.presets import Preset
from cs336.tokenizer.bpe import Tokenizer
from cs336.tokenizer.train import BpeConfig, train_bpe_from_documents
from cs336.tokens.index import read_index
from cs336.tokens.shards import SplitConfig, write_shard
from cs336.tokens.texts import read_texts
from cs336.train.batch_limit import largest_batch_size
from cs336.train.experiments import (
    OUTCOME_FILE,
    ExperimentConfig,
    Run,
    ablation_runs,
    batch_size_runs,
    best_run,
    context_length_runs,
    learning_rate_runs,
    mean_and_spread,
    read_curves,
    read_outcomes,
    variant_of,
    vocab_size_runs,
    write_outcome,
)
from cs336.train.findings import comment_on_ablations, comment_on_batches, comment_on_rates
from cs336.train.loop import TrainConfig
from cs336.train.resume import CHECKPOINTS_FOLDER
from cs336.train.worker import run_training
from cs336_assets import plots
from cs336_assets.asset import Metadata, Step, asset, check
from cs336_assets.crawl import table
from cs336_assets.launch import train_in_child

STUDY_FILE = "study.json"
LIMIT_FILE = "limit.json"
CURVES_FILE = "curves.json"


def _cells(
    runs: Callable[[ModelConfig, TrainConfig, ExperimentConfig], Mapping[str, Run]],
) -> Callable[[Preset], Mapping[str, Run]]:
    return lambda preset: runs(preset.model, preset.train, preset.experiments)


def _sweep(cells: Callable[[Preset], Mapping[str, Any]]) -> Callable[..., Any]:
    """Declare training runs as cells of one asset."""
    return asset(
        group="experiments",
        kinds={"pytorch"},
        owner="team:models",
        cells=cells,
        resumable=True,
        pool="gpu",
        runs=(run_training,),
    )


_study = asset(group="experiments", kinds={"matplotlib"}, owner="team:models")


@_sweep(_cells(learning_rate_runs))
def learning_rates(step: Step, token_shards: list[Path], tokenizer: Path, cell: Run) -> Metadata:
    """Problem learning_rate: the base model at rising learning rates, up to rates at which it diverges."""
    return train_cell(step, cell, cell.train, token_shards, tokenizer)


def best_rate(learning_rate_study: Path) -> dict[str, Any]:
    """What the other experiments take of the study: the best rate, and the batch size at which it is best."""
    study = read_json(learning_rate_study / STUDY_FILE)
    return {"best_rate": study["learning_rate"], "best_rate_batch_size": study["batch_size"]}


@asset(group="experiments", kinds={"matplotlib"}, owner="team:models", offers=best_rate)
def learning_rate_study(step: Step, learning_rates: list[Path]) -> Metadata:
    """Problem learning_rate: which learning rate is best, and how far it lies below the edge of stability.

    All other experiments train at the rate that was best here.
    """
    outcomes = read_outcomes(learning_rates)
    best = outcomes[best_run(outcomes)]
    diverged = [each["learning_rate"] for each in outcomes.values() if each["diverged"]]
    edge = min(diverged) if diverged else None
    facts = {"learning_rate": best["learning_rate"], "batch_size": best["batch_size"], "valid_loss": best["valid_loss"]}
    write_compact_json(step.folder / STUDY_FILE, facts | {"lowest_diverged": edge, "runs": outcomes})
    plots.loss_over_rate({"": list(outcomes.values())}, step.folder / "rates.png")
    return facts | {
        "comment": {"markdown": comment_on_rates(outcomes)},
        "lowest_diverged_rate": edge or "none diverged: add higher rates",
        "best_over_edge": float(f"{best['learning_rate'] / edge:.2g}") if edge else "unknown",
        **runs_shown(step, learning_rates),
        "rates": {"image": "rates.png"},
    }


@check(asset="learning_rate_study")
def a_rate_diverged(learning_rate_study: Path) -> tuple[bool, Metadata]:
    """The sweep went far enough: at least one rate diverged, and the best is not the lowest tried."""
    study = read_json(learning_rate_study / STUDY_FILE)
    rates = [each["learning_rate"] for each in study["runs"].values()]
    return bool(study["lowest_diverged"]) and study["learning_rate"] > min(rates), {"rates": rates}


def largest_batch(batch_size_limit: Path) -> int:
    """What the other experiments take of the limit: its batch size."""
    return read_json(batch_size_limit / LIMIT_FILE)["batch_size"]


@asset(
    group="experiments",
    kinds={"pytorch"},
    owner="team:models",
    pool="gpu",
    runs=(run_training,),
    offers=largest_batch,
)
def batch_size_limit(
    step: Step, tokenizer: Path, model: ModelConfig, train: TrainConfig, experiments: ExperimentConfig
) -> Metadata:
    """The largest batch whose training step fits into this machine's GPU; without one, the preset's cap."""
    size, peak = largest_batch_size(
        dataclasses.replace(model, vocab_size=Tokenizer.load(tokenizer).vocab_size),
        train,
        device=pick_device(step.device),
        max_batch_size=experiments.max_batch_size,
    )
    facts = {"batch_size": size, "peak_bytes": peak, "measured": peak > 0}
    write_json(step.folder / LIMIT_FILE, facts)
    return facts


@_sweep(_cells(batch_size_runs))
def batch_sizes(
    step: Step,
    token_shards: list[Path],
    tokenizer: Path,
    learning_rate_study: Path,
    batch_size_limit: Path,
    cell: Run,
) -> Metadata:
    """Problem batch_size_experiment: batches from 1 to the memory limit, the learning rate tuned again for each.

    All see the same number of tokens, but the smallest ones, which stop by the clock. The rates are multiples
    of the best one times the square root of the ratio of batch sizes.
    """
    train = _resolved(cell, learning_rate_study, largest_batch(batch_size_limit))
    return train_cell(step, cell, train, token_shards, tokenizer)


@_study
def batch_size_study(step: Step, batch_sizes: list[Path]) -> Metadata:
    """Problem batch_size_experiment: loss and speed by batch size, each at its best learning rate."""
    outcomes = read_outcomes(batch_sizes)
    by_size: dict[int, dict[str, Any]] = {}
    for name, each in outcomes.items():
        by_size.setdefault(each["batch_size"], {})[name] = each
    best = {size: runs[best_run(runs)] for size, runs in sorted(by_size.items())}
    write_compact_json(step.folder / STUDY_FILE, {"best": best, "runs": outcomes})
    plots.loss_over_rate(
        {f"batch {size:,}": list(runs.values()) for size, runs in sorted(by_size.items())}, step.folder / "rates.png"
    )
    rows = [[size, *_figures(each), each["num_steps"]] for size, each in best.items()]
    columns = ["batch", *_FIGURES, "steps"]
    return {
        "comment": {"markdown": comment_on_batches(best)},
        "best": table(columns, rows),
        **runs_shown(step, batch_sizes),
        "rates": {"image": "rates.png"},
    }


@_sweep(_cells(ablation_runs))
def ablations(step: Step, token_shards: list[Path], tokenizer: Path, learning_rate_study: Path, cell: Run) -> Metadata:
    """The four ablations: no norms, norms after the residual sum, no positions, no gate; beside the base model.

    Each with several seeds at the best learning rate; the model without norms at lower ones too.
    """
    return train_cell(step, cell, _resolved(cell, learning_rate_study), token_shards, tokenizer)


@_study
def ablation_study(step: Step, ablations: list[Path]) -> Metadata:
    """The four ablations: what each part of the architecture is worth, with the spread over seeds."""
    outcomes = read_outcomes(ablations)
    variants: dict[str, list[dict[str, Any]]] = {}
    for name, each in outcomes.items():
        variants.setdefault(variant_of(name), []).append(each)
    summary = {name: variant_summary(runs) for name, runs in variants.items()}
    base = summary["baseline"]["valid_loss"]
    rows = []
    for name, each in summary.items():
        worse = each["valid_loss"] - base if each["valid_loss"] and base else None
        rows.append([name, each["learning_rate"], *map(number_shown, (each["valid_loss"], each["spread"], worse))])
        rows[-1].append(each["diverged"])
    write_compact_json(step.folder / STUDY_FILE, {"variants": summary, "runs": outcomes})
    plots.means_with_spread(
        {name: (each["valid_loss"], each["spread"]) for name, each in summary.items() if each["valid_loss"]},
        step.folder / "means.png",
    )
    columns = ["model", "rate", "validation loss", "std over seeds", "worse than the baseline by", "seeds diverged"]
    return {
        "comment": {"markdown": comment_on_ablations(summary)},
        "summary": table(columns, rows),
        **runs_shown(step, ablations),
        "means": {"image": "means.png"},
    }


@check(asset="ablation_study")
def the_base_model_is_best(ablation_study: Path) -> tuple[bool, Metadata]:
    """Each ablation costs something: none has a lower mean loss than the base model."""
    variants = read_json(ablation_study / STUDY_FILE)["variants"]
    base = variants["baseline"]["valid_loss"]
    better = [name for name, each in variants.items() if each["valid_loss"] and each["valid_loss"] < base]
    return not better, {"better": better}


@_sweep(_cells(context_length_runs))
def context_lengths(
    step: Step, token_shards: list[Path], tokenizer: Path, learning_rate_study: Path, cell: Run
) -> Metadata:
    """Side study: the base model in shorter and longer contexts, as many tokens in each step."""
    return train_cell(step, cell, _resolved(cell, learning_rate_study), token_shards, tokenizer)


@asset(
    group="experiments",
    kinds={"numba"},
    owner="team:tokens",
    cells=lambda preset: {f"vocab-{size}": size for size in preset.experiments.vocab_sizes},
)
def vocabularies(step: Step, deduplicated_text: list[Path], bpe: BpeConfig, split: SplitConfig, cell: int) -> Metadata:
    """Side study: the same text in vocabularies of other sizes, as one pair of token arrays each."""
    texts = read_texts(deduplicated_text, split, held_out=False)
    config = dataclasses.replace(bpe, vocab_size=cell, pretrained="")
    vocab, merges = train_bpe_from_documents(texts, config, num_workers=step.num_workers, progress=step.progress)
    learnt = Tokenizer(vocab, merges, list(bpe.special_tokens))
    learnt.save(step.folder)
    documents = itertools.chain.from_iterable(map(read_documents, deduplicated_text))
    stats = write_shard(
        step.folder, documents, learnt, split=split, num_workers=step.num_workers, progress=step.progress
    )
    return {
        "vocab_size": learnt.vocab_size,
        "num_tokens": stats.num_tokens,
        "bytes_per_token": round(stats.num_text_bytes / max(1, stats.num_tokens), 3),
    }


@_sweep(_cells(vocab_size_runs))
def vocab_sizes(step: Step, vocabularies: Path, learning_rate_study: Path, cell: Run) -> Metadata:
    """Side study: the base model over other vocabularies, on as many tokens."""
    return train_cell(step, cell, _resolved(cell, learning_rate_study), [vocabularies], vocabularies)


@_study
def side_studies(
    step: Step, context_lengths: list[Path], vocab_sizes: list[Path], vocabularies: list[Path], token_shards: list[Path]
) -> Metadata:
    """Side studies: loss and time by context length and vocabulary size.

    Losses per token of two vocabularies do not compare; bits per byte do.
    """
    held_out = {folder.name: _held_out([folder]) for folder in vocabularies}
    rows = []
    for folder in [*context_lengths, *vocab_sizes]:
        each = read_json(folder / OUTCOME_FILE)
        num_tokens, num_bytes = held_out.get(folder.name) or _held_out(token_shards)
        bits = each["valid_loss"] * num_tokens / math.log(2) / num_bytes if each["valid_loss"] else None
        milliseconds = 1e3 * each["seconds"] / max(1, each["num_steps"])
        rows.append([folder.name, number_shown(each["valid_loss"]), number_shown(bits), round(milliseconds, 2)])
    write_json(step.folder / STUDY_FILE, rows)
    columns = ["run", "validation loss, nats per token", "bits per byte", "milliseconds a step"]
    plots.loss_curves(read_curves([*context_lengths, *vocab_sizes]), step.folder / "curves.png")
    return {"summary": table(columns, rows), "curves": {"image": "curves.png"}}


def train_cell(step: Step, cell: Run, train: TrainConfig, token_shards: list[Path], tokenizer: Path) -> Metadata:
    """One run; a loss that stops being a number is its result, not its failure."""
    shape = dataclasses.replace(cell.model, vocab_size=Tokenizer.load(tokenizer).vocab_size)
    rows = train_in_child(
        step, shape, train, seed=cell.seed, token_shards=token_shards, tokenizer=tokenizer, may_diverge=True
    )
    shutil.rmtree(step.folder / CHECKPOINTS_FOLDER, ignore_errors=True)  # of use to a run that goes on, and large
    outcome = write_outcome(step.folder, shape, train, seed=cell.seed)
    plots.training_curve(rows, step.folder / "curve.png")
    shown = ("learning_rate", "batch_size", "num_steps", "num_tokens", "seconds", "tokens_per_second")
    return {
        **{name: outcome[name] for name in shown},
        "train_loss": number_shown(outcome["train_loss"]),
        "valid_loss": number_shown(outcome["valid_loss"]),
        "diverged": outcome["diverged"] or "no",
        "curve": {"image": "curve.png"},
    }


def _resolved(cell: Run, learning_rate_study: Path, largest_batch_size: int = 0) -> TrainConfig:
    return cell.resolved(**best_rate(learning_rate_study), largest_batch_size=largest_batch_size)


def variant_summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    sound = [each["valid_loss"] for each in runs if not each["diverged"]]
    mean, spread = mean_and_spread(sound) if sound else (None, None)
    return {
        "learning_rate": runs[0]["learning_rate"],
        "valid_loss": mean,
        "spread": spread,
        "diverged": f"{len(runs) - len(sound)} of {len(runs)}",
    }


def runs_shown(step: Step, folders: list[Path]) -> Metadata:
    """All runs of a study as a table, and their curves over tokens and seconds, drawn and as numbers."""
    outcomes, curves = read_outcomes(folders), read_curves(folders)
    plots.loss_curves(curves, step.folder / "curves.png")
    drawn = ("num_tokens", "seconds", "valid_loss")
    points = {name: [[row[column] for column in drawn] for row in rows] for name, rows in curves.items()}
    write_compact_json(step.folder / CURVES_FILE, {"columns": drawn, "runs": points})
    rows = [[name, each["batch_size"], *_figures(each), each["diverged"] or "no"] for name, each in outcomes.items()]
    columns = ["run", "batch", *_FIGURES, "diverged"]
    return {"runs": table(columns, rows), "curves": {"image": "curves.png"}}


_FIGURES = ("rate", "tokens", "seconds", "tokens/s", "validation loss")


def _figures(outcome: dict[str, Any]) -> list[Any]:
    return [
        f"{outcome['learning_rate']:.2g}",
        f"{outcome['num_tokens']:,}",
        round(outcome["seconds"], 1),
        f"{outcome['tokens_per_second']:,}",
        number_shown(outcome["valid_loss"]),
    ]


def _held_out(folders: list[Path]) -> tuple[int, int]:
    """Predicted tokens and UTF-8 bytes of the held-out documents."""
    documents = [each for folder in folders for each in read_index(folder, "valid")]
    return sum(each.num_tokens for each in documents) - 1, sum(each.num_text_bytes for each in documents)


def number_shown(value: float | None) -> float | str:
    return "-" if value is None else round(value, 4)
