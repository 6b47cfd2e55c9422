"""What assignment 4's leaderboard asks for: the loss, its curve over wall-clock time, how the data was made (CS336)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import polars as pl

from cs336.documents import read_table
from cs336.evals.perplexity import evaluate_perplexity, sampled_loss
from cs336.files import read_json, replacing, write_json
from cs336.filters.contamination import as_rows, documents_sharing, measure_overlap
from cs336.filters.decontaminate import EvalIndex
from cs336.hardware import pick_device
from cs336.model.transformer import ModelConfig, load_model
from cs336.presets import DATA_COURSE
from cs336.store import MANIFEST
from cs336.tokenizer.train import BpeConfig
from cs336.tokens.index import read_index
from cs336.tokens.shards import SplitConfig, concatenate
from cs336.train.loop import TrainConfig
from cs336.train.metrics import METRICS_FILE, read_rows
from cs336_assets import plots
from cs336_assets.asset import Metadata, Step, asset, check
from cs336_assets.crawl import page_table
from cs336_assets.dedup import CLUSTERS_FILE, CONTAMINATED, DROPPED_FILE
from cs336_assets.filters import DECISIONS_FILE, INDEX_FILE

SUBMISSION_FILE = "submission.json"
PINNED_FILE = "pinned.json"
DESCRIPTION_FILE = "description.md"
CONTAMINATION_FILE = "contamination.json"
SAMPLED_BATCHES, SAMPLED_SEQUENCES = 1_000, 128  # of the course's evaluation: 65.5 M tokens at a context of 512
# What may differ from the course's settings: how the same batch is divided, what is kept, and how much is looked at
# between the evaluations that count.
FREE_SETTINGS = ("micro_batch_size", "valid_batches", "checkpoint_interval", "keep_checkpoints")


@asset(group="experiments", kinds={"pytorch"}, owner="team:evals", pool="gpu")
def submission(
    step: Step,
    base_model: Path,
    token_shards: list[Path],
    validation_tokens: Path,
    eval_index: Path,
    filtered_text: list[Path],
    deduplicated_text: list[Path],
    filter_ledger: Path,
    near_duplicates: Path,
    model: ModelConfig,
    train: TrainConfig,
    seed: int,
) -> Metadata:
    """Problem train_model of assignment 4: the bundle that is handed in.

    The best validation loss recorded while training, over all of the validation text or as many tokens as the course
    evaluates on; of the final model the course's sampled estimate (1,000
    batches of 128 random windows) with its standard error, and the exact mean over every validation token; the
    learning curve against wall-clock time; what the training text shares with the validation text and every other
    evaluation; the description, from the ledger of the filters on; and a pinned list of every artifact it was made
    from.
    """
    shards = [*token_shards, validation_tokens]
    curve = [row for row in read_rows(base_model / METRICS_FILE) if "valid_loss" in row]
    best = best_row(curve, model.context_length)
    losses = _losses(step, base_model, shards, seed)
    facts = {
        "best_valid_loss": best["valid_loss"],
        "best_step": best["step"],
        "sampled_loss": losses["sampled"]["nats_per_token"],
        "sampled_standard_error": losses["sampled"]["standard_error"],
        "exact_loss": losses["exact"]["nats_per_token"],
        "num_validation_tokens": losses["exact"]["num_predicted"],
        "num_unique_training_tokens": len(concatenate(shards, "train")),
        "num_tokens_seen": curve[-1]["num_tokens"],
        "training_hours": round(curve[-1]["seconds"] / 3_600, 3),
    }
    write_json(step.folder / SUBMISSION_FILE, facts)
    plots.loss_curves({"validation": curve}, step.folder / "curve.png")
    shared = _contamination(step, eval_index, filtered_text, deduplicated_text)
    write_json(step.folder / CONTAMINATION_FILE, shared)
    write_json(step.folder / PINNED_FILE, pinned(base_model.parent, without=step.folder.name))
    facts |= {"num_contaminated_documents_trained_on": shared["num_trained_on"]}
    page = _description(facts, shared, filter_ledger, near_duplicates, train)
    with replacing(step.folder / DESCRIPTION_FILE) as file:
        file.write(page.encode())
    return facts | {"curve": {"image": "curve.png"}, "description": {"markdown": page}}


@check(asset="submission")
def the_courses_settings_were_kept(
    submission: Path,
    base_model: Path,
    model: ModelConfig,
    train: TrainConfig,
    bpe: BpeConfig,
    split: SplitConfig,
    validation: str,
) -> tuple[bool, Metadata]:
    """Model, optimizer, schedule, steps, tokens and evaluation are the course's: only the data may differ."""
    if not validation:
        return True, {"state": "no validation text of the course's: not a run for its leaderboard"}
    ours, fixed = dataclasses.asdict(train), dataclasses.asdict(DATA_COURSE.train)
    changed = [name for name in fixed if name not in FREE_SETTINGS and ours[name] != fixed[name]]
    for name, own in {"model": model, "bpe": bpe, "split": split, "validation": validation}.items():
        changed += [] if own == getattr(DATA_COURSE, name) else [name]
    return not changed, {"changed": changed}


@check(asset="submission", blocking=True)
def no_validation_text_was_trained_on(submission: Path, validation: str) -> tuple[bool, Metadata]:
    """No document trained on shares a 13-word n-gram with the validation text or is one of its documents."""
    shared = read_json(submission / CONTAMINATION_FILE)
    if not validation:
        return True, {"state": "the preset holds documents of its own text out"}
    rows = {name: (after, copies) for name, _, after, copies in shared["evaluations"]}
    return rows.get(validation) == (0, 0), {"evaluations": ", ".join(rows), "examples": shared["examples"]}


