"""What each stage of the data is worth: one model on the text before filtering, after it, and after deduplication."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from cs336.crawl.local_files import TextFiles
from cs336.documents import Document, read_documents, read_table, write_documents
from cs336.files import read_json, write_compact_json, write_json
from cs336.filters.decontaminate import EvalIndex
from cs336.presets import Preset
from cs336.tokenizer.bpe import Tokenizer
from cs336.tokens.index import read_index
from cs336.tokens.shards import SplitConfig, document_key, is_held_out, open_tokens, write_shard
from cs336.train.data_ablation import (
    DEDUPLICATED,
    FILTERED,
    PAIRS,
    UNFILTERED,
    VARIANTS,
    VariantRun,
    comment_on_data,
    data_ablation_runs,
    losses_by_seed,
    paired_difference,
)
from cs336.train.experiments import read_outcomes
from cs336.train.worker import run_training
from cs336_assets import plots
from cs336_assets.asset import CONTENTS, Metadata, Step, asset, check
from cs336_assets.crawl import table
from cs336_assets.dedup import CLUSTERS_FILE
from cs336_assets.experiments import STUDY_FILE, number_shown, runs_shown, train_cell, variant_summary
from cs336_assets.filters import DECISIONS_FILE, all_documents

HELD_OUT_INDEX = "held_out.npz"
VARIANT_FILE = "variant.json"
_HELD_OUT = "held-out text"  # its name in the index
_ALL = SplitConfig(valid_fraction=0.0)
_NONE = SplitConfig(valid_fraction=1.0)


@asset(group="data_ablation", kinds={"numpy"}, owner="team:data", offers=CONTENTS)
def clean_text(
    step: Step, deduplicated_text: list[Path], tokenizer: Path, split: SplitConfig, held_out: TextFiles | None
) -> Metadata:
    """Clean text that no variant is trained on: what the variants of the data are compared on.

    The preset's `held_out` files, which are no part of its source; or, where it names none, the documents of the
    deduplicated text that its split holds out. The index of its 13-word n-grams stands beside the tokens.
    """
    documents = list(_held_out_documents(deduplicated_text, split, held_out))
    write_documents(step.folder, documents)
    EvalIndex.build({_HELD_OUT: [document.text for document in documents]}).save(step.folder / HELD_OUT_INDEX)
    stats = write_shard(step.folder, documents, Tokenizer.load(tokenizer), split=_NONE, num_workers=step.num_workers)
    return {
        "source": ", ".join(held_out.paths) if held_out else "what the split holds out of the deduplicated text",
        "num_documents": stats.num_documents,
        "num_tokens": stats.num_tokens,
    }


def _held_out_documents(
    deduplicated_text: list[Path], split: SplitConfig, held_out: TextFiles | None
) -> Iterator[Document]:
    if held_out is not None:
        for address, text in held_out.texts():
            yield Document(address, address, warc="", offset=0, text=text)
        return
    for document in all_documents(deduplicated_text):
        if is_held_out(document_key(document.url, document.id), split):
            yield document


@asset(
    group="data_ablation",
    kinds={"numpy"},
    owner="team:tokens",
    cells=lambda preset: {variant: variant for variant in VARIANTS},
    offers=CONTENTS,
)
def variant_tokens(
    step: Step,
    extracted_text: list[Path],
    filtered_text: list[Path],
    deduplicated_text: list[Path],
    clean_text: Path,
    tokenizer: Path,
    cell: str,
) -> Metadata:
    """The text before filtering, after it, and after deduplication, as token arrays of the same vocabulary.

    A document that shares one 13-word n-gram with the held-out text, or is held out itself, is left out of every
    variant. Masked addresses and numbers are as in the filtered text from there on.
    """
    folders = {UNFILTERED: extracted_text, FILTERED: filtered_text, DEDUPLICATED: deduplicated_text}[cell]
    index = EvalIndex.load(clean_text / HELD_OUT_INDEX)
    held_out = {document_key(document.url, document.id) for document in read_documents(clean_text)}
    left_out: Counter[str] = Counter()

    def documents() -> Iterator[Document]:
        for document in step.progress(all_documents(folders), unit="documents", label=cell):
            if document_key(document.url, document.id) in held_out:
                left_out["held out"] += 1
            elif index.num_hits(document.text):
                left_out["shares an n-gram with the held-out text"] += 1
            else:
                yield document

    stats = write_shard(step.folder, documents(), Tokenizer.load(tokenizer), split=_ALL, num_workers=step.num_workers)
    facts = {
        "num_documents": stats.num_documents,
        "num_tokens": stats.num_tokens,
        "num_text_bytes": stats.num_text_bytes,
        "bytes_per_token": round(stats.num_text_bytes / max(1, stats.num_tokens), 3),
    }
    languages = _languages(filtered_text, step.folder)
    write_json(step.folder / VARIANT_FILE, facts | {"left_out": left_out, "bytes_by_language": languages})
    return facts | {
        "left_out": table(["reason", "documents"], left_out.most_common()),
        "languages": table(["language", "bytes of text"], list(languages.items())[:12]),
    }


def _languages(filtered_text: list[Path], tokens: Path) -> dict[str, int]:
    """Bytes of a variant's text by the language that the filter measured, the most first."""
    decisions = pl.concat([read_table(folder / DECISIONS_FILE).select("id", "language") for folder in filtered_text])
    of_document = dict(decisions.drop_nulls().iter_rows())
    sizes: Counter[str] = Counter()
    for document in read_index(tokens, "train"):
        if document.id in of_document:
            sizes[of_document[document.id]] += document.num_text_bytes
    return dict(sizes.most_common())


