"""The best model for a given time, text that models write, and the log of everything tried (CS336, assignment 1)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from cs336.files import read_json, write_json, write_jsonl
from cs336.generate.engine import Completion, generate
from cs336.generate.text_statistics import TextStatistics, text_statistics
from cs336.hardware import pick_device
from cs336.leaderboard import SCORES_FILE, collect_scores, scores_version
from cs336.model.accounting import count_parameters
from cs336.model.transformer import ModelConfig, load_model
from cs336.tokenizer.bpe import Tokenizer
from cs336.train.experiments import OUTCOME_FILE, SpeedrunConfig, read_curves
from cs336.train.metrics import METRICS_FILE, read_rows
from cs336.train.worker import run_training
from cs336_assets import plots
from cs336_assets.asset import Metadata, Step, asset, check
from cs336_assets.crawl import table
from cs336_assets.evals import write_held_out_scores
from cs336_assets.extract import preview
from cs336_assets.launch import RUN_FILE, train_in_child

SAMPLES_FILE = "samples.jsonl"
TEMPERATURES, TOP_PS = (0.0, 0.6, 0.8, 1.0, 1.2), (1.0, 0.9)
PROMPTS = ("", "The old house", "He said that")
SAMPLE_TOKENS = 256


@asset(group="experiments", kinds={"pytorch"}, owner="team:models", pool="gpu", runs=(run_training,))
def speedrun_model(
    step: Step, token_shards: list[Path], tokenizer: Path, speedrun: SpeedrunConfig, seed: int
) -> Metadata:
    """Problem leaderboard: the best model that a fixed time of training gives.

    Rules, after those of the course's leaderboards: this preset's training text and nothing else; the clock runs
    from the first step, compilation
    and validation included, to the last one, and no step begins that is expected to end after it; at most
    `max_parameters`; the held-out documents are only looked at to report their loss. Everything
    else is free.
    """
    shape = dataclasses.replace(speedrun.model, vocab_size=Tokenizer.load(tokenizer).vocab_size)
    rows = train_in_child(step, shape, speedrun.train, seed=seed, token_shards=token_shards, tokenizer=tokenizer)
    last = rows[-1]
    plots.loss_curves({"speedrun": [row for row in rows if "valid_loss" in row]}, step.folder / "curve.png")
    return {
        "num_parameters": count_parameters(shape).total,
        "num_tokens": last["num_tokens"],
        "num_steps": last["step"],
        "training_seconds": last["seconds"],
        "tokens_per_second": last["tokens_per_second"],
        "valid_loss": last["valid_loss"],
        "curve": {"image": "curve.png"},
    }


@check(asset="speedrun_model", blocking=True)
def the_rules_were_kept(speedrun_model: Path, speedrun: SpeedrunConfig) -> tuple[bool, Metadata]:
    """The last step began within the time, and the model is not larger than allowed.

    How long a step takes is known when it is over, so that the last one may end a little late: by less than it took.
    """
    seconds = [0.0, *(row["seconds"] for row in read_rows(speedrun_model / METRICS_FILE))]
    size = count_parameters(ModelConfig(**read_json(speedrun_model / "config.json"))).total
    kept = seconds[-2] <= speedrun.train.max_seconds and size <= speedrun.max_parameters
    return kept, {"last_step_began_seconds": seconds[-2], "training_seconds": seconds[-1], "num_parameters": size}


@asset(group="experiments", kinds={"pytorch"}, owner="team:evals", pool="gpu")
def speedrun_scores(
    step: Step, speedrun_model: Path, base_model: Path, tokenizer: Path, token_shards: list[Path]
) -> Metadata:
    """Problem leaderboard: loss of the best model on all held-out documents, beside the base model's curve."""
    shown = write_held_out_scores(step, speedrun_model, tokenizer, token_shards)
    plots.loss_curves(read_curves([base_model, speedrun_model]), step.folder / "curves.png")
    samples = _samples(step, speedrun_model, tokenizer, temperature=0.8, top_p=0.95)
    write_jsonl(step.folder / SAMPLES_FILE, [dataclasses.asdict(each) for each in samples])
    return shown | {"curves": {"image": "curves.png"}, "sample": {"markdown": preview(samples[0].text, 1_200)}}


@check(asset="speedrun_scores")
def the_speedrun_beats_the_base_model(speedrun_scores: Path, perplexity: Path) -> tuple[bool, Metadata]:
    """Fewer bits per byte on the held-out documents than the base model."""
    values = {
        name: next(row["value"] for row in read_json(folder / SCORES_FILE) if row["metric"] == "bits_per_byte")
        for name, folder in (("speedrun", speedrun_scores), ("base_model", perplexity))
    }
    return values["speedrun"] < values["base_model"], values


@asset(group="experiments", kinds={"pytorch"}, owner="team:models", pool="gpu")
def generated_samples(step: Step, base_model: Path, tokenizer: Path) -> Metadata:
    """Problem generate: what the base model writes at several temperatures and nucleus sizes, and how fluent it is.

    Of each text: the share of its word pairs that are new to it, and of its four-word sequences
    that it has written before. Low temperatures repeat themselves, high ones fall apart.
    """
    rows: list[dict[str, Any]] = []
    summary = []
    for temperature in TEMPERATURES:
        for top_p in TOP_PS if temperature else (1.0,):
            samples = _samples(step, base_model, tokenizer, temperature=temperature, top_p=top_p)
            statistics = text_statistics([each.text for each in samples])
            settings = {"temperature": temperature, "top_p": top_p}
            for prompt, each in zip(PROMPTS, samples, strict=True):
                rows.append(settings | {"prompt": prompt} | dataclasses.asdict(each))
            summary.append([temperature, top_p, *(round(value, 3) for value in statistics)])
    write_jsonl(step.folder / SAMPLES_FILE, rows)
    usual = next(row for row in rows if (row["temperature"], row["top_p"]) == (0.8, 0.9))
    return {
        "comment": {"markdown": _comment_on_samples(summary)},
        "num_tokens": sum(row["num_tokens"] for row in rows),
        "fluency": table(["temperature", "top-p", *TextStatistics._fields], summary),
        "greedy": {"markdown": preview(rows[0]["text"], 800)},
        "usual": {"markdown": preview(usual["text"], 1_200)},
        "hot": {"markdown": preview(rows[-2 * len(PROMPTS)]["text"], 800)},
    }


