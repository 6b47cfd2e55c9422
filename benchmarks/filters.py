"""WARC or WET files to kept documents: ours beside datatrove, as it comes and with our extractor.

Stages, for all contenders: extraction (not of WET), language (lid.176, confidence 0.65), C4's line rules, Gopher's
four rules of the handout, PII, and writing. datatrove stops at the first filter that drops a document; ours measures
all of them on every document, and accounts for every record.

Cases, in records a second, on one core and on all:
  warc-coresN   with extraction: datatrove with trafilatura, its default, and with resiliparse, which is ours
  wet-coresN    without; the promise is 1,500 records a second and core

Each row says which share of the time was extraction, how many documents were kept, and the overlap (Jaccard) of
those that datatrove kept with ours, which is looked at before anything is timed. They differ a little: trafilatura
extracts other text, and spaCy splits words and sentences otherwise.

Language: where CS336_DATA has no lid.176, ours takes resiliparse's detector, and datatrove is left out. A case
`...-rank` has that detector anyway, ours alone.

Peers are installed into a folder of their own, which only their processes see:
  pip install --target PEERS datatrove trafilatura lxml_html_clean spacy warcio faust-cchardet \\
      python-magic fasteners orjson resiliparse==2.0.1 fasttext-community==0.11.9

Examples:
  python -m benchmarks filters                        200 pages, in some minutes
  CS336_PEERS=PEERS python -m benchmarks filters --full
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from benchmarks import pages
from benchmarks.extract import add_common_arguments, data_folder, environment_with
from benchmarks.growth_plots import draw_growth_of
from benchmarks.measure import OURS, Case, Contender, Observation, in_fresh_process
from benchmarks.pages_work import DATATROVE, DATATROVE_RESILIPARSE
from cs336 import catalog
from cs336.processes import available_cores

PACKAGES = {
    OURS: ("resiliparse", "polars", "numba", "fasttext-community"),
    DATATROVE: ("datatrove", "trafilatura", "spacy"),
    DATATROVE_RESILIPARSE: ("datatrove", "resiliparse", "spacy"),
}
FULL_PAGES = [300, 1_000, 2_858]
GROWTH_PAGES = {"warc": [10_000], "wet": [10_000, 100_000, 1_000_000]}  # ours alone, on all cores, once
WET_RECORDS_PER_SECOND = 1_500.0  # and core, without a quality model: what the project promises of itself
LEAST_OVERLAP = {DATATROVE: 0.3, DATATROVE_RESILIPARSE: 0.7}  # below it, the work is not the same
BUDGET_SECONDS, GROWTH_SECONDS = 60.0, 1_800.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --pages, --cores, --cache, --peers, --cases and --full."""
    add_common_arguments(parser, "200")
    parser.add_argument("--cases", nargs="+", choices=("warc", "wet"), default=("warc", "wet"), help="(default: both)")
    parser.add_argument(
        "--full", action="store_true", help=f"{', '.join(map(str, FULL_PAGES))} pages; ours to 1,000,000"
    )


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """WARC before WET, sizes in growing order, one core first."""
    lid = catalog.find("lid176")
    for kind in options.cases:
        for num_pages in sorted(options.pages or (FULL_PAGES if options.full else [200])):
            crawl = pages.crawl(options.cache, data_folder(), num_pages, wet=kind == "wet")
            for cores in options.cores or sorted({1, available_cores()}):
                peers = [DATATROVE, DATATROVE_RESILIPARSE] if kind == "warc" else [DATATROVE]
                yield _case(f"{kind}-cores{cores}-{crawl.num_pages}", crawl, cores, [OURS, *peers], lid, options)
                if lid is not None:
                    yield _case(f"{kind}-cores{cores}-{crawl.num_pages}-rank", crawl, cores, [OURS], None, options)
        for num_pages in GROWTH_PAGES[kind] if options.full else []:
            crawl, cores = pages.crawl(options.cache, data_folder(), num_pages, wet=kind == "wet"), available_cores()
            case = _case(f"{kind}-cores{cores}-{crawl.num_pages}", crawl, cores, [OURS], lid, options)
            yield replace(case, repeats=1, budget_seconds=GROWTH_SECONDS)


def finish(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Draw how figures grow with the number of pages, if there were several sizes."""
    cores = available_cores()
    draw_growth_of(
        rows, {f"filters_{kind}": f"{kind}-cores{cores}-" for kind in ("warc", "wet")}, "pages", options.results
    )


def _case(name: str, crawl: pages.Crawl, cores: int, contenders: list[str], lid: Any, options: Any) -> Case:
    is_wet = name.startswith("wet")
    kept: dict[str, set[str]] = {}
    job = {
        "work": "filter",
        "workers": cores,
        "warm_up": str(crawl.warm_up),
        "files": [str(path) for path in crawl.files],
        "lid": str(lid) if lid else None,
        "wet": is_wet,
    }
    return Case(
        name=name,
        amount=crawl.num_pages,
        unit="records/s",
        contenders=[
            Contender(
                name=each,
                prepare=functools.partial(
                    _prepare, job | {"contender": each}, environment_with(options.peers, each), kept
                ),
                packages=PACKAGES[each],
                # Compared on the whole input, as the overlap of a few documents says nothing.
                check=None if len(contenders) > 1 else lambda: None,
            )
            for each in contenders
        ],
        difference=_difference,
        input=crawl.description() | {"cores": cores, "language": "lid.176" if lid else "resiliparse"},
        budget_seconds=BUDGET_SECONDS,
        limits={"seconds": crawl.num_pages / WET_RECORDS_PER_SECOND / cores} if is_wet else {},
    )


def _prepare(job: dict[str, Any], environment: dict[str, str], kept: dict[str, set[str]]) -> Any:
    return functools.partial(_run, job, environment, kept)


def _run(job: dict[str, Any], environment: dict[str, str], kept: dict[str, set[str]]) -> Observation:
    answer, _ = in_fresh_process("benchmarks.pages_work", job, environment=environment)
    ids = set(answer["result"])
    kept.setdefault(job["contender"], ids)
    details = {"num_kept": len(answer["result"])} | answer["details"]
    if job["contender"] != OURS and OURS in kept:
        details["overlap_with_ours"] = overlap(kept[OURS], ids)
    return Observation(
        seconds=answer["seconds"],
        peak_bytes=answer["peak_bytes"],
        result=(job["contender"], ids),
        details=details,
    )


def overlap(ours: set[str], theirs: set[str]) -> float:
    """Jaccard similarity of two sets of ids; 1 for two empty ones."""
    return len(ours & theirs) / len(ours | theirs) if ours or theirs else 1.0


def _difference(ours: Any, theirs: Any) -> str | None:
    # Of the check before the timed runs a whole observation, of those its result.
    (_, our_ids), (name, their_ids) = (
        each.result if isinstance(each, Observation) else each for each in (ours, theirs)
    )
    shared = overlap(our_ids, their_ids)
    if shared < LEAST_OVERLAP.get(name, 0.0):
        return f"of all documents that either kept, both kept {shared:.0%} only ({len(our_ids)} and {len(their_ids)})"
    return None