@check(asset="variant_tokens", blocking=True)
def no_variant_holds_held_out_text(
    variant_tokens: list[Path], clean_text: Path, tokenizer: Path
) -> tuple[bool, Metadata]:
    """No document of any variant, decoded from its tokens, shares a 13-word n-gram with the held-out text or is one."""
    index, codec = EvalIndex.load(clean_text / HELD_OUT_INDEX), Tokenizer.load(tokenizer)
    found, checked = [], 0
    for folder in variant_tokens:
        tokens = open_tokens(folder / "train.bin")
        for each in read_index(folder, "train"):
            ids = tokens[each.first_token : each.first_token + each.num_tokens - 1]  # without <|endoftext|>
            text = codec.decode(ids.tolist())
            checked += 1
            if index.num_hits(text) or index.copies(text):
                found.append([folder.name, each.url])
    return bool(checked) and not found, {"num_checked": checked, "found": table(["variant", "url"], found[:20])}


def _cells(preset: Preset) -> dict[str, VariantRun]:
    return data_ablation_runs(preset.model, preset.train, preset.data_ablation)


@asset(
    group="data_ablation",
    kinds={"pytorch"},
    owner="team:models",
    cells=_cells,
    resumable=True,
    pool="gpu",
    runs=(run_training,),
)
def data_ablation(
    step: Step, variant_tokens: list[Path], clean_text: Path, tokenizer: Path, cell: VariantRun
) -> Metadata:
    """One model on each variant of the data: the same shape, rate, steps and seeds, so the same number of tokens."""
    trained_on = next(folder for folder in variant_tokens if folder.name == cell.variant)
    return train_cell(step, cell, cell.train, [trained_on, clean_text], tokenizer)


