"""Pages to text: ours beside resiliparse alone (with FastWARC, where files are read) and trafilatura.

Cases, in pages a second, on one core and on all:
  text-coresN   pages in memory: decode and extract; the promise is 0.9 of resiliparse alone
  warc-coresN   files: read, inflate and parse records, too; ours survives damage, accounts for every record, and parses
                pages in a process that a hostile one may hang or crash; on one core, both processes share it

Before anything is timed, ours must give resiliparse's texts byte for byte; trafilatura extracts something else,
so only the number of its texts is kept. With the environment variable CS336_DATA the pages are real, and each row
says how good the text is: F1 on pages with gold (`cs336.extract.gold`).

Peers are installed into a folder of their own, which only their processes see:
  pip install --target PEERS trafilatura lxml_html_clean

Examples:
  python -m benchmarks extract                        300 pages, in a minute or two
  python -m benchmarks extract --pages 300 1000 2858  growth with the size
  CS336_PEERS=PEERS python -m benchmarks extract --full
"""

from __future__ import annotations

import argparse
import functools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import pages
from benchmarks.growth_plots import draw_growth_of
from benchmarks.measure import OURS, Case, Contender, Observation, in_fresh_process
from benchmarks.pages_work import RESILIPARSE, TRAFILATURA
from cs336 import catalog
from cs336.processes import available_cores

PACKAGES = {
    OURS: ("resiliparse", "fastwarc"),
    RESILIPARSE: ("resiliparse", "fastwarc"),
    TRAFILATURA: ("trafilatura", "fastwarc"),
}
FULL_PAGES = [300, 1_000, 2_858, 10_000]
ONLY_FAST_FROM = 5_000  # pages; trafilatura would take minutes
BUDGET_SECONDS = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --pages, --cache, --peers and --full."""
    add_common_arguments(parser, "300")
    parser.add_argument("--full", action="store_true", help=f"{', '.join(map(str, FULL_PAGES))} pages")


def add_common_arguments(parser: argparse.ArgumentParser, default_pages: str) -> None:
    """What both subjects on pages take."""
    parser.add_argument(
        "--pages", type=int, nargs="+", metavar="N", help=f"sizes of the crawl (default {default_pages})"
    )
    parser.add_argument("--cores", type=int, nargs="+", metavar="N", help="processes (default: 1, and all cores)")
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path(tempfile.gettempdir()) / "cs336-benchmark-pages",
        metavar="FOLDER",
        help="where crawls are kept for the next time (default %(default)s)",
    )
    parser.add_argument(
        "--peers",
        type=Path,
        default=os.environ.get("CS336_PEERS") or None,
        metavar="FOLDER",
        help="where peers were installed by `pip install --target` (default: the variable CS336_PEERS)",
    )


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """Sizes in growing order, one core first."""
    scores: dict[str, dict[str, Any]] = {}
    for num_pages in sorted(options.pages or (FULL_PAGES if options.full else [300])):
        crawl = pages.crawl(options.cache, data_folder(), num_pages)
        for cores in options.cores or sorted({1, available_cores()}):
            names = [OURS, RESILIPARSE, *([TRAFILATURA] if num_pages < ONLY_FAST_FROM else [])]
            for kind, work in (("text", "text"), ("warc", "extract")):
                yield Case(
                    name=f"{kind}-cores{cores}-{crawl.num_pages}",
                    amount=crawl.num_pages,
                    unit="pages/s",
                    contenders=[_contender(name, work, crawl, cores, options.peers, scores) for name in names],
                    difference=_difference,
                    input=crawl.description() | {"cores": cores},
                    budget_seconds=BUDGET_SECONDS,
                )


def finish(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Draw how figures grow with the number of pages, if there were several sizes."""
    cores = available_cores()
    draw_growth_of(
        rows, {f"extract_{kind}": f"{kind}-cores{cores}-" for kind in ("text", "warc")}, "pages", options.results
    )


def data_folder() -> Path | None:
    """The folder of real data, if there is one."""
    return Path(os.environ["CS336_DATA"]) if os.environ.get("CS336_DATA") else None


def environment_with(peers: Path | None, name: str) -> dict[str, str]:
    """Variables of a contender's process: the peers' folder is for peers only."""
    own = str(Path(__file__).parent.parent)
    return {"PYTHONPATH": own if name == OURS or peers is None else f"{own}{os.pathsep}{peers}"}


def _contender(
    name: str, work: str, crawl: pages.Crawl, cores: int, peers: Path | None, scores: dict[str, dict[str, Any]]
) -> Contender:
    environment = environment_with(peers, name)
    job = {"work": work, "contender": name, "workers": cores, "warm_up": str(crawl.warm_up)}
    piece = job | {"files": [str(crawl.warm_up)], "workers": 1}
    whole = job | {"files": [str(path) for path in crawl.files]}

    def prepare():
        if name not in scores:
            scores[name] = _score(name, environment)
        return functools.partial(_run, whole, environment, scores[name] | {"bytes": crawl.num_bytes})

    return Contender(
        name=name,
        prepare=prepare,
        packages=PACKAGES[name],
        check=lambda: _run(piece, environment, {}).result,
    )


def _score(name: str, environment: dict[str, str]) -> dict[str, Any]:
    """F1 by kind of gold, where there is any."""
    gold, archive = (catalog.find_file("web-gold", each) for each in ("gold.jsonl.gz", "pages.tar.xz"))
    if gold is None or archive is None:
        return {}
    job = {"work": "score", "contender": name, "gold": str(gold), "pages": str(archive)}
    return {"gold": in_fresh_process("benchmarks.pages_work", job, environment=environment)[0]}


def _run(job: dict[str, Any], environment: dict[str, str], details: dict[str, Any]) -> Observation:
    answer, _ = in_fresh_process("benchmarks.pages_work", job, environment=environment)
    seconds = answer["seconds"][""]
    if details:
        details = details | answer["details"] | {"megabytes_per_second": details["bytes"] / seconds / 1e6}
    return Observation(
        seconds=answer["seconds"],
        peak_bytes=answer["peak_bytes"],
        result=(job["contender"], sorted(answer["result"])),
        details=details,
    )


def _difference(ours: Any, theirs: Any) -> str | None:
    (_, our_texts), (name, their_texts) = ours, theirs
    if name == RESILIPARSE and our_texts != their_texts:
        return "texts are not the same bytes"
    if len(our_texts) != len(their_texts):
        return f"{len(their_texts)} files, not {len(our_texts)}"
    return None