def _comment_on_samples(summary: list[list[Any]]) -> str:
    """What temperature and nucleus size do, from the statistics of the texts."""
    at = {(row[0], row[1]): TextStatistics(*row[2:]) for row in summary}
    coldest, hottest = at[TEMPERATURES[0], 1.0], at[TEMPERATURES[-1], 1.0]
    cut = at[TEMPERATURES[-1], TOP_PS[-1]]
    return (
        f"Greedy text has written {coldest.repeated_4grams:.0%} of its four-word sequences before: it is trapped in"
        f" what is likeliest. At temperature {TEMPERATURES[-1]:g} it is {hottest.repeated_4grams:.0%}, and"
        f" {hottest.new_bigrams:.0%} of the word pairs are new: rare tokens are drawn often enough to break the"
        f" sentences. A nucleus of {TOP_PS[-1]:g} takes those away ({cut.new_bigrams:.0%} new pairs) and is what keeps"
        " a warm text fluent. The third factor is the text the model was trained on: how many words of it are rare."
    )


@asset(group="experiments", kinds={"python"}, owner="team:evals", watches=scores_version)
def corpora_compared(step: Step, perplexity: Path) -> Metadata:
    """The same architecture and number of steps on other corpora: how their losses read side by side.

    The handout's main experiment on OpenWebText, beside TinyStories and whichever presets have been
    made here.
    """
    found: dict[str, dict[str, float]] = {}
    for row in collect_scores(perplexity.parents[1]):
        if row["task"] == "perplexity" and row["model"] == "base_model":
            found.setdefault(row["preset"], {})[row["metric"]] = row["value"]
    write_json(step.folder / "corpora.json", found)
    lowest = min(found, key=lambda preset: found[preset]["bits_per_byte"])
    comment = (
        "A loss in nats per token is comparable only between models that share a tokenizer and a text: a larger"
        " vocabulary packs more bytes into a token, and so more nats. Bits per byte compare across tokenizers; between"
        f" corpora they still say how predictable the text is, not how good the model: {lowest} is lowest here. A model"
        " of the same size and budget writes less fluently about the web than about children's stories: it has to"
        " spread what it can hold over far more words, subjects and styles, and has seen each of them less often."
    )
    rows = [[preset, *(_number(each.get(name)) for name in _CORPUS_METRICS)] for preset, each in sorted(found.items())]
    return {"comment": {"markdown": comment}, "corpora": table(["preset", *_CORPUS_METRICS], rows)}


_CORPUS_METRICS = ("nats_per_token", "perplexity", "bits_per_byte")


def _number(value: float | None) -> float | str:
    return "-" if value is None else round(value, 4)


@asset(group="experiments", kinds={"python"}, owner="team:models")
def experiment_log(
    step: Step,
    base_model: Path,
    speedrun_model: Path,
    learning_rates: list[Path],
    batch_sizes: list[Path],
    ablations: list[Path],
    context_lengths: list[Path],
    vocab_sizes: list[Path],
) -> Metadata:
    """Every run tried, with its settings, tokens, seconds and outcome, in one table."""
    rows = [_logged(base_model), _logged(speedrun_model)]
    for folders in (learning_rates, batch_sizes, ablations, context_lengths, vocab_sizes):
        for folder in folders:
            rows.append({"experiment": folder.parent.name, "run": folder.name, **read_json(folder / OUTCOME_FILE)})
    write_jsonl(step.folder / "log.jsonl", rows)
    columns = ["experiment", "run", "learning_rate", "batch_size", "num_tokens", "seconds", "valid_loss", "diverged"]
    return {
        "num_runs": len(rows),
        "num_diverged": sum(bool(row["diverged"]) for row in rows),
        "training_seconds": round(sum(row["seconds"] for row in rows)),
        "log": table(columns, [[row[name] for name in columns] for row in rows]),
    }


def _logged(model: Path) -> dict[str, Any]:
    """A model's training as a row of the log."""
    run, last = read_json(model / RUN_FILE), list(read_rows(model / METRICS_FILE))[-1]
    shown = {name: last[name] for name in ("num_tokens", "seconds", "train_loss", "valid_loss", "tokens_per_second")}
    settings = {name: run["train"][name] for name in ("learning_rate", "batch_size")}
    whole = {"model": run["model"], "train": run["train"], "seed": run["seed"], "num_steps": last["step"]}
    return {"experiment": model.name, "run": model.name, "diverged": "", **settings, **shown, **whole}


def _samples(step: Step, model: Path, tokenizer: Path, *, temperature: float, top_p: float) -> list[Completion]:
    """Texts of 256 tokens, or up to where the model ends them; the window moves along."""
    return generate(
        load_model(model, device=pick_device(step.device)),
        Tokenizer.load(tokenizer),
        PROMPTS,
        max_new_tokens=SAMPLE_TOKENS,
        temperature=temperature,
        top_p=top_p,
        overflow="crop",
        progress=step.progress,
    )