@asset(group="data_ablation", kinds={"matplotlib"}, owner="team:data")
def data_ablation_study(
    step: Step,
    data_ablation: list[Path],
    variant_tokens: list[Path],
    clean_text: Path,
    filtered_text: list[Path],
    near_duplicates: Path,
) -> Metadata:
    """What filtering and deduplication do to the loss on clean text, at equal tokens, over several seeds.

    Beside each loss: how many documents and tokens the variant has, how often a run repeats them, and what the
    stage before it dropped. The vocabulary is the preset's for all, so where it was learnt, it was learnt from the
    deduplicated text, and other text takes more tokens.
    """
    outcomes = read_outcomes(data_ablation)
    num_tokens = max(each["num_tokens"] for each in outcomes.values())
    summary = {folder.name: _summary(folder, outcomes, num_tokens) for folder in variant_tokens}
    differences = {}
    for pair in PAIRS:
        losses = [losses_by_seed(outcomes, variant) for variant in pair]
        if set(losses[0]) & set(losses[1]):
            differences[pair] = paired_difference(*losses)
    dropped = _dropped(filtered_text, near_duplicates, summary)
    page = comment_on_data(summary, differences, num_tokens)
    study = {"variants": summary, "differences": [[*pair, *each] for pair, each in differences.items()]}
    facts = {"held_out_documents": sum(1 for _ in read_index(clean_text, "valid")), "tokens_of_a_run": num_tokens}
    write_compact_json(
        step.folder / STUDY_FILE, study | facts | {"dropped": dropped, "comment": page, "runs": outcomes}
    )
    means = {name: (each["valid_loss"], each["spread"]) for name, each in summary.items() if each["valid_loss"]}
    plots.means_with_spread(means, step.folder / "means.png")
    return facts | {
        "comment": {"markdown": page},
        "summary": table(_COLUMNS, [_row(name, each) for name, each in summary.items()]),
        "differences": table(
            _DIFFERENCE_COLUMNS, [[*pair, *map(number_shown, each)] for pair, each in differences.items()]
        ),
        "dropped": table(["stage", "documents"], dropped),
        **runs_shown(step, data_ablation),
        "means": {"image": "means.png"},
    }


@check(asset="data_ablation_study")
def the_pipeline_lowers_the_loss(data_ablation_study: Path) -> tuple[bool, Metadata]:
    """The text after all stages gives a lower loss on clean text than the unfiltered one, told from chance."""
    pairs = {
        (before, after): rest for before, after, *rest in read_json(data_ablation_study / STUDY_FILE)["differences"]
    }
    mean, half_width, _ = pairs.get((UNFILTERED, DEDUPLICATED), (0.0, None, 0))
    return half_width is not None and mean < -half_width, {"difference": mean, "half_width": half_width}


_COLUMNS = [
    "variant",
    "documents",
    "tokens",
    "MB",
    "bytes per token",
    "English",
    "times read",
    "loss",
    "std over seeds",
]
_DIFFERENCE_COLUMNS = ["from", "to", "loss changes by", "95 % interval, plus or minus", "seeds"]


def _summary(tokens: Path, outcomes: dict[str, dict[str, Any]], num_tokens: int) -> dict[str, Any]:
    """A variant: what it holds, and what its runs came to."""
    facts = read_json(tokens / VARIANT_FILE)
    runs = [each for name, each in outcomes.items() if name.startswith(f"{tokens.name}-seed-")]
    languages = facts.pop("bytes_by_language")
    return (
        facts
        | variant_summary(runs)
        | {
            "epochs": num_tokens / max(1, facts["num_tokens"]),
            "num_languages": len(languages),
            "share_of_english": languages.get("en", 0) / sum(languages.values()) if languages else None,
        }
    )


def _row(name: str, each: dict[str, Any]) -> list[Any]:
    english = "-" if each["share_of_english"] is None else f"{each['share_of_english']:.1%}"
    sizes = [each["num_documents"], each["num_tokens"], round(each["num_text_bytes"] / 1e6, 2), each["bytes_per_token"]]
    losses = [number_shown(each["valid_loss"]), number_shown(each["spread"])]
    return [name, *sizes, english, round(each["epochs"], 2), *losses]


def _dropped(filtered_text: list[Path], near_duplicates: Path, summary: dict[str, Any]) -> list[list[Any]]:
    """Documents that each stage dropped, in the order of the stages."""
    decisions = pl.concat([read_table(folder / DECISIONS_FILE).select("kept", "reason") for folder in filtered_text])
    kept = int(decisions["kept"].sum())
    near = int((~read_table(near_duplicates / CLUSTERS_FILE)["kept"]).sum())
    last = summary[DEDUPLICATED]
    left = last["num_documents"] + sum(last["left_out"].values())
    reasons = Counter(decisions["reason"].drop_nulls()).most_common()
    return [
        *([f"filters: {reason}", count] for reason, count in reasons),
        ["exact lines: too few words left", kept - left - near],
        ["near-duplicates", near],
        *([f"all variants: {reason} (of the deduplicated)", count] for reason, count in last["left_out"].items()),
    ]
