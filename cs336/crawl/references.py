"""Pages that a reference list names: sample addresses, fetch them politely and in parallel, to WARC files."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from urllib.parse import urlsplit

from cs336.crawl.crawler import Politeness, crawl
from cs336.crawl.source import CrawlStats
from cs336.files import name_full_disk, replacing

# The handout's `wget --timeout=5`, one attempt: a list of old addresses has many dead ones. A second
# between two pages of one host; one that wants more than ten is left alone, as it would hold up its file.
POLITE = Politeness(timeout_seconds=5.0, max_page_seconds=5.0, max_attempts=1, delay_seconds=1.0, max_wait_seconds=10.0)


def sample_urls(urls: Iterable[str], count: int, *, seed: int = 0) -> list[str]:
    """So many distinct http(s) addresses, drawn at random, in the order of their seeded hashes.

    The draw does not depend on the list's order; memory on `count` alone, so that a list of 43 M
    passes through.

    Raises:
        ValueError: count below 1.
    """
    if count < 1:
        raise ValueError(f"cannot draw {count} addresses; give at least 1")
    key = seed.to_bytes(8, "little", signed=True)
    heap: list[tuple[int, str]] = []  # of negated hashes: the largest leaves first
    chosen: set[str] = set()
    for url in urls:
        if not url.startswith(("http://", "https://")) or url in chosen:
            continue
        digest = blake2b(url.encode(errors="replace"), digest_size=8, key=key).digest()
        item = -int.from_bytes(digest, "little"), url
        if len(heap) < count:
            heapq.heappush(heap, item)
        elif item > heap[0]:
            chosen.remove(heapq.heappushpop(heap, item)[1])
        else:
            continue
        chosen.add(url)
    return [url for _, url in sorted(heap, reverse=True)]


def fetch_pages(
    urls: Iterable[str],
    folder: Path,
    *,
    date: str,
    num_files: int = 16,
    politeness: Politeness = POLITE,
    hosts: Mapping[str, tuple[str, int]] | None = None,
) -> CrawlStats:
    """Fetch pages into `references-00.warc.gz` and so on, all files at once.

    A host's pages go into one file, one after another, so that no host is asked twice at a time; its
    robots.txt is obeyed. What cannot be fetched is counted and never raised.

    Args:
        date: written into every record.
        num_files: as many connections are open at once.
        hosts: where to connect for a host, instead of asking DNS.

    Raises:
        ValueError: num_files below 1.
    """
    if num_files < 1:
        raise ValueError(f"cannot fetch into {num_files} files; give at least 1")
    parts: list[list[str]] = [[] for _ in range(num_files)]
    for url in urls:
        digest = blake2b(_host(url).encode(errors="replace"), digest_size=8).digest()
        parts[int.from_bytes(digest, "little") % num_files].append(url)
    folder.mkdir(parents=True, exist_ok=True)

    def fetch(number: int) -> CrawlStats:
        path = folder / f"references-{number:02d}.warc.gz"
        with name_full_disk(path), replacing(path) as file:
            return crawl(parts[number], file, name=path.name, politeness=politeness, date=date, hosts=hosts)

    total = CrawlStats()
    with ThreadPoolExecutor(num_files) as threads:
        for stats in threads.map(fetch, range(num_files)):
            total.num_records.update(stats.num_records)
            total.num_fetches.update(stats.num_fetches)
            total.num_bytes += stats.num_bytes
            total.fetch_seconds = max(total.fetch_seconds, stats.fetch_seconds)
    return total


def _host(url: str) -> str:
    try:
        return urlsplit(url).netloc.lower()
    except ValueError:  # such as an unclosed bracket; the crawler counts it
        return ""
