"""Quality: how much a page looks like the reference pages. Train the classifier, score with it.

The reference class is called wiki and the crawl cc, after the handout: pages that Wikipedia cites
against random pages. Both classes have to come through the same extractor, or the model learns the
extractor.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from cs336.files import UserError
from cs336.filters.classifier import clamp
from cs336.filters.trained import Report, TrainedConfig, TrainedModel, train

REFERENCE = "wiki"
CRAWL = "cc"


@dataclass(frozen=True, kw_only=True)
class QualityConfig(TrainedConfig):
    """Which pages are the reference; the rest says how the classifier is trained. filters.pipeline decides with it.

    Attributes:
        reference_pattern: regular expression searched in the page's address; "" names none.
        reference_list: catalogue entry with reference addresses; "" is none.
        num_reference_pages: so many addresses of the list are drawn and fetched, and what is left of
            them after cleaning are the positives: the handout's way, which needs the network for an
            hour or so. 0 fetches none; then pages of the crawl on a listed host are the positives.
    """

    reference_pattern: str = ""
    reference_list: str = ""
    num_reference_pages: int = 0


def train_quality(
    positives: Iterable[tuple[str, str]], negatives: Iterable[tuple[str, str]], path: Path, config: QualityConfig
) -> Report:
    """Train the classifier on (site, text) of reference and of crawl pages; see `cs336.filters.trained.train`."""
    return train(positives, negatives, path, config, positive=REFERENCE, negative=CRAWL)


class QualityModel:
    """The trained classifier, or none.

    Raises:
        UserError: the file is missing or not a fastText model with the two classes.
    """

    def __init__(self, path: Path | None) -> None:
        self._model = None if path is None else TrainedModel(path, positive=REFERENCE, negative=CRAWL)

    def score(self, text: str) -> float | None:
        """Probability of the reference class, in (0, 1]; None without a model."""
        return None if self._model is None else self._model.probability(text)

    def classify(self, text: str) -> tuple[str, float]:
        """("wiki" or "cc", confidence in (0, 1]).

        Raises:
            ValueError: there is no model.
        """
        score = self.score(text)
        if score is None:
            raise ValueError("no quality model is loaded; train one first")
        return (REFERENCE, score) if score >= 0.5 else (CRAWL, clamp(1.0 - score))


def is_reference(url: str, config: QualityConfig, hosts: frozenset[str] = frozenset()) -> bool:
    """Is this page's address one of the reference, by pattern or by host (see `hosts_of`)?"""
    if config.reference_pattern and re.search(config.reference_pattern, url):
        return True
    return bool(hosts) and host_of(url) in hosts


def hosts_of(urls: Iterable[str]) -> frozenset[str]:
    """The hosts of addresses, in lower case and without a leading "www."."""
    return frozenset(host for url in urls if (host := host_of(url)))


def read_url_list(path: Path) -> Iterator[str]:
    """Addresses from a text file, one a line, gzipped or not.

    Raises:
        UserError: the file is missing.
    """
    if not path.is_file():
        raise UserError(f"{path}: not found; fetch the list, or leave reference_list empty")
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8", errors="replace") as lines:
        yield from (line.strip() for line in lines if line.strip())


def host_of(url: str) -> str:
    """The host of an address, in lower case and without a leading "www."; "" where there is none."""
    try:
        host = urlsplit(url.strip()).hostname or ""
    except ValueError:  # such as an unclosed bracket
        return ""
    return host.removeprefix("www.")
