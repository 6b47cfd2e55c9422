"""What contenders do with a crawl in processes of their own: `python -m benchmarks.pages_work`, a job on its input.

A job is a JSON object: the work ("text", "extract", "score" or "filter"), the contender, files, `workers`. Every worker
first does the work on a few pages, which loads packages and models, compiles and opens; then all start at once,
each on its share of the files. The answer, the last line of standard output, has the seconds from there to the end
of the last one, the peak memory of the largest process, and what is to be compared.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import importlib.metadata
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.measure import OURS, resident_bytes
from cs336.isolation import used_cpu_seconds

RESILIPARSE, TRAFILATURA = "resiliparse", "trafilatura"
DATATROVE, DATATROVE_RESILIPARSE = "datatrove", "datatrove+resiliparse"
MIN_WORDS, MIN_SENTENCES = 5, 3  # C4's, for all contenders
MIN_CONFIDENCE = 0.65

Share = dict[str, Any]  # what one worker has to tell: see `_extract` and `_filter`


def main() -> None:
    """Do one job."""
    job = json.load(sys.stdin)
    try:
        answer = _score(job) if job["work"] == "score" else _in_parallel(job)
    except ImportError as error:
        answer = {"unavailable": f"not installed: {error}"}
    print("\n" + json.dumps(answer))


def _in_parallel(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds from the moment when all workers are warm to the end of the last, and what they found, merged."""
    workers = job["workers"]
    if workers == 1:
        _stay_on_one_core()  # with all that a contender starts
        run = _runner(job)
        run([job["warm_up"]])
        start = time.perf_counter()
        shares = [_told(run, job["files"])]
        seconds = time.perf_counter() - start
    else:
        _runner(job)  # what is not installed shows here
        spawn = multiprocessing.get_context("spawn")
        barrier, queue = spawn.Barrier(workers + 1), spawn.Queue()
        parts = [job | {"files": job["files"][number::workers]} for number in range(workers)]
        processes = [spawn.Process(target=_work, args=(part, barrier, queue)) for part in parts]
        for process in processes:
            process.start()
        barrier.wait(timeout=120)
        start = time.perf_counter()
        shares = [queue.get(timeout=1_800) for _ in processes]
        seconds = time.perf_counter() - start
        for process in processes:
            process.join()
    return {
        "seconds": {"": seconds},
        "peak_bytes": max(share["peak_bytes"] or 0 for share in shares) or None,
        "result": [item for share in shares for item in share["result"]],
        "details": {"cpu_seconds": sum(share["cpu_seconds"] for share in shares), "peer_versions": _versions()}
        | ({"extraction_share": _share_of(shares, "extraction_seconds")} if job["work"] == "filter" else {}),
    }


