"""Deduplication: signatures, exact lines, clusters, beside rensa, datasketch and datatrove.

Every run is a fresh process, so that peaks of memory (the process's greatest resident size) are each contender's own.

Cases:
  signature  128-hash signatures of word 5-grams of documents in memory, shingling included, on one thread; contenders
             must estimate the similarity of planted pairs about as well as 128 hashes can
  cluster    shards of documents to clusters and survivors, reading included, on all cores; 1,000,000 documents must
             take at most 180 s and 4 GB; recall and precision against what was planted are in the rows. rensa and
             datasketch stop at candidates
  exact      5,000 documents: what the whole chain finds against the exact similarity of all pairs
  lines      files without the lines that the corpus holds twice, on one thread, in a budget of memory; has no peer

Documents: about ten sentences each (1.1 KB), drawn at random from film reviews and books with the environment variable
CS336_DATA, else from made-up ones; one in ten belongs to a planted cluster of near-copies (benchmarks/dedup_corpus.py).

Examples:
  python -m benchmarks dedup                          1,000 and 10,000 documents, in a minute or two
  python -m benchmarks dedup --cases cluster --sizes 100000
  CS336_DATA=... python -m benchmarks dedup --full    1,000 to 1,000,000 documents, 10 GB of lines: about 20 minutes
                                                      and, for a while, 25 GB of disk
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import dedup_corpus
from benchmarks.dedup_work import DATASKETCH, DATATROVE, RENSA
from benchmarks.growth_plots import draw_growth
from benchmarks.measure import OURS, Case, Contender, Observation, Unavailable, in_fresh_process
from cs336.processes import available_cores

CASES = ("signature", "cluster", "exact", "lines")
PEERS = {
    "signature": (RENSA, DATASKETCH, DATATROVE),
    "cluster": (RENSA, DATASKETCH),
    "exact": (),
    "lines": (),
}
PACKAGES = {
    OURS: ("numba", "numpy", "polars", "regex"),
    RENSA: ("rensa",),
    DATASKETCH: ("datasketch",),
    DATATROVE: ("datatrove",),
}
# Above these a contender takes a minute or more for a run, or (rensa's shingles as strings) more memory than there is.
MAX_DOCUMENTS = {
    ("signature", RENSA): 100_000,
    ("signature", DATASKETCH): 10_000,
    ("signature", DATATROVE): 1_000,
    ("cluster", RENSA): 100_000,
    ("cluster", DATASKETCH): 10_000,
}
SIZES, FULL_SIZES = (1_000, 10_000), (1_000, 10_000, 100_000, 1_000_000)
EXACT_DOCUMENTS = 5_000
CHECK_DOCUMENTS = 1_000
BYTES_A_DOCUMENT = 1_100  # of `lines`, so that its sizes are those of the other cases
FULL_LINES_BYTES, LINES_MEMORY_BYTES = [2_000_000_000, 10_000_000_000], 256 << 20
LINES_BEYOND_BYTES = 100_000_000  # buffers of files, beyond the budget for the table
MAX_SECONDS, MAX_PEAK_BYTES = 180.0, 4e9  # of a million documents
MAX_ESTIMATE_RMSE = 0.08  # twice the standard error of 128 hashes, 0.044 at most
MIN_RECALL, MIN_PRECISION = 0.9, 0.8  # peers do not confirm candidates, so they take decoys for copies
BUDGET_SECONDS = 20.0  # of timed runs of one contender in one case; always at least one


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --sizes, --cases, --contenders, --cache and --full."""
    peers = sorted(PACKAGES.keys() - {OURS})
    parser.add_argument(
        "--sizes", type=int, nargs="+", metavar="DOCUMENTS", help="numbers of documents (default 1,000 and 10,000)"
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES, help="which to measure (default: all)")
    parser.add_argument(
        "--contenders", nargs="+", choices=peers, default=peers, metavar="PEER", help=f"of {', '.join(peers)}"
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path(tempfile.gettempdir()) / "cs336-benchmark-documents",
        metavar="FOLDER",
        help="where documents are kept for the next time (default %(default)s)",
    )
    parser.add_argument("--full", action="store_true", help="1,000 to 1,000,000 documents, and 10 GB of lines")


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """The chosen cases, sizes in growing order."""
    sizes = sorted(options.sizes or (FULL_SIZES if options.full else SIZES))
    corpora = _Corpora(options.cache)
    for work in ("signature", "cluster"):
        for size in sizes if work in options.cases else []:
            yield _documents_case(work, size, corpora, options)
    if "exact" in options.cases:
        yield _documents_case("exact", min(EXACT_DOCUMENTS, sizes[-1]), corpora, options)
    if "lines" in options.cases:
        amounts = [size * BYTES_A_DOCUMENT for size in sizes] + (FULL_LINES_BYTES if options.full else [])
        for num_bytes in amounts:
            yield _lines_case(num_bytes, corpora, options)


