"""What the vocabulary is like, beside those of the other presets."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from cs336.files import UserError, read_json, replacing, write_json
from cs336.fingerprint import digest
from cs336.store import MANIFEST
from cs336.tokenizer.bpe import Tokenizer
from cs336.tokenizer.formats import OWN_FILE
from cs336.tokenizer.study import (
    LARGEST_UINT16,
    PILE_BYTES,
    TrainingProfile,
    bytes_per_token,
    compare_vocabularies,
    compression_by_size,
    count_occurrences,
    encoding_rate,
    kind_of_token,
    longest_tokens,
    merges_sha256,
    profile_training,
)
from cs336.tokenizer.train import BpeConfig
from cs336.tokens.shards import SplitConfig
from cs336.tokens.texts import read_texts, sample_texts
from cs336_assets import plots
from cs336_assets.asset import Metadata, Step, asset, check
from cs336_assets.crawl import page_table, table

STUDY_FILE = "study.json"
NUM_DOCUMENTS = 10  # the handout's
RATE_BYTES = 20_000_000  # of text, for the throughput: a fraction of a second


def stored_tokenizers(root: Path) -> dict[str, Path]:
    """Folder of each preset's finished tokenizer, by preset.

    Args:
        root: folder of all presets' artifacts.
    """
    folders = sorted(path.parent for path in root.glob(f"*/tokenizer/{OWN_FILE}") if (path.parent / MANIFEST).exists())
    return {folder.parent.name: folder for folder in folders}


def tokenizers_version(root: Path) -> str:
    """Changes when any preset's tokenizer does."""
    folders = stored_tokenizers(root).items()
    return digest({preset: read_json(folder / MANIFEST)["fingerprint"] for preset, folder in folders})


@asset(group="tokenizer", kinds={"numpy"}, owner="team:tokens", watches=tokenizers_version)
def tokenizer_study(
    step: Step, tokenizer: Path, deduplicated_text: list[Path], bpe: BpeConfig, split: SplitConfig, seed: int
) -> Metadata:
    """The vocabulary examined: what its training took, its longest tokens, how it compresses, how fast it encodes.

    Trains once more in a process of its own, with a clock at each stage. Ten held-out documents are
    encoded with this tokenizer, with its own smaller vocabularies, and with the tokenizer of every other
    preset that has one. Answers the problems train_bpe_tinystories, train_bpe_expts_owt and
    tokenizer_experiments of CS336's assignment 1 (2025).
    """
    texts = partial(read_texts, deduplicated_text, split, held_out=False)
    profile = profile_training(texts, bpe, num_workers=step.num_workers)
    ours = Tokenizer.load(tokenizer)
    sample = sample_texts(deduplicated_text, split, NUM_DOCUMENTS, seed=seed)
    if not any(sample):
        raise UserError("no held-out document has text; take more pages, or another split.valid_fraction")
    tokens = longest_tokens(ours, NUM_DOCUMENTS)
    others = {name: Tokenizer.load(folder) for name, folder in stored_tokenizers(tokenizer.parents[1]).items()}
    others.pop(step.preset, None)
    study: dict[str, Any] = {
        "merges_sha256": profile.merges_sha256,
        "num_training_bytes": profile.num_bytes,
        "largest_id": ours.vocab_size - 1,
        "longest_tokens": [
            {"token": repr(token), "num_bytes": len(token), "kind": kind_of_token(token), "num_occurrences": count}
            for token, count in zip(tokens, count_occurrences(tokens, texts()), strict=True)
        ],
        "sample_bytes": [len(text.encode()) for text in sample],
        "bytes_per_token": {step.preset: bytes_per_token(ours, sample)}
        | {name: bytes_per_token(other, sample) for name, other in others.items()},
        "bytes_per_token_by_size": compression_by_size(ours, sample),
        "compared": {name: _comparison(ours, other) for name, other in others.items()},
    }
    write_json(step.folder / STUDY_FILE, study)
    plots.compression(study["bytes_per_token_by_size"], _points(study, others), step.folder / "compression.png")
    rate = encoding_rate(ours, list(_first_bytes(texts(), RATE_BYTES)))
    page = _page(study)
    with replacing(step.folder / "study.md", "w") as file:
        file.write(page)
    return _training_metadata(profile) | _encoding_metadata(study, step.preset, rate) | {"study": {"markdown": page}}


@check(asset="tokenizer_study")
def training_again_gives_the_same_vocabulary(tokenizer_study: Path, tokenizer: Path) -> tuple[bool, Metadata]:
    """The merges of the study's own training are the tokenizer's, one by one."""
    ours = merges_sha256(Tokenizer.load(tokenizer).merges)
    theirs = read_json(tokenizer_study / STUDY_FILE)["merges_sha256"]
    return ours == theirs, {"tokenizer": ours, "study": theirs}


@check(asset="tokenizer_study")
def a_larger_vocabulary_needs_no_more_tokens(tokenizer_study: Path) -> tuple[bool, Metadata]:
    """Bytes per token never fall as the vocabulary grows, and no token is shorter than a byte."""
    found = read_json(tokenizer_study / STUDY_FILE)["bytes_per_token_by_size"]
    values = [found[size] for size in sorted(found, key=int)]
    grows = all(before <= after for before, after in itertools.pairwise(values))
    return grows and values[0] >= 1, {"bytes_per_token": found}


