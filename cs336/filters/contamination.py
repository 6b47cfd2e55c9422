"""How much of what must not be trained on a corpus holds: figures of a submission (CS336, assignment 4)."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cs336.documents import read_documents
from cs336.filters.decontaminate import EvalIndex
from cs336.processes import map_ordered
from cs336.progress import Progress, silent

MAX_EXAMPLES = 20


@dataclass(kw_only=True)
class Overlap:
    """What some documents share with the texts of each evaluation.

    Attributes:
        num_documents: that were looked at.
        num_sharing: documents that share an n-gram with any evaluation, or a whole short line.
        sharing: by evaluation, documents that share one with it.
        copies: by evaluation, documents that are, word for word, one of its texts.
        examples: addresses of the first that share or copy.
    """

    num_documents: int = 0
    num_sharing: int = 0
    sharing: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def add(self, other: Overlap) -> None:
        """Count further documents."""
        self.num_documents += other.num_documents
        self.num_sharing += other.num_sharing
        self.sharing.update(other.sharing)
        self.copies.update(other.copies)
        self.examples = (self.examples + other.examples)[:MAX_EXAMPLES]


def measure_overlap(
    folders: Sequence[Path], index: Path, *, num_workers: int = 1, progress: Progress = silent
) -> Overlap:
    """Compare every document of a corpus with an index: n-grams and whole documents.

    Args:
        folders: shards of documents; each is one process's work.
        index: file of an `EvalIndex`.
    """
    found = Overlap()
    jobs = [(folder, index) for folder in folders]
    shards = map_ordered(_of_shard, jobs, num_workers=num_workers)
    for shard in progress(shards, total=len(jobs), unit="shards", label="contamination"):
        found.add(shard)
    return found


def _of_shard(job: tuple[Path, Path]) -> Overlap:
    folder, index = job
    return overlap_of(((each.url, each.text) for each in read_documents(folder)), _open(index))


@functools.lru_cache(maxsize=1)
def _open(index: Path) -> EvalIndex:
    return EvalIndex.load(index)


def overlap_of(documents: Iterable[tuple[str, str]], index: EvalIndex) -> Overlap:
    """As `measure_overlap`, of (address, text)."""
    found = Overlap()
    for address, text in documents:
        found.num_documents += 1
        sharing, copies = index.count(text), index.copies(text)
        found.sharing.update(sharing.keys())
        found.copies.update(copies)
        if sharing or copies:
            found.num_sharing += 1
            found.examples.append(address)
    found.examples = found.examples[:MAX_EXAMPLES]
    return found


def missing_texts(texts: Iterable[str], index: EvalIndex, name: str) -> list[str]:
    """Those texts of an evaluation that the index does not know whole; those without a word can match nothing.

    Args:
        name: of the evaluation in the index.
    """
    return [text for text in texts if any(map(str.isalnum, text)) and name not in index.copies(text)]


def documents_sharing(eval_hits: Iterable[str | None]) -> Counter[str]:
    """Documents that share something with each evaluation, from the filter's measurements.

    Args:
        eval_hits: of each document, as the filter wrote it: "mmlu: 3, gsm8k: 1", or None for none.
    """
    names: Counter[str] = Counter()
    for hits in filter(None, eval_hits):
        names.update(part.rpartition(": ")[0] for part in hits.split(", "))
    return names


def as_rows(before: Counter[str], after: Overlap, evals: Iterable[str]) -> list[list[Any]]:
    """For a table: evaluation, documents that shared something before filtering, after it, and whole copies."""
    return [[name, before[name], after.sharing[name], after.copies[name]] for name in evals]