def finish(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Draw how figures grow with the number of documents, if there were several sizes."""
    for work, over in (("signature", "documents"), ("cluster", "documents"), ("lines", "bytes")):
        chosen = [row for row in rows if row["case"].startswith(work + "-") and "figure" in row]
        if len({row["case"] for row in chosen}) > 1:
            path = options.results / f"dedup_{work}.png"
            draw_growth(path, work, over, chosen)
            print(f"\nplot: {path}")


class _Corpora:
    """Documents and lines of any amount, written once into a folder."""

    def __init__(self, cache: Path) -> None:
        data = os.environ.get("CS336_DATA")
        self._data = Path(data) if data else None
        self._name = "real" if data else "made-up"
        self.cache = cache

    @functools.cached_property
    def _sentences(self) -> list[str]:
        return dedup_corpus.sentences(self._data)

    def documents(self, number: int) -> tuple[Path, dict[str, Any]]:
        """Folder of shards, and their description."""
        folder = self.cache / f"documents-{self._name}-{number}"
        self._once(folder, lambda target: dedup_corpus.write_planted(target, self._sentences, number))
        return folder, {"name": f"{self._name} sentences", "documents": number} | _checksum(folder.glob("*/*"))

    def lines(self, num_bytes: int) -> tuple[Path, dict[str, Any]]:
        """Folder of text files, and their description."""
        folder = self.cache / f"lines-{self._name}-{num_bytes}"
        names = [f"{number:02}.txt" for number in range(8)]
        self._once(
            folder,
            lambda target: dedup_corpus.write_lines([target / name for name in names], self._sentences, num_bytes),
        )
        return folder, {"name": f"lines of {self._name} sentences"} | _checksum(folder.glob("*.txt"))

    def _once(self, folder: Path, write: Any) -> None:
        if folder.exists():
            return
        print(f"writing {folder}", flush=True)
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write(partial)
        partial.rename(folder)


def _checksum(paths: Any) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    for path in sorted(paths):
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
        size += path.stat().st_size
    return {"bytes": size, "sha256": digest.hexdigest()}


def _documents_case(work: str, size: int, corpora: _Corpora, options: argparse.Namespace) -> Case:
    folder, description = corpora.documents(size)
    small, _ = corpora.documents(min(size, CHECK_DOCUMENTS))
    threads = available_cores() if work == "cluster" else 1

    def run(contender: str, where: Path) -> Observation:
        return _observed(work, contender, {"folder": str(where), "threads": threads}, threads)

    def check(contender: str) -> Any:
        if size > MAX_DOCUMENTS.get((work, contender), size):
            raise Unavailable(f"left out: too slow for {size:,} documents")
        return run(contender, small).result

    limits = {"seconds": MAX_SECONDS, "peak_bytes": MAX_PEAK_BYTES} if work == "cluster" and size >= 1_000_000 else {}
    return Case(
        name=f"{work}-{size}",
        amount=size,
        unit="documents/s",
        contenders=[
            Contender(
                name=name,
                prepare=functools.partial(lambda name: functools.partial(run, name, folder), name),
                packages=PACKAGES[name],
                check=functools.partial(check, name),
            )
            for name in (OURS, *(peer for peer in PEERS[work] if peer in options.contenders))
        ],
        difference=_worse_estimates if work == "signature" else _worse_clusters,
        input=description | {"cores": threads},
        repeats=1 if size >= 1_000_000 or work == "exact" else min(3, options.repeats),
        budget_seconds=BUDGET_SECONDS,
        limits=limits,
    )


def _lines_case(num_bytes: int, corpora: _Corpora, options: argparse.Namespace) -> Case:
    folder, description = corpora.lines(num_bytes)
    job = {"folder": str(folder), "scratch": str(corpora.cache), "memory_bytes": LINES_MEMORY_BYTES}
    run = functools.partial(_observed, "lines", OURS, job, 1)
    return Case(
        name=f"lines-{num_bytes / 1e6:.4g}MB",
        amount=num_bytes / 1e6,
        unit="MB/s",
        contenders=[Contender(name=OURS, prepare=lambda: run, packages=PACKAGES[OURS], check=lambda: None)],
        difference=lambda ours, theirs: None,
        input=description | {"cores": 1},
        repeats=1 if num_bytes >= 1e9 else min(3, options.repeats),
        budget_seconds=BUDGET_SECONDS,
        limits={"peak_bytes": float(LINES_MEMORY_BYTES + LINES_BEYOND_BYTES)},
    )


def _observed(work: str, contender: str, job: dict[str, Any], threads: int) -> Observation:
    environment = {"RAYON_NUM_THREADS": str(threads), "POLARS_MAX_THREADS": str(threads)}
    answer, _ = in_fresh_process(
        "benchmarks.dedup_work", job | {"work": work, "contender": contender}, environment=environment
    )
    return Observation(**answer)


def _worse_estimates(ours: float, theirs: float) -> str | None:
    if theirs <= MAX_ESTIMATE_RMSE:
        return None
    return f"its estimates are off by {theirs:.3f} (root mean square), ours by {ours:.3f}"


def _worse_clusters(ours: list[float], theirs: list[float]) -> str | None:
    recall, precision = theirs
    if recall >= MIN_RECALL and precision >= MIN_PRECISION:
        return None
    return f"recall {recall:.3f}, precision {precision:.3f}; ours {ours[0]:.3f}, {ours[1]:.3f}"
