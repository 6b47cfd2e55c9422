"""Two-class fastText models that are trained here: split by site, balanced, quantised, calibrated.

The quality and the toxicity classifier are both made this way. A model is two files: what fastText
writes, and beside it, in JSON, the calibration that turns its scores into probabilities.
"""

from __future__ import annotations

import heapq
import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from cs336.files import UserError, name_full_disk, read_json, replacing, write_json
from cs336.filters.classifier import PREFIX, Classifier
from cs336.filters.curves import (
    Calibration,
    Scored,
    Threshold,
    average_precision,
    calibration_error,
    fit_calibration,
    thresholds,
)

OFF = "off, no model"
_TENTHS = tuple(tenths / 10 for tenths in range(1, 10))
_MIN_SITES = 20  # of each class; with fewer, one site would be most of a part


@dataclass(frozen=True, kw_only=True)
class TrainedConfig:
    """How a classifier is trained.

    Attributes:
        epochs, lr: fastText's own defaults are 5 and 0.1; on a few thousand documents more epochs help.
        dim, bucket: 16 x 100,000 floats keep the file at a few MB (fastText's defaults of 100 x
            2,000,000 make 800 MB).
        word_ngrams: bigrams, as in the handout's classifiers.
        quantize: store each pair of weights as one byte: a quarter of the size or less.
        max_documents_per_class: sampled by hash beyond it.
        min_documents_per_class: below it there is no model, and the filter is off.
        held_out: share of the sites that are kept for measuring, and as many again for calibrating.
        seed: fixes the sample, the split and the training.
    """

    epochs: int = 5
    lr: float = 0.1
    dim: int = 16
    word_ngrams: int = 2
    bucket: int = 100_000
    quantize: bool = True
    max_documents_per_class: int = 10_000
    min_documents_per_class: int = 100
    held_out: float = 0.15
    seed: int = 0


class Report(NamedTuple):
    """What training did.

    Attributes:
        state: "on: fastText", or "off, no model: ..." with the reason; then there is no file.
        num_positives, num_negatives: documents used of each class, in all parts together.
        num_calibration, num_held_out: of those, how many were kept for calibrating and for measuring.
        split_by: "site", or "document" where there are too few sites.
        thresholds: precision and recall on the held-out documents, by calibrated score.
        average_precision: area under that curve; None without held-out positives.
        calibration_error: of the held-out scores, before and after calibrating.
        held_out: (label, calibrated score) of each held-out document, for plots.
    """

    state: str
    num_positives: int = 0
    num_negatives: int = 0
    num_calibration: int = 0
    num_held_out: int = 0
    split_by: str = ""
    thresholds: tuple[Threshold, ...] = ()
    average_precision: float | None = None
    calibration_error: tuple[float | None, float | None] = (None, None)
    held_out: tuple[Scored, ...] = ()


class TrainedModel:
    """A model that `train` made.

    Raises:
        UserError: a file is missing, or is no model with these two classes.
    """

    def __init__(self, path: Path, *, positive: str, negative: str) -> None:
        self._classifier = Classifier(path)
        self._positive = positive
        if self._classifier.labels != tuple(sorted((positive, negative))):
            raise UserError(
                f"{path}: its labels are {self._classifier.labels}, not {(positive, negative)}; it is another model"
            )
        beside = calibration_file(path)
        self._calibration = Calibration(**read_json(beside)) if beside.exists() else Calibration()

    def probability(self, text: str) -> float:
        """Calibrated probability of the positive class, in (0, 1)."""
        return self._calibration.apply(self.raw_score(normalize(text)))

    def raw_score(self, line: str) -> float:
        """fastText's own score of a text that went through `normalize` already."""
        return self._classifier.probability(line, self._positive)


def calibration_file(model: Path) -> Path:
    """Where the calibration of a model lies: beside it."""
    return model.with_name(model.name + ".calibration.json")


