"""The texts of a corpus, one side of its split at a time."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path

from cs336.documents import read_documents
from cs336.tokens.shards import SplitConfig, document_key, is_held_out


def read_texts(folders: Sequence[Path], split: SplitConfig, *, held_out: bool) -> Iterator[str]:
    """Training or held-out texts of all shards, in stored order; one shard is in memory at a time."""
    for folder in folders:
        for document in read_documents(folder):
            if is_held_out(document_key(document.url, document.id), split) == held_out:
                yield document.text


def sample_texts(folders: Sequence[Path], split: SplitConfig, count: int, *, seed: int) -> list[str]:
    """Some held-out texts: those whose text has the smallest hash, so their order in the corpus makes no difference."""

    def draw(text: str) -> bytes:
        return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8, key=str(seed).encode()).digest()

    return heapq.nsmallest(count, read_texts(folders, split, held_out=True), key=draw)