def best_row(curve: list[dict[str, Any]], context_length: int) -> dict[str, Any]:
    """Of the recorded validation losses the lowest that counts: of few tokens, some are low by chance.

    Args:
        curve: rows of `metrics.jsonl`; the last one's loss is of all held-out tokens.
    """
    enough = min(curve[-1]["num_valid_tokens"], SAMPLED_BATCHES * SAMPLED_SEQUENCES * context_length)
    return min((row for row in curve if row["num_valid_tokens"] >= enough), key=lambda row: row["valid_loss"])


def pinned(preset_folder: Path, *, without: str) -> list[dict[str, object]]:
    """Every artifact of a preset as it is now: fingerprint, commit, and the checksum of each file."""
    rows = []
    for path in sorted(preset_folder.rglob(MANIFEST)):
        place = path.parent.relative_to(preset_folder)
        if place.parts[0] in (".work", without):
            continue
        manifest = read_json(path)
        files = {name: facts["sha256"] for name, facts in manifest["files"].items()}
        rows.append(
            {"artifact": str(place)} | {key: manifest[key] for key in ("fingerprint", "commit")} | {"files": files}
        )
    return rows


def _losses(step: Step, base_model: Path, shards: list[Path], seed: int) -> dict[str, dict[str, float]]:
    device = pick_device(step.device)
    model = load_model(base_model, device=device)
    tokens = concatenate(shards, "valid")
    num_bytes = sum(document.num_text_bytes for folder in shards for document in read_index(folder, "valid"))
    context_length = model.config.context_length
    sampled = sampled_loss(
        model,
        tokens,
        context_length=context_length,
        num_batches=SAMPLED_BATCHES if len(tokens) > 1_000_000 else 8,
        batch_size=SAMPLED_SEQUENCES,
        seed=seed,
        device=device,
        progress=step.progress,
    )
    exact = evaluate_perplexity(
        model,
        tokens[: len(tokens)],
        context_length=context_length,
        stride=context_length,
        num_bytes=num_bytes,
        device=device,
        progress=step.progress,
    )
    return {"sampled": sampled, "exact": exact}


def _contamination(
    step: Step, eval_index: Path, filtered_text: list[Path], deduplicated_text: list[Path]
) -> dict[str, Any]:
    """What documents share with each evaluation: of the pages as extracted, and of the text that is trained on."""
    index = EvalIndex.load(eval_index / INDEX_FILE)
    after = measure_overlap(
        deduplicated_text, eval_index / INDEX_FILE, num_workers=step.num_workers, progress=step.progress
    )
    hits = pl.concat([read_table(folder / DECISIONS_FILE).select("eval_hits", "reason") for folder in filtered_text])
    dropped = pl.concat([read_table(folder / DROPPED_FILE).select("reason") for folder in deduplicated_text])
    return {
        "ngram_words": index.n,
        "num_ngrams": index.num_ngrams,
        "num_extracted": hits.height,
        "num_extracted_sharing": hits["eval_hits"].drop_nulls().len(),
        "num_dropped_for_it": int(hits["reason"].str.starts_with("contaminated").sum()),
        "num_dropped_later": int((dropped["reason"] == CONTAMINATED).sum()),
        "num_checked": after.num_documents,
        "num_trained_on": after.num_sharing,
        "evaluations": as_rows(documents_sharing(hits["eval_hits"]), after, index.evals),
        "examples": after.examples,
    }


def _description(
    facts: Metadata, shared: dict[str, Any], filter_ledger: Path, near_duplicates: Path, train: TrainConfig
) -> str:
    rows = read_json(filter_ledger / "ledger.json")
    removed = (~read_table(near_duplicates / CLUSTERS_FILE)["kept"]).sum()
    columns = ["filter", "state", "seen", "kept", "dropped"]
    parts = [
        f"**Loss.** {facts['best_valid_loss']:.4f} nats per token, the best recorded (step {facts['best_step']:,}); of"
        f" the final model {facts['sampled_loss']:.4f} ± {facts['sampled_standard_error']:.4f} sampled, and"
        f" {facts['exact_loss']:.4f} over all {facts['num_validation_tokens']:,} validation tokens.",
        f"**Data.** {facts['num_unique_training_tokens']:,} tokens, of which the training draws"
        f" {facts['num_tokens_seen']:,}, so {facts['num_tokens_seen'] / facts['num_unique_training_tokens']:.2f} times"
        f" each. Near-duplicates removed: {removed:,} documents. What each filter saw and dropped:",
        page_table(columns, [[row[column] for column in columns] for row in rows]),
        f"**Contamination.** Checked against {len(shared['evaluations'])} evaluations, {shared['num_ngrams']:,} n-grams"
        f" of {shared['ngram_words']} words, and every text whole. Of {shared['num_extracted']:,} extracted documents"
        f" {shared['num_extracted_sharing']:,} share something with one ({shared['num_dropped_for_it']:,} fell to no"
        f" filter before and were dropped for it); {shared['num_dropped_later']:,} came to share something without"
        f" their repeated lines, and were dropped then; of the {shared['num_checked']:,} of the corpus,"
        f" {shared['num_trained_on']:,} do.",
        page_table(
            ["evaluation", "extracted documents sharing", "trained on sharing", "copies"], shared["evaluations"]
        ),
        f"**Training.** {facts['training_hours']:,} hours, {train.num_steps:,} steps of {train.batch_size} sequences.",
    ]
    if 0 < train.micro_batch_size < train.batch_size:
        halves = train.batch_size // train.micro_batch_size
        parts.append(
            f"**Deviation.** The gradients of {halves} parts of {train.micro_batch_size} sequences are added up on one"
            " GPU; the batch is the course's."
        )
    return "\n\n".join(parts) + "\n"
