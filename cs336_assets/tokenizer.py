"""The byte-level BPE vocabulary, learnt from the deduplicated text."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from cs336 import catalog
from cs336.documents import DOCUMENTS_FILE, read_table
from cs336.tokenizer.bpe import Tokenizer
from cs336.tokenizer.train import BpeConfig, train_bpe_from_documents
from cs336.tokens.shards import SplitConfig
from cs336.tokens.texts import read_texts
from cs336_assets.asset import CONTENTS, Metadata, Step, asset, check
from cs336_assets.crawl import table

NUM_ROUND_TRIPS = 100  # documents that are encoded and decoded again


@asset(group="tokenizer", kinds={"python"}, owner="team:tokens", datasets=("gpt2-vocab",), offers=CONTENTS)
def tokenizer(step: Step, deduplicated_text: list[Path], bpe: BpeConfig, split: SplitConfig) -> Metadata:
    """Byte-level BPE: 256 bytes, the special tokens, and merges of the most frequent pairs.

    Learnt from the training documents alone; held-out documents are not looked at. A preset may take GPT-2's
    vocabulary instead (`bpe.pretrained`).
    """
    if bpe.pretrained:
        merges_file, vocab_file = catalog.require_files(bpe.pretrained)
        taken = Tokenizer.from_files(vocab_file, merges_file, bpe.special_tokens)
        taken.save(step.folder)
        return {"vocab_size": taken.vocab_size, "num_merges": len(taken.merges), "taken_from": bpe.pretrained}
    num_bytes = 0

    def texts() -> Iterator[str]:
        nonlocal num_bytes
        for text in read_texts(deduplicated_text, split, held_out=False):
            num_bytes += len(text.encode())
            yield text

    vocab, merges = train_bpe_from_documents(texts(), bpe, num_workers=step.num_workers, progress=step.progress)
    learnt = Tokenizer(vocab, merges, list(bpe.special_tokens))
    learnt.save(step.folder)
    longest = sorted(vocab.values(), key=len, reverse=True)[:10]
    return {
        "vocab_size": learnt.vocab_size,
        "num_merges": len(merges),
        "num_training_bytes": num_bytes,
        "longest_tokens": table(["token", "bytes"], [[f"`{token!r}`", len(token)] for token in longest]),
        "first_merges": table(["left", "right"], [[f"`{left!r}`", f"`{right!r}`"] for left, right in merges[:15]]),
    }


@check(asset="tokenizer", blocking=True)
def text_survives_a_round_trip(tokenizer: Path, deduplicated_text: list[Path]) -> tuple[bool, Metadata]:
    """Decoding what was encoded gives the same text, for 100 random documents of all shards (of 100 random shards)."""
    codec, dice = Tokenizer.load(tokenizer), random.Random(0)
    shards = dice.sample(range(len(deduplicated_text)), min(NUM_ROUND_TRIPS, len(deduplicated_text)))
    num_documents, broken = 0, []
    for folder in (deduplicated_text[shard] for shard in shards):
        texts = read_table(folder / DOCUMENTS_FILE)["text"]
        for place in dice.sample(range(len(texts)), min(NUM_ROUND_TRIPS // len(shards), len(texts))):
            num_documents += 1
            if codec.decode(codec.encode(texts[place])) != texts[place]:
                broken.append(f"{folder.name}: document {place:,}")
    return not broken, {"num_documents": num_documents, "num_shards": len(shards), "broken": broken[:20]}