def train(
    positives: Iterable[tuple[str, str]],
    negatives: Iterable[tuple[str, str]],
    path: Path,
    config: TrainedConfig,
    *,
    positive: str,
    negative: str,
) -> Report:
    """Train a classifier on equally many documents of both classes and write it to `path`.

    Three parts without a site in common: one trains, one calibrates, one measures. One thread and a
    fixed seed: the same documents, in any order, give the same files, byte for byte. With too few
    documents no file is written.

    Args:
        positives, negatives: (site, text); "" as the site stands for a site of its own.
        positive, negative: names of the classes.
    """
    samples = [_sample(documents, config) for documents in (positives, negatives)]
    size = min(map(len, samples))
    if size < max(6, config.min_documents_per_class):
        counts = f"{len(samples[0])} {positive} and {len(samples[1])} {negative} documents"
        reason = f"{counts}, {config.min_documents_per_class} of each needed"
        return Report(f"{OFF}: {reason}", len(samples[0]), len(samples[1]))
    # Samples come in the order of their hashes, so any prefix is a random sample too.
    rows = [(number == 0, *document) for number, sample in enumerate(samples) for document in sample[:size]]
    by_site = all(len({site for label, site, _ in rows if label == wanted}) >= _MIN_SITES for wanted in (True, False))
    by_site = by_site and any(site != line for _, site, line in rows)
    measuring, calibrating, training = _split(rows, config, by_site=by_site)
    path.parent.mkdir(parents=True, exist_ok=True)
    with name_full_disk(path), tempfile.TemporaryDirectory(dir=path.parent, prefix=".training-") as folder:
        lines = [f"{PREFIX}{positive if label else negative} {line}\n" for label, line in training]
        trained = _train_fasttext(lines, Path(folder), config)
        model = TrainedModel(trained, positive=positive, negative=negative)  # a truncated file fails here
        calibration = fit_calibration([(label, model.raw_score(line)) for label, line in calibrating])
        raw = [(label, model.raw_score(line)) for label, line in measuring]
        with replacing(path) as file:
            file.write(trained.read_bytes())
        write_json(calibration_file(path), calibration._asdict())
    held_out = tuple((label, calibration.apply(score)) for label, score in raw)
    return Report(
        state="on: fastText",
        num_positives=size,
        num_negatives=size,
        num_calibration=len(calibrating),
        num_held_out=len(measuring),
        split_by="site" if by_site else "document",
        thresholds=thresholds(held_out, _TENTHS),
        average_precision=average_precision(held_out),
        calibration_error=(calibration_error(raw), calibration_error(held_out)),
        held_out=held_out,
    )


_TOKEN = re.compile(r"[^\W_]+|[^\w\s]|_")
_MAX_CHARACTERS = 20_000  # the beginning tells a page's kind; keeps the rare huge page from taking seconds


def normalize(text: str) -> str:
    """The form in which both training and scoring see a text: lower case, one line, marks set apart.

    Underscores are marks too, so no text can hold fastText's own `__label__` words.
    """
    line = " ".join(_TOKEN.findall(text[:_MAX_CHARACTERS].lower()))
    return line.encode(errors="replace").decode()


def _hash(text: str, seed: int) -> int:
    digest = blake2b(text.encode(errors="replace"), digest_size=8, key=seed.to_bytes(8, "little", signed=True)).digest()
    return int.from_bytes(digest, "little")


def _sample(documents: Iterable[tuple[str, str]], config: TrainedConfig) -> list[tuple[str, str]]:
    """Up to the configured number of distinct (site, normalized text), with the smallest seeded hashes."""
    chosen: dict[int, tuple[str, str]] = {}
    heap: list[int] = []  # of negated hashes: the largest hash leaves first
    for site, text in documents:
        line = normalize(text)
        key = _hash(line, config.seed)
        if not line:
            continue
        if key in chosen:  # the smallest site, whatever the order they come in
            chosen[key] = min(chosen[key], (site or line, line))
            continue
        if len(heap) < config.max_documents_per_class:
            heapq.heappush(heap, -key)
        elif key < -heap[0]:
            del chosen[-heapq.heappushpop(heap, -key)]
        else:
            continue
        chosen[key] = site or line, line
    return [chosen[key] for key in sorted(chosen)]


def _split(
    rows: Sequence[tuple[bool, str, str]], config: TrainedConfig, *, by_site: bool
) -> tuple[list[tuple[bool, str]], list[tuple[bool, str]], list[tuple[bool, str]]]:
    """(is positive, text) to measure on, to calibrate on, to train on, each in the order of seeded hashes."""
    groups: dict[str, list[tuple[bool, str]]] = {}
    for label, site, line in rows:
        groups.setdefault(site if by_site else line, []).append((label, line))
    ordered = sorted(groups, key=lambda group: _hash(group, config.seed + 1))
    num_held_out = max(1, round(config.held_out * len(ordered)))
    measuring, calibrating, training = (
        [row for group in part for row in groups[group]]
        for part in (
            ordered[:num_held_out],
            ordered[num_held_out : 2 * num_held_out],
            ordered[2 * num_held_out :],
        )
    )
    # Sites come whole: fastText should not see one after the other.
    training.sort(key=lambda row: _hash(row[1], config.seed + 2))
    return measuring, calibrating, training


def _train_fasttext(lines: list[str], folder: Path, config: TrainedConfig) -> Path:
    import fasttext

    text_path, model_path = folder / "train.txt", folder / "model.bin"
    text_path.write_text("".join(lines), encoding="utf-8")
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
    if config.quantize:
        model.quantize(input=str(text_path), thread=1)
    model.save_model(str(model_path))
    return model_path
