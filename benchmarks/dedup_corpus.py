"""Documents with planted near-copies, and lines half of which are repeated: made of real sentences, from a seed.

A document is a dozen sentences drawn at random. One in ten belongs to a planted cluster of 2 to 8: its first
member, and copies in which 0 to 3 words were replaced, each of which changes five 5-grams, so that copies are about
0.85 to 1 similar to the first (Jaccard). One in fifty is a decoy: eight to ten words of another document replaced,
about 0.6 similar, which must not be taken for a copy.
"""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.corpus import generated_text
from cs336.documents import Document, write_documents
from cs336.files import UserError

SHARD_DOCUMENTS = 50_000
PLAN_FILE = "plan.npy"
_SENTENCE = re.compile(r"[A-Z][^.!?\n<>]{35,200}[.!?](?=\s)")
_SENTENCES_A_DOCUMENT = (10, 15)  # 1.1 KB on average
_SHARE_PLANTED, _SHARE_DECOYS = 0.1, 0.02
_CLUSTER_SIZES = (2, 8)
_REPLACED_IN_COPIES, _REPLACED_IN_DECOYS = (0, 3), (8, 10)


def sentences(data: Path | None) -> list[str]:
    """Distinct sentences of film reviews and books of a folder of data sets; without one, of made-up words.

    Raises:
        UserError: the folder lacks `text/{imdb,books}`.
    """
    if data is None:
        text = [generated_text(6_000_000)]
    else:
        text = []
        for name in ("imdb/train", "books/valid"):
            path = data / "text" / f"{name}.jsonl.gz"
            if not path.exists():
                raise UserError(f"{path}: not found; leave CS336_DATA unset to measure on made-up text")
            with gzip.open(path, "rt", encoding="utf-8") as lines:
                text += [json.loads(line)["text"] for line in lines]
    found = [" ".join(sentence.split()) for each in text for sentence in _SENTENCE.findall(each)]
    return list(dict.fromkeys(found))


class Planted(NamedTuple):
    """Attributes: texts, one by one; of each document the number of its cluster's first member (its own when alone)."""

    texts: Iterator[str]
    plan: NDArray[np.int64]


def planted(known: list[str], num_documents: int, *, seed: int = 0) -> Planted:
    """Documents in random order; the same for the same sentences, number and seed."""
    generator = np.random.Generator(np.random.PCG64(seed))
    plan, replaced = np.arange(num_documents), np.zeros(num_documents, np.int64)
    sources = plan.copy()
    order = generator.permutation(num_documents)
    place = 0
    while place < _SHARE_PLANTED * num_documents:
        size = int(generator.integers(_CLUSTER_SIZES[0], _CLUSTER_SIZES[1] + 1))
        first, *copies = order[place : place + size].tolist()
        plan[copies] = sources[copies] = first
        replaced[copies] = generator.integers(_REPLACED_IN_COPIES[0], _REPLACED_IN_COPIES[1] + 1, len(copies))
        place += size
    num_decoys = min(int(_SHARE_DECOYS * num_documents), (num_documents - place) // 2)
    decoys, originals = order[place : place + num_decoys], order[place + num_decoys : place + 2 * num_decoys]
    sources[decoys] = originals
    replaced[decoys] = generator.integers(_REPLACED_IN_DECOYS[0], _REPLACED_IN_DECOYS[1] + 1, num_decoys)
    drawn = generator.integers(0, len(known), (num_documents, _SENTENCES_A_DOCUMENT[1]), dtype=np.int32)
    counts = generator.integers(_SENTENCES_A_DOCUMENT[0], _SENTENCES_A_DOCUMENT[1] + 1, num_documents)

    def texts() -> Iterator[str]:
        for number, source in enumerate(sources.tolist()):
            text = " ".join([known[sentence] for sentence in drawn[source, : counts[source]].tolist()])
            yield _with_replaced(text, int(replaced[number]), number) if replaced[number] else text

    return Planted(texts(), plan)


def _with_replaced(text: str, count: int, number: int) -> str:
    """The text with some words replaced by new ones, far enough from each other and from the ends."""
    words = text.split(" ")
    part = len(words) // count
    generator = random.Random(number)
    for each in range(count):
        words[each * part + generator.randrange(min(4, part - 1), part)] = f"changed{number}x{each}"
    return " ".join(words)


def write_planted(folder: Path, known: list[str], num_documents: int, *, seed: int = 0) -> list[Path]:
    """Write planted documents as shards, and their plan beside them; returns the shards' folders."""
    made = planted(known, num_documents, seed=seed)
    folders = []
    documents: list[Document] = []
    for number, text in enumerate(made.texts):
        documents.append(Document(f"id{number}", f"https://example.org/{number}", "planted.warc", number, text))
        if len(documents) == SHARD_DOCUMENTS or number == num_documents - 1:
            folders.append(folder / f"{len(folders):05}")
            folders[-1].mkdir(parents=True)
            write_documents(folders[-1], documents)
            documents = []
    np.save(folder / PLAN_FILE, made.plan)
    return folders


def write_lines(paths: list[Path], known: list[str], num_bytes: int, *, seed: int = 0) -> None:
    """Files of lines, about `num_bytes` together: every second line is a sentence that comes again, the others are
    made unique by a number, so that distinct lines grow with the text."""
    generator = random.Random(seed)
    number = 0
    for path in paths:
        size = 0
        with open(path, "w", encoding="utf-8", newline="") as file:
            while size < num_bytes / len(paths):
                lines = []
                for sentence in generator.choices(known, k=5_000):
                    lines += [sentence, f"{number} {sentence}"]
                    number += 1
                block = "\n".join(lines) + "\n"
                size += len(block.encode())
                file.write(block)