def _stay_on_one_core() -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def _versions() -> dict[str, str]:
    """Of the peers as this process sees them: the one that starts it may not."""
    found = {}
    for name in ("trafilatura", "datatrove", "spacy", "resiliparse", "fastwarc"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _share_of(shares: list[Share], key: str) -> float | None:
    total = sum(share["seconds"] for share in shares)
    return sum(share[key] for share in shares) / total if total else None


def _work(job: dict[str, Any], barrier: Any, queue: Any) -> None:
    run = _runner(job)
    run([job["warm_up"]])
    barrier.wait(timeout=120)
    queue.put(_told(run, job["files"]))


def _told(run: Callable[[list[str]], Share], files: list[str]) -> Share:
    """A worker's share with its processor time, that of the processes it started included, and its peak memory.

    On a machine that others use too, processor time says more than the clock.
    """
    before = used_cpu_seconds()
    share = run(files)
    return share | {"cpu_seconds": used_cpu_seconds() - before, "peak_bytes": resident_bytes()}


def _runner(job: dict[str, Any]) -> Callable[[list[str]], Share]:
    if job["work"] == "extract":
        return functools.partial(_extract, _text_reader(job["contender"]))
    if job["work"] == "text":
        return functools.partial(_extract, _text_maker(job))
    if job["contender"] == OURS:
        return functools.partial(_filter, job)
    return _datatrove_runner(job)


# ---- text of WARC files -------------------------------------------------------------------------------


def _extract(texts: Callable[[str], Iterable[str]], files: list[str]) -> Share:
    """Number of texts that are not empty, and a checksum of them, file by file."""
    result = []
    for path in files:
        digest, count = hashlib.sha256(), 0
        for text in texts(path):
            if text.strip():
                digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
                count += 1
        result.append([Path(path).name, count, digest.hexdigest()])
    return {"result": result}


def _text_reader(contender: str) -> Callable[[str], Iterable[str]]:
    if contender == OURS:
        from cs336.extract.shard import ExtractConfig, extract_shard

        return lambda path: (document.text for document in extract_shard(Path(path), ExtractConfig())[0])
    if contender == RESILIPARSE:
        from resiliparse.extract.html2text import extract_plain_text

        return lambda path: (extract_plain_text(_decoded(page)) for page in _pages(path))
    from trafilatura import extract

    return lambda path: (extract(_decoded(page), include_comments=False) or "" for page in _pages(path))


def _text_maker(job: dict[str, Any]) -> Callable[[str], Iterable[str]]:
    """As `_text_reader`, of pages that are in memory already."""
    pages = {path: list(_pages(path)) for path in {*job["files"], job["warm_up"]}}
    if job["contender"] == OURS:
        from cs336.extract.html import extract_text

        return lambda path: map(extract_text, pages[path])
    if job["contender"] == RESILIPARSE:
        from resiliparse.extract.html2text import extract_plain_text

        return lambda path: (extract_plain_text(_decoded(page)) for page in pages[path])
    from trafilatura import extract

    return lambda path: (extract(_decoded(page), include_comments=False) or "" for page in pages[path])


def _pages(path: str) -> Iterator[bytes]:
    """Bodies of HTTP responses as FastWARC alone reads them."""
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    with open(path, "rb") as file:
        for record in ArchiveIterator(file, record_types=WarcRecordType.response, parse_http=True):
            yield record.reader.read()


def _decoded(page: bytes) -> str:
    from resiliparse.parse.encoding import detect_encoding

    try:
        return page.decode()
    except UnicodeDecodeError:
        return page.decode(detect_encoding(page) or "utf-8", "replace")


def _score(job: dict[str, Any]) -> dict[str, Any]:
    """F1 of one extractor on each kind of gold."""
    from cs336.extract.gold import read_gold, score_extractors

    name = {OURS: "default", RESILIPARSE: "default"}.get(job["contender"], job["contender"])
    scores = score_extractors(read_gold(Path(job["gold"]), Path(job["pages"])), [name])[name]
    return {
        kind: {"f1": score.f1, "precision": score.precision, "recall": score.recall} for kind, score in scores.items()
    }


# ---- WARC or WET files to kept documents --------------------------------------------------------------


def _filter(job: dict[str, Any], files: list[str]) -> Share:
    """Our pipeline over files: ids of the kept documents, seconds in all and of extraction."""
    from cs336.documents import write_documents
    from cs336.extract.shard import ExtractConfig, extract_shard
    from cs336.filters.c4 import C4Config
    from cs336.filters.heuristics import GopherConfig
    from cs336.filters.pipeline import FilterConfig, FilterModels, apply, decide, measure_documents

    c4 = C4Config(enabled=True, min_words_per_line=MIN_WORDS, min_sentences=MIN_SENTENCES)
    lid = Path(job["lid"]) if job["lid"] else None
    models = FilterModels(filters=("language", "c4", "gopher", "pii"), language=lid, c4=c4)
    config = FilterConfig(min_language_confidence=MIN_CONFIDENCE, gopher=GopherConfig(marks_are_words=True))
    share: Share = {"result": [], "seconds": 0.0, "extraction_seconds": 0.0}
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for path in files:
            begun = time.perf_counter()
            documents, _ = extract_shard(Path(path), ExtractConfig())
            share["extraction_seconds"] += time.perf_counter() - begun
            decisions = decide(measure_documents(documents, models)[0], config)
            kept = list(apply(documents, decisions, config, c4=c4))
            write_documents(Path(folder), kept)
            share["result"] += [document.id for document in kept]
    share["seconds"] = time.perf_counter() - start
    return share


def _datatrove_runner(job: dict[str, Any]) -> Callable[[list[str]], Share]:
    """datatrove's pipeline of the same stages, in the same order and with the same bounds.

    The language model is a local file, as its own would be downloaded; its check for the name of fastText's
    distribution is skipped, as fasttext-community holds the same code.
    """
    from loguru import logger

    logger.remove()
    import datatrove.utils.lid
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.extractors import Trafilatura
    from datatrove.pipeline.extractors.base import BaseExtractor
    from datatrove.pipeline.filters import C4QualityFilter, GopherQualityFilter, LanguageFilter
    from datatrove.pipeline.formatters import PIIFormatter
    from datatrove.pipeline.readers import WarcReader
    from datatrove.pipeline.writers import JsonlWriter

    class Resiliparse(BaseExtractor):
        name = "resiliparse"

        def __init__(self, timeout: float) -> None:
            super().__init__(timeout)

        def extract(self, text: str) -> str:
            from resiliparse.extract.html2text import extract_plain_text

            return extract_plain_text(text)

    if not job["lid"]:
        raise ImportError("the model lid.176, which datatrove's language filter needs; set CS336_DATA")
    LanguageFilter._requires_dependencies = []
    datatrove.utils.lid.check_required_dependencies = lambda *arguments: None
    datatrove.utils.lid.cached_asset_path_or_download = lambda url, **options: job["lid"]

    # Its extractors fork a process each; where we were spawned, theirs would be, too, and fail.
    multiprocessing.set_start_method("fork", force=True)
    extractor = Resiliparse if job["contender"] == DATATROVE_RESILIPARSE else Trafilatura
    is_wet = job["wet"]

    def run(files: list[str]) -> Share:
        folder = Path(tempfile.mkdtemp())
        paths = folder / "paths.txt"
        names = []
        for number, path in enumerate(files):  # a path may come several times
            names.append(f"{number:06}-{Path(path).name}")
            (folder / "in").mkdir(exist_ok=True)
            os.symlink(path, folder / "in" / names[-1])
        paths.write_text("".join(f"{name}\n" for name in names))
        steps = [
            WarcReader(str(folder / "in"), paths_file=str(paths)),
            *([] if is_wet else [extractor(timeout=10)]),
            LanguageFilter("en", language_threshold=MIN_CONFIDENCE),
            C4QualityFilter(min_num_sentences=MIN_SENTENCES, min_words_per_line=MIN_WORDS),
            # The four rules that are ours, too.
            GopherQualityFilter(max_symbol_word_ratio=None, max_bullet_lines_ratio=None, min_stop_words=None),
            PIIFormatter(),
            JsonlWriter(str(folder / "out")),
        ]
        executor = LocalPipelineExecutor(steps, tasks=1, workers=1, logging_dir=str(folder / "logs"))
        start = time.perf_counter()
        with contextlib.redirect_stdout(sys.stderr):
            stats = executor.run()
        seconds = time.perf_counter() - start
        kept = []
        for path in (folder / "out").glob("*.jsonl.gz"):
            with gzip.open(path, "rt", encoding="utf-8") as lines:
                kept += [json.loads(line)["id"] for line in lines]
        shutil.rmtree(folder)
        extraction = sum(each.time_stats.total for each in stats.stats if "EXTRAC" in each.name)
        return {"result": kept, "seconds": seconds, "extraction_seconds": extraction}

    return run


if __name__ == "__main__":
    main()
