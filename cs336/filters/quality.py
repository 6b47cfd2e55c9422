"""Quality: how much a page looks like the reference pages. Train the classifier, score with it.

The reference class is called wiki and the crawl cc, after the handout: pages that Wikipedia cites
against random pages. Both classes have to come through the same extractor, or the model learns the
extractor.
"""

from __future__ import annotations

import gzip
import heapq
import random
import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from cs336.files import UserError, name_full_disk, replacing
from cs336.filters.classifier import PREFIX, Classifier, clamp

REFERENCE = "wiki"
CRAWL = "cc"


@dataclass(frozen=True, kw_only=True)
class QualityConfig:
    """Which pages are the reference, and how the classifier is trained; filters.pipeline decides with it.

    Attributes:
        reference_pattern: regular expression searched in the page's address; "" names none.
        reference_list: catalogue entry with reference addresses, matched by host; "" is none.
        epochs, lr: fastText's own defaults are 5 and 0.1; on a few thousand documents more epochs help.
        dim, bucket: 16 x 100,000 floats keep the file at a few MB (fastText's defaults of 100 x
            2,000,000 make 800 MB).
        word_ngrams: bigrams, as in the handout's classifiers.
        max_documents_per_class: sampled by hash beyond it.
        min_documents_per_class: below it there is no model, and the filter is off.
        seed: fixes the sample, the split and the training.
    """

    reference_pattern: str = ""
    reference_list: str = ""
    epochs: int = 5
    lr: float = 0.1
    dim: int = 16
    word_ngrams: int = 2
    bucket: int = 100_000
    max_documents_per_class: int = 10_000
    min_documents_per_class: int = 100
    seed: int = 0


class Threshold(NamedTuple):
    """Held-out figures when pages with at least this score count as reference pages.

    A precision of None: no page reached the threshold.
    """

    threshold: float
    precision: float | None
    recall: float


class QualityReport(NamedTuple):
    """What training did.

    Attributes:
        state: "on: fastText", or "off, no model: ..." with the reason; then there is no file.
        num_positives, num_negatives: documents used of each class, training and held-out together.
        num_held_out: of those, how many were kept for measuring.
        thresholds: precision and recall on the held-out documents.
    """

    state: str
    num_positives: int
    num_negatives: int
    num_held_out: int
    thresholds: tuple[Threshold, ...]


