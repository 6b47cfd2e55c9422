"""The embedded source: documentation of the installed packages, crawled over HTTP on loopback.

It needs no network and no data set, yet passes through everything a crawl of the web does: HTTP,
robots.txt, redirects, errors, HTML with boilerplate, WARC files.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cs336.crawl.crawler import Politeness, crawl
from cs336.crawl.docs_site import (
    HOST,
    Module,
    Response,
    Site,
    build_site,
    find_modules,
    locked_versions,
    module_response,
    serving,
)
from cs336.crawl.source import CrawlStats, Shard
from cs336.files import replacing
from cs336.processes import map_ordered
from cs336.progress import Progress, silent

_PROJECT = Path(__file__).resolve().parents[2]
_PAGES_PER_TASK = 16  # about 50 ms of work


@dataclass(frozen=True, kw_only=True)
class LocalDocs:
    """Docstrings of the installed, locked packages and of the standard library.

    Attributes:
        sample: fraction of the pages, chosen by a hash of their address; 1.0 is about 60 MB of text.
        num_shards: the pages are spread over this many WARC files by the same hash.
        seed: another sample and another spread.
        lock_file: names the packages; relative to the project's folder.
        date: of every WARC record.
        delay_seconds: between two requests. The site is ours and on this machine, so 0.
    """

    sample: float = 1.0
    num_shards: int = 4
    seed: int = 0
    lock_file: str = "requirements.lock"
    date: str = "2026-01-01T00:00:00Z"
    delay_seconds: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.sample <= 1:
            raise ValueError(f"sample is {self.sample}; give a fraction above 0, up to 1")
        if self.num_shards < 1:
            raise ValueError(f"num_shards is {self.num_shards}; give 1 or more")

    def identity(self) -> Any:
        """Settings and versions.

        Raises:
            UserError: no lock file.
        """
        settings = asdict(self)
        del settings["delay_seconds"]  # decides when, not what
        return {
            "source": "local-docs",
            **settings,
            "python": platform.python_version(),
            "packages": locked_versions(self._lock_path()),
        }

    def shard_identity(self) -> Any:
        """Versions of what the pages are rendered from."""
        return {"date": self.date, "python": platform.python_version(), "packages": locked_versions(self._lock_path())}

    def plan(self, *, progress: Progress = silent) -> list[Shard]:
        """Choose pages and spread them; only addresses and a glance at each chosen file are needed.

        A module without any triple quotes is taken to have no docstring, hence no page. The few
        whose triple quotes turn out to be no docstrings answer 404, the dead links of this site.

        Raises:
            UserError: no lock file.
        """
        shards: list[list[tuple[bytes, str]]] = [[] for _ in range(self.num_shards)]
        site = build_site(find_modules(self._lock_path()))
        candidates = [
            *((address, None) for address in site.indexes),
            *((one.link, one) for one in site.modules.values()),
        ]
        for address, module in progress(candidates, total=len(candidates), unit="modules", label="plan local-docs"):
            digest = hashlib.sha256(f"{self.seed} {address}".encode()).digest()
            if int.from_bytes(digest[:8], "big") < self.sample * 2**64 and (
                module is None or _may_have_docstring(module)
            ):
                shards[int.from_bytes(digest[8:16], "big") % self.num_shards].append((digest, address))
        # In the order of their hashes: a fixed shuffle, so that no stretch of a shard is one package's.
        return [
            Shard(f"docs-{number:05d}", tuple(address for _, address in sorted(chosen)))
            for number, chosen in enumerate(shards)
            if chosen
        ]

    def fetch(self, shard: Shard, folder: Path, *, num_workers: int = 1, progress: Progress = silent) -> CrawlStats:
        """Serve the site on loopback and crawl the shard's pages.

        Pages are rendered ahead on `num_workers` processes, for that is the slow part; the crawl
        itself is one connection. Same packages, same bytes.

        Raises:
            UserError: no lock file; full disk.
        """
        modules = find_modules(self._lock_path())
        site = build_site(modules, ready=dict(_render(build_site(modules), shard, num_workers, progress)))
        name = f"{shard.name}.warc.gz"
        with serving(site) as address, replacing(folder / name) as file:
            return crawl(
                progress(
                    [f"http://{HOST}{path}" for path in shard.items], total=len(shard.items), unit="pages", label=name
                ),
                file,
                name=name,
                politeness=Politeness(delay_seconds=self.delay_seconds),
                date=self.date,
                hosts={HOST: address},
            )

    def _lock_path(self) -> Path:
        return _PROJECT / self.lock_file


def _may_have_docstring(module: Module) -> bool:
    try:
        source = module.path.read_bytes()
    except OSError:
        return False
    return b'"""' in source or b"'''" in source


def _render(site: Site, shard: Shard, num_workers: int, progress: Progress) -> Iterator[tuple[str, Response]]:
    """Answers to the shard's pages by address; what robots.txt closes is not rendered."""
    pages = [site.links.get(path, path) for path in shard.items]
    pages = [page for page in pages if page in site.modules and not page.startswith("/tests/")]
    jobs = [(site.modules[page], site.siblings(page)) for page in pages]
    answers = map_ordered(_respond, jobs, num_workers=num_workers, per_task=_PAGES_PER_TASK)
    yield from zip(pages, progress(answers, total=len(pages), unit="pages", label=f"render {shard.name}"), strict=True)


def _respond(job: tuple[Module, tuple[tuple[str, str], ...]]) -> Response:
    return module_response(*job)