@check(asset="tokenizer_study")
def ids_fit_two_bytes(tokenizer_study: Path) -> tuple[bool, Metadata]:
    """The largest id is at most 65,535, so uint16 holds every id."""
    largest = read_json(tokenizer_study / STUDY_FILE)["largest_id"]
    return largest <= LARGEST_UINT16, {"largest_id": largest, "largest_uint16": LARGEST_UINT16}


def _comparison(ours: Tokenizer, theirs: Tokenizer) -> dict[str, Any]:
    found = compare_vocabularies(ours, theirs)._asdict()
    return found | {name: list(map(repr, found[name])) for name in ("longest_ours", "longest_theirs")}


def _points(study: dict[str, Any], others: dict[str, Tokenizer]) -> dict[str, tuple[int, float]]:
    return {name: (other.vocab_size, study["bytes_per_token"][name]) for name, other in others.items()}


def _first_bytes(texts: Iterator[str], num_bytes: int) -> Iterator[str]:
    for text in texts:
        yield text
        num_bytes -= len(text.encode())
        if num_bytes <= 0:
            return


# ---- what is shown; times and rates vary from run to run, so they stand in the metadata alone


def _training_metadata(profile: TrainingProfile) -> Metadata:
    total = sum(profile.seconds.values())
    rows = [[stage, round(seconds, 3), f"{seconds / total:.0%}"] for stage, seconds in profile.seconds.items()]
    return {
        "training_seconds": round(total, 3),
        "kernel_load_seconds": round(profile.load_seconds, 3),
        "training_peak_bytes": profile.peak_bytes,
        "training_bytes_before": profile.bytes_before,
        "slowest_stage": profile.slowest,
        "training_stages": table(["stage", "seconds", "share"], rows),
    }


def _encoding_metadata(study: dict[str, Any], preset: str, rate: float) -> Metadata:
    return {
        "bytes_per_token": round(study["bytes_per_token"][preset], 4),
        "encoding_bytes_per_second": round(rate),
        "hours_for_the_pile": round(PILE_BYTES / rate / 3_600, 2),
        "compression": {"image": "compression.png"},
    }


def _page(study: dict[str, Any]) -> str:
    longest = study["longest_tokens"]
    by_name = study["bytes_per_token"]
    parts = [
        f"**Longest token.** {_judged(longest[0])}" if longest else "**Longest token.** Nothing was merged.",
        page_table(
            ["token", "bytes", "kind", "times in the training text"],
            [[f"`{row['token']}`", row["num_bytes"], row["kind"], row["num_occurrences"]] for row in longest],
        ),
        f"**Compression.** {len(study['sample_bytes'])} held-out documents, {sum(study['sample_bytes']):,} bytes.",
        page_table(["tokenizer of", "bytes per token"], [[name, f"{value:.3f}"] for name, value in by_name.items()]),
        page_table(
            ["entries, the same training stopped earlier", "bytes per token"],
            [[size, f"{value:.3f}"] for size, value in study["bytes_per_token_by_size"].items()],
        ),
        _why_uint16(study),
    ]
    for name, compared in study["compared"].items():
        shared = (
            f"**Beside `{name}`.** {compared['num_shared']:,} entries are in both, of {compared['num_ours']:,} here"
        )
        pairs = itertools.zip_longest(compared["longest_ours"], compared["longest_theirs"])
        rows = [[f"`{mine}`" if mine else "", f"`{theirs}`" if theirs else ""] for mine, theirs in pairs]
        parts += [f"{shared} and {compared['num_theirs']:,} there. The longest of the others:"]
        parts += [page_table(["only here", f"only in {name}"], rows)]
    return "\n\n".join(parts) + "\n"


def _judged(longest: dict[str, Any]) -> str:
    sense = {
        "a word": "which makes sense: a word common in this text",
        "one character repeated": "which is no word, but a ruler or an indentation that this text repeats",
        "white space": "which is no word, but an indentation or a gap that this text repeats",
        "part of a character": "which alone is no text: bytes that begin or end a character",
    }.get(longest["kind"], f"{longest['kind']}, which this text repeats")
    return (
        f"`{longest['token']}`, {longest['num_bytes']} bytes, {sense}; its bytes occur"
        f" {longest['num_occurrences']:,} times in the training text."
    )


def _why_uint16(study: dict[str, Any]) -> str:
    rate = next(iter(study["bytes_per_token"].values()))
    num_tokens = study["num_training_bytes"] / rate
    return (
        f"**Why uint16.** The largest id is {study['largest_id']:,}; two bytes hold ids up to {LARGEST_UINT16:,}, one"
        f" byte only up to 255. The {study['num_training_bytes']:,} bytes of training text become about"
        f" {num_tokens:,.0f} ids: {2 * num_tokens / 1e6:,.1f} MB as uint16, twice that as 32-bit integers."
    )
