"""All filters over a shard: measure everything, then decide.

`measure_documents` needs the models and takes the time; `decide` is a table operation, so other
thresholds are tried on stored measurements within a second.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from cs336.documents import Document
from cs336.filters.c4 import C4Config, clean_lines, failing_c4_rule
from cs336.filters.decontaminate import EvalIndex
from cs336.filters.harmful import HarmfulModels, harm_score
from cs336.filters.heuristics import GopherConfig
from cs336.filters.language import LanguageModel
from cs336.filters.pii import mask_pii
from cs336.filters.quality import QualityModel
from cs336.filters.scan import scan_gopher
from cs336.filters.trained import OFF
from cs336.processes import in_batches, map_ordered
from cs336.progress import Progress, silent

FILTERS = ("language", "nsfw", "toxic", "c4", "gopher", "quality", "contaminated", "pii")  # in the order they decide
NOT_WANTED = "off, by the preset"
# Measured together: so many documents, fewer when they are long. A task costs about as much to send as to measure one
# small page, and waiting tasks are held in memory.
_BATCH_DOCUMENTS, _BATCH_CHARS = 32, 1 << 20


@dataclass(frozen=True, kw_only=True)
class FilterModels:
    """What measures, and where the models are; small and picklable: each worker opens its own.

    Attributes:
        filters: those that are run; the others measure nothing, so they drop and mask nothing.
        language, nsfw, toxic, own_toxic, quality, evals: None where there is no model.
        c4: C4's line rules; when enabled, what comes after them measures the lines that are left, but for quality:
            its classifier learnt from whole texts.
    """

    filters: tuple[str, ...] = FILTERS
    language: Path | None = None  # None takes resiliparse's detector
    nsfw: Path | None = None
    toxic: Path | None = None
    own_toxic: Path | None = None  # trained here, for where there is no `toxic`
    quality: Path | None = None
    evals: Path | None = None  # an EvalIndex
    c4: C4Config = field(default_factory=C4Config)


@dataclass(frozen=True, kw_only=True)
class FilterConfig:
    """What a document must measure to be kept; a value on a bound passes.

    Attributes:
        languages: codes to keep; () keeps every language.
        min_language_confidence: 0.65 is FineWeb's bound for English (arXiv:2406.17557).
        gopher: the bounds of Gopher's rules, on words between spaces; with marks as words, the rules
            would leave 8 % of the text of Python's docstrings (measured), not 90 %.
        max_nsfw_score, max_toxic_score: probability of the harmful label; 0.5 is the classifier's own
            verdict (most harmful pages lie far above it).
        min_quality_score: None measures only: reference against crawl is reported to be too
            strict as a hard filter (one author kept 0 of 500 pages).
        max_eval_hits: n-grams shared with evaluation questions; 0 drops every contaminated document,
            None measures only.
        mask_pii: replace e-mail, IP and phone numbers in what is kept.
    """

    languages: tuple[str, ...] = ("en",)
    min_language_confidence: float = 0.65
    gopher: GopherConfig = field(default_factory=lambda: GopherConfig(marks_are_words=False))
    max_nsfw_score: float = 0.5
    max_toxic_score: float = 0.5
    min_quality_score: float | None = None
    max_eval_hits: int | None = 0
    mask_pii: bool = True

    def __post_init__(self) -> None:
        for name in ("min_language_confidence", "max_nsfw_score", "max_toxic_score", "min_quality_score"):
            share = getattr(self, name)
            if share is not None and not 0 <= share <= 1:
                raise ValueError(f"{name} is a share, from 0 to 1, got {share}")
        if self.max_eval_hits is not None and self.max_eval_hits < 0:
            raise ValueError(f"max_eval_hits must not be negative, got {self.max_eval_hits}; None measures only")
        wrong = [code for code in self.languages if not (isinstance(code, str) and code.islower())]
        if wrong:
            raise ValueError(f'languages are codes such as "en", in lower case, got {wrong[0]!r}')


MEASUREMENTS = {
    "id": pl.String,
    "url": pl.String,
    "warc": pl.String,
    "offset": pl.Int64,
    "num_bytes": pl.Int64,
    "language": pl.String,
    "language_confidence": pl.Float64,
    "nsfw_score": pl.Float64,
    "toxic_score": pl.Float64,
    "num_lines": pl.Int64,
    "num_clean_lines": pl.Int64,
    "c4_rule": pl.String,
    "num_words": pl.Int64,
    "mean_word_length": pl.Float64,
    "ellipsis_line_fraction": pl.Float64,
    "alphabetic_word_fraction": pl.Float64,
    "num_spaced_words": pl.Int64,
    "mean_spaced_word_length": pl.Float64,
    "alphabetic_spaced_word_fraction": pl.Float64,
    "quality_score": pl.Float64,
    "num_eval_hits": pl.Int64,
    "eval_hits": pl.String,
    "num_emails": pl.Int64,
    "num_ips": pl.Int64,
    "num_phones": pl.Int64,
}


def measure_documents(
    documents: Iterable[Document], models: FilterModels, *, num_workers: int = 1, progress: Progress = silent
) -> tuple[pl.DataFrame, dict[str, float], dict[str, str]]:
    """What every filter that is run measures on every document, whatever the other filters say.

    Returns:
        The measurements, one row a document in its order, null where a filter is off (words are
        counted with punctuation marks as words, and as spaced words without; `eval_hits`
        reads "gsm8k: 2, mmlu: 1", and is null without hits); the CPU seconds spent in each filter,
        summed over the workers; and each filter's state, such as "on: lid.176" or "off, no model".

    Raises:
        ValueError: `models.filters` names a filter that does not exist.
        UserError: a model is missing or broken.
    """
    unknown = sorted(set(models.filters) - set(FILTERS))
    if unknown:
        raise ValueError(f"there is no filter {unknown[0]!r}; there are {', '.join(FILTERS)}")
    states = _open(models).states  # a missing or broken model shows before any work
    seconds = dict.fromkeys(FILTERS, 0.0)
    rows: list[list[Any]] = []
    watched = progress(documents, unit="documents", label="filter")
    batches = in_batches(watched, _share_of_a_batch, _BATCH_CHARS)
    for measured, spent in map_ordered(functools.partial(_measure, models), batches, num_workers=num_workers):
        rows += measured
        for name, value in zip(FILTERS, spent, strict=True):
            seconds[name] += value
    table = pl.DataFrame(rows, schema=MEASUREMENTS, orient="row")
    return table, seconds, states


def decide(measurements: pl.DataFrame, config: FilterConfig) -> pl.DataFrame:
    """Add each filter's verdict and the decision to a table of measurements; needs no model.

    Returns:
        The measurements with `passes_language`, `passes_nsfw`, `passes_toxic`, `passes_c4`,
        `passes_gopher`, `passes_quality`, `passes_contaminated` (true where a filter is off); `kept`; `reason`, null or
        the first that failed: "language", "harmful:nsfw", "harmful:toxic", "c4:<rule>",
        "gopher:<rule>", "quality", "contaminated"; and `num_masked`, what will be masked in it (0 unless kept).
    """
    failures = _failures(config)
    reason = pl.coalesce(pl.when(fails).then(pl.lit(name)) for name, fails in failures)
    verdicts = [
        (~pl.any_horizontal(fails for name, fails in failures if _filter_of(name) == filter_name)).alias(
            f"passes_{filter_name}"
        )
        for filter_name in FILTERS
        if filter_name != "pii"
    ]
    masked = pl.col("num_emails") + pl.col("num_ips") + pl.col("num_phones") if config.mask_pii else pl.lit(0)
    return measurements.with_columns(*verdicts, reason=reason).with_columns(
        kept=pl.col("reason").is_null(),
        num_masked=pl.when(pl.col("reason").is_null()).then(masked.fill_null(0)).otherwise(0).cast(pl.Int64),
    )


def rules(config: FilterConfig) -> list[tuple[str, str, pl.Expr]]:
    """Every rule in the order they decide: the reason it gives, its filter, and when it drops a document."""
    return [(name, _filter_of(name), fails) for name, fails in _failures(config)]


def columns_of(filter_name: str) -> list[str]:
    """What a filter measures: columns of MEASUREMENTS."""
    columns = iter(list(MEASUREMENTS)[5:])  # after what names the document
    return {name: list(itertools.islice(columns, count)) for name, (count, _) in _MEASURES.items()}[filter_name]


def ledger(decisions: pl.DataFrame, states: Mapping[str, str], seconds: Mapping[str, float]) -> list[dict[str, Any]]:
    """One row a filter, in the order they decide.

    `seen` are the documents that no earlier filter dropped; `share_of_discards` is of all dropped
    documents (null when nothing was); `would_drop` is what the filter drops on its own; `num_masked`
    stands at pii only, which drops nothing.
    """
    dropped = Counter(_filter_of(reason) for reason in decisions["reason"].drop_nulls())
    seen, rows = decisions.height, []
    for name in FILTERS:
        is_pii = name == "pii"
        rows.append(
            {
                "filter": name,
                "state": states[name],
                "seen": seen,
                "kept": seen - dropped[name],
                "dropped": dropped[name],
                "share_of_discards": dropped[name] / dropped.total() if dropped else None,
                "would_drop": 0 if is_pii else int((~decisions[f"passes_{name}"]).sum()),
                "num_masked": int(decisions["num_masked"].sum()) if is_pii else None,
                "seconds": float(seconds[name]),
            }
        )
        seen -= dropped[name]
    return rows


def apply(
    documents: Iterable[Document], decisions: pl.DataFrame, config: FilterConfig, *, c4: C4Config | None = None
) -> Iterator[Document]:
    """The kept documents, in order, with personal data masked; otherwise unchanged.

    Args:
        c4: as it was when measuring; enabled, only the lines that pass are left of a document.

    Raises:
        ValueError: the decisions are not about these documents, row by row.
    """
    rows = decisions.select("id", "kept", "num_masked").iter_rows()
    for document, row in itertools.zip_longest(documents, rows):
        if document is None or row is None or document.id != row[0]:
            raise ValueError(
                f"document {document and document.id} stands where the decisions have {row and row[0]};"
                " decide on the measurements of these documents"
            )
        if row[1]:
            if c4 is not None and c4.enabled:
                document = document._replace(text=clean_lines(document.text, c4).text)
            masks = config.mask_pii and row[2] > 0
            yield document._replace(text=mask_pii(document.text)[0]) if masks else document


class _Opened(NamedTuple):
    language: LanguageModel
    harmful: HarmfulModels
    quality: QualityModel
    evals: EvalIndex | None
    states: dict[str, str]


@functools.lru_cache(maxsize=1)
def _open_unchanged(models: FilterModels, stamps: tuple[tuple[int, int] | None, ...]) -> _Opened:
    language = LanguageModel(models.language)
    evals = None if models.evals is None else EvalIndex.load(models.evals)
    states = {
        "language": f"on: {language.name}",
        "nsfw": OFF if models.nsfw is None else "on: fastText",
        "toxic": "on: fastText" if models.toxic else "on: trained here" if models.own_toxic else OFF,
        "c4": "on" if models.c4.enabled else NOT_WANTED,
        "gopher": "on",
        "quality": OFF if models.quality is None else "on: fastText",
        "contaminated": "off, no evals"
        if evals is None
        else f"on: {len(evals.evals)} evals, {evals.num_ngrams:,} n-grams",
        "pii": "on",
    }
    states |= {name: NOT_WANTED for name in FILTERS if name not in models.filters}
    harmful = HarmfulModels(models.nsfw, models.toxic, models.own_toxic)
    return _Opened(language, harmful, QualityModel(models.quality), evals, states)


# Which filter needs which of the models.
_MODELS = {
    "language": "language",
    "nsfw": "nsfw",
    "toxic": "toxic",
    "own_toxic": "toxic",
    "quality": "quality",
    "evals": "contaminated",
}


def _open(models: FilterModels) -> _Opened:
    """The models of this process, opened at the first document and again only when a file changed."""
    wanted = {name: getattr(models, name) if run_by in models.filters else None for name, run_by in _MODELS.items()}
    models = FilterModels(filters=models.filters, c4=models.c4, **wanted)
    paths = wanted.values()
    stats = [path.stat() if path is not None and path.exists() else None for path in paths]
    return _open_unchanged(models, tuple(stat and (stat.st_mtime_ns, stat.st_size) for stat in stats))


def _share_of_a_batch(document: Document) -> int:
    """A document's characters, and at least what lets as many in as a batch may have."""
    return max(len(document.text), _BATCH_CHARS // _BATCH_DOCUMENTS)


def _measure(models: FilterModels, documents: list[Document]) -> tuple[list[list[Any]], list[float]]:
    """Rows of the table, and the CPU seconds each filter took, in the order of FILTERS.

    One filter after the other over all documents: the tables of each stay in the processor's cache meanwhile.
    """
    opened = _open(models)
    whole = texts = [document.text for document in documents]
    rows: list[list[Any]] = [
        [*document[:4], len(document.text.encode("utf-8", "surrogatepass"))] for document in documents
    ]
    times = [time.process_time()]
    for name, (num_columns, measure) in _MEASURES.items():
        if name == "c4" and name in models.filters and models.c4.enabled:
            cleaned = [clean_lines(text, models.c4) for text in texts]
            texts = [each.text for each in cleaned]
            values: list[tuple[Any, ...]] = [
                (each.num_lines, each.num_kept_lines, failing_c4_rule(each, models.c4)) for each in cleaned
            ]
        elif name in models.filters:
            values = [measure(opened, text) for text in (whole if name == "quality" else texts)]
        else:
            values = [(None,) * num_columns] * len(texts)
        for row, value in zip(rows, values, strict=True):
            row += value
        times.append(time.process_time())
    return rows, [after - before for before, after in itertools.pairwise(times)]


def _measure_gopher(opened: _Opened, text: str) -> tuple[Any, ...]:
    with_marks, spaced = scan_gopher(text)
    return *with_marks, spaced.num_words, spaced.mean_word_length, spaced.alphabetic_word_fraction


def _measure_hits(opened: _Opened, text: str) -> tuple[Any, ...]:
    num_hits = opened.evals.num_hits(text) if opened.evals is not None else None
    if not num_hits or opened.evals is None:
        return num_hits, None
    return num_hits, ", ".join(f"{name}: {count}" for name, count in opened.evals.count(text).items())


# How many columns each filter fills, in the order of FILTERS and of MEASUREMENTS, and with what.
_MEASURES: dict[str, tuple[int, Callable[[_Opened, str], tuple[Any, ...]]]] = {
    "language": (2, lambda opened, text: opened.language.identify(text)),
    "nsfw": (1, lambda opened, text: (harm_score(opened.harmful.nsfw(text)),)),
    "toxic": (1, lambda opened, text: (harm_score(opened.harmful.toxic(text)),)),
    "c4": (3, lambda opened, text: (None, None, None)),  # when it is on, `_measure` has its figures
    "gopher": (7, _measure_gopher),
    "quality": (1, lambda opened, text: (opened.quality.score(text),)),
    "contaminated": (2, _measure_hits),
    "pii": (3, lambda opened, text: tuple(mask_pii(text)[1])),
}


def _failures(config: FilterConfig) -> list[tuple[str, pl.Expr]]:
    """(reason, when it holds) in order; a null measurement, of a filter that is off, never fails."""
    gopher, column = config.gopher, pl.col
    confident = column("language").is_in(config.languages) & (
        column("language_confidence") >= config.min_language_confidence
    )
    quality = pl.lit(False) if config.min_quality_score is None else column("quality_score") < config.min_quality_score
    hits = pl.lit(False) if config.max_eval_hits is None else column("num_eval_hits") > config.max_eval_hits
    spaced = "" if gopher.marks_are_words else "spaced_"
    num_words, length = column(f"num_{spaced}words"), column(f"mean_{spaced}word_length")
    alphabetic = column(f"alphabetic_{spaced}word_fraction")
    # The same rules as heuristics.failing_rule, on columns.
    failures = [
        ("language", ~confident if config.languages else pl.lit(False)),
        ("harmful:nsfw", column("nsfw_score") > config.max_nsfw_score),
        ("harmful:toxic", column("toxic_score") > config.max_toxic_score),
        *((f"c4:{rule}", column("c4_rule") == rule) for rule in ("lorem_ipsum", "curly_bracket", "too_few_sentences")),
        ("gopher:too_few_words", num_words < max(1, gopher.min_words)),
        ("gopher:too_many_words", num_words > gopher.max_words),
        ("gopher:short_words", length < gopher.min_mean_word_length),
        ("gopher:long_words", length > gopher.max_mean_word_length),
        ("gopher:ellipsis_lines", column("ellipsis_line_fraction") > gopher.max_ellipsis_line_fraction),
        ("gopher:few_alphabetic_words", alphabetic < gopher.min_alphabetic_word_fraction),
        ("quality", quality),
        ("contaminated", hits),
    ]
    return [(name, fails.fill_null(False)) for name, fails in failures]


def _filter_of(reason: str) -> str:
    """ "gopher:long_words" is gopher's, "harmful:nsfw" nsfw's."""
    family, _, detail = reason.partition(":")
    return detail if family == "harmful" else family
