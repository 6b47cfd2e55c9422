"""Token ids on disk, ready to be memory-mapped."""

from __future__ import annotations

from pathlib import Path

from cs336 import catalog
from cs336.documents import Document, read_documents
from cs336.model.transformer import ModelConfig
from cs336.tokenizer.bpe import Tokenizer
from cs336.tokens.shards import SplitConfig, concatenate, largest_token_id, write_shard
from cs336_assets.asset import CONTENTS, Metadata, Step, asset, check


@asset(group="tokens", kinds={"numpy"}, owner="team:tokens", datasets=("paloma-c4-100",), offers=CONTENTS)
def validation_tokens(step: Step, tokenizer: Path, validation: str) -> Metadata:
    """Text that is evaluated on and never trained on, such as Paloma's C4 100 domains.

    Empty where the preset holds documents of its own text out, as most do.
    """
    texts = catalog.read_paloma(catalog.require(validation)) if validation else ()
    documents = (Document(place, f"{validation}://{place}", warc="", offset=0, text=text) for place, text in texts)
    stats = write_shard(
        step.folder,
        documents,
        Tokenizer.load(tokenizer),
        split=SplitConfig(valid_fraction=1.0),
        num_workers=step.num_workers,
        progress=step.progress,
    )
    return {
        "source": validation or "none: the preset holds documents of its own text out",
        "num_documents": stats.num_documents,
        "num_tokens": stats.num_tokens,
    }


@asset(group="tokens", kinds={"numpy"}, owner="team:tokens", per_shard=True, offers=CONTENTS)
def token_shards(step: Step, deduplicated_text: Path, tokenizer: Path, split: SplitConfig) -> Metadata:
    """Training and held-out text as flat arrays of uint16 token ids, one pair per crawl shard.

    Every document ends with `<|endoftext|>`; input order is kept, so a shard rebuilt alone comes
    out byte for byte the same. The index beside the arrays leads from a token to its document.
    Whole documents are held out, chosen by a hash of their address.
    """
    stats = write_shard(
        step.folder,
        read_documents(deduplicated_text),
        Tokenizer.load(tokenizer),
        split=split,
        num_workers=step.num_workers,
        progress=step.progress,
    )
    return {
        "num_documents": stats.num_documents,
        "num_tokens": stats.num_tokens,
        "num_valid_documents": stats.num_valid_documents,
        "num_valid_tokens": stats.num_valid_tokens,
        "num_skipped": sum(stats.num_skipped.values()),
        "bytes_per_token": round(stats.num_text_bytes / max(1, stats.num_tokens), 3),
    }


@check(asset="token_shards", blocking=True, of_shards="each")
def token_ids_are_in_vocabulary(token_shards: list[Path], tokenizer: Path) -> tuple[bool, Metadata]:
    """No stored id reaches the vocabulary size (re-read from disk, all shards)."""
    largest_id = largest_token_id(token_shards)
    return largest_id < Tokenizer.load(tokenizer).vocab_size, {"largest_id": largest_id}


@check(asset="token_shards", blocking=True, of_shards="some")
def both_splits_have_tokens(
    token_shards: list[Path], validation_tokens: Path, model: ModelConfig
) -> tuple[bool, Metadata]:
    """Training and held-out text each fill at least one context; else give more text or raise `valid_fraction`."""
    shards = [*token_shards, validation_tokens]
    counts = {split: len(concatenate(shards, split)) for split in ("train", "valid")}
    return min(counts.values()) > model.context_length, {f"num_{split}_tokens": n for split, n in counts.items()}