def train_quality(
    positives: Iterable[str], negatives: Iterable[str], path: Path, config: QualityConfig
) -> QualityReport:
    """Train the classifier on equally many documents of both classes and write it to `path`.

    One document in ten is held out for the report. One thread and a fixed seed: the same documents, in
    any order, give the same file, byte for byte. With too few documents no file is written.
    """
    rows_by_class = [_sample(texts, config) for texts in (positives, negatives)]
    size = min(map(len, rows_by_class))
    if size < max(2, config.min_documents_per_class):
        num_positives, num_negatives = map(len, rows_by_class)
        needed = f"{config.min_documents_per_class} of each needed"
        reason = f"{num_positives} reference and {num_negatives} crawl documents, {needed}"
        return QualityReport(f"off, no model: {reason}", num_positives, num_negatives, 0, ())
    # Samples come in the order of their hashes, so any prefix is a random sample too.
    rows = [
        (label, text) for label, sample in zip((REFERENCE, CRAWL), rows_by_class, strict=True) for text in sample[:size]
    ]
    random.Random(config.seed).shuffle(rows)
    num_held_out = max(1, len(rows) // 10)
    held_out, training = rows[:num_held_out], rows[num_held_out:]
    path.parent.mkdir(parents=True, exist_ok=True)
    with name_full_disk(path), tempfile.TemporaryDirectory(dir=path.parent, prefix=".quality-") as folder:
        trained = _train(training, Path(folder), config)
        model = QualityModel(trained)  # what counts is the file: a truncated one fails here
        thresholds = _thresholds([(label, model.score_normalized(text)) for label, text in held_out])
        with replacing(path) as file:
            file.write(trained.read_bytes())
    return QualityReport("on: fastText", size, size, num_held_out, thresholds)


class QualityModel:
    """The trained classifier, or none.

    Raises:
        UserError: the file is missing or not a fastText model with the two classes.
    """

    def __init__(self, path: Path | None) -> None:
        self._classifier = None if path is None else Classifier(path)
        if self._classifier is not None and self._classifier.labels != (CRAWL, REFERENCE):
            raise UserError(
                f"{path}: its labels are {self._classifier.labels}, not ('cc', 'wiki'); it is another model"
            )

    def score(self, text: str) -> float | None:
        """Probability of the reference class, in (0, 1]; None without a model."""
        return None if self._classifier is None else self.score_normalized(normalize(text))

    def score_normalized(self, line: str) -> float:
        """`score` of a text that went through `normalize` already."""
        assert self._classifier is not None
        return self._classifier.probability(line, REFERENCE)

    def classify(self, text: str) -> tuple[str, float]:
        """("wiki" or "cc", confidence in (0, 1]).

        Raises:
            ValueError: there is no model.
        """
        score = self.score(text)
        if score is None:
            raise ValueError("no quality model is loaded; train one first")
        return (REFERENCE, score) if score >= 0.5 else (CRAWL, clamp(1.0 - score))


_TOKEN = re.compile(r"[^\W_]+|[^\w\s]|_")
_MAX_CHARACTERS = 20_000  # the beginning tells a page's kind; keeps the rare huge page from taking seconds


def normalize(text: str) -> str:
    """The form in which both training and scoring see a text: lower case, one line, marks set apart.

    Underscores are marks too, so no text can hold fastText's own `__label__` words.
    """
    line = " ".join(_TOKEN.findall(text[:_MAX_CHARACTERS].lower()))
    return line.encode(errors="replace").decode()


def is_reference(url: str, config: QualityConfig, hosts: frozenset[str] = frozenset()) -> bool:
    """Is this page's address one of the reference, by pattern or by host (see `hosts_of`)?"""
    if config.reference_pattern and re.search(config.reference_pattern, url):
        return True
    return bool(hosts) and _host(url) in hosts


def hosts_of(urls: Iterable[str]) -> frozenset[str]:
    """The hosts of addresses, in lower case and without a leading "www."."""
    return frozenset(host for url in urls if (host := _host(url)))


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


def _host(url: str) -> str:
    try:
        host = urlsplit(url.strip()).hostname or ""
    except ValueError:  # such as an unclosed bracket
        return ""
    return host.removeprefix("www.")


def _sample(texts: Iterable[str], config: QualityConfig) -> list[str]:
    """Up to the configured number of distinct normalized texts, with the smallest seeded hashes."""
    chosen: dict[int, str] = {}
    heap: list[int] = []  # of negated hashes: the largest hash leaves first
    for text in texts:
        line = normalize(text)
        digest = blake2b(line.encode(), digest_size=8, key=config.seed.to_bytes(8, "little", signed=True)).digest()
        key = int.from_bytes(digest, "little")
        if not line or key in chosen:
            continue
        if len(heap) < config.max_documents_per_class:
            heapq.heappush(heap, -key)
        elif key < -heap[0]:
            del chosen[-heapq.heappushpop(heap, -key)]
        else:
            continue
        chosen[key] = line
    return [chosen[key] for key in sorted(chosen)]


def _train(rows: list[tuple[str, str]], folder: Path, config: QualityConfig) -> Path:
    import fasttext

    text_path, model_path = folder / "train.txt", folder / "model.bin"
    text_path.write_text("".join(f"{PREFIX}{label} {line}\n" for label, line in rows), encoding="utf-8")
    model = fasttext.train_supervised(
        input=str(text_path),
        epoch=config.epochs,
        lr=config.lr,
        dim=config.dim,
        wordNgrams=config.word_ngrams,
        bucket=config.bucket,
        minCount=3,  # a word of one or two documents says nothing of others, and they are most of the file
        seed=config.seed,
        thread=1,  # several threads update the weights in an order that no seed fixes
        verbose=0,
    )
    model.save_model(str(model_path))
    return model_path


def _thresholds(scored: list[tuple[str, float]]) -> tuple[Threshold, ...]:
    num_positives = sum(label == REFERENCE for label, _ in scored)
    rows = []
    for tenths in range(1, 10):
        taken = [label for label, score in scored if score >= tenths / 10]
        right = taken.count(REFERENCE)
        rows.append(
            Threshold(
                tenths / 10, right / len(taken) if taken else None, right / num_positives if num_positives else 0.0
            )
        )
    return tuple(rows)
