"""Random records to be read by a person, drawn from the stored stages."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import polars as pl

from cs336.crawl.warc import read_record_at
from cs336.documents import DOCUMENTS_FILE, read_table
from cs336.extract.html import decode_text
from cs336.extract.records import DOCUMENT, RECORDS_FILE
from cs336.files import read_json, sha256_of_file
from cs336.filters.pipeline import columns_of
from cs336.fingerprint import digest
from cs336.sheets import Entry, Sheet, as_markdown, as_page, read_verdicts, replacements, verdicts_file
from cs336_assets.asset import Metadata, Step, asset
from cs336_assets.dedup import DROPPED_FILE, TOO_SHORT
from cs336_assets.filters import DECISIONS_FILE

PAGE_FILE = "sheets.html"
SHEETS = ("first_look", "records", "extraction", "language", "pii", "harm", "gopher", "kept", "dropped")
MAX_SHARDS = 32  # that a sheet draws from: random ones, so that a crawl of any size is sampled within seconds
_HARMFUL_FROM = 0.5  # the classifiers' own verdict


class _Corpus:
    """The stages of all shards: small tables whole, texts read for the chosen records alone."""

    def __init__(
        self,
        crawl: Sequence[Path],
        extracted_text: Sequence[Path],
        document_scores: Sequence[Path],
        filtered_text: Sequence[Path],
        deduplicated_text: Sequence[Path],
        seed: int,
    ) -> None:
        self.states: dict[str, str] = read_json(document_scores[0] / "states.json")
        self.seed = seed
        num_shards = len(extracted_text)
        drawn = sorted(random.Random(seed).sample(range(num_shards), min(MAX_SHARDS, num_shards)))
        stages = crawl, extracted_text, filtered_text, deduplicated_text
        crawled, extracted, filtered, final = ([stage[place] for place in drawn] for stage in stages)
        self._crawl, self._extracted, self._final = (
            {folder.name: folder for folder in stage} for stage in (crawled, extracted, final)
        )
        self.documents = pl.concat(map(_documents, extracted, filtered, final))

    def draw(self, sheet: str, count: int, among: pl.DataFrame | None = None) -> list[dict[str, Any]]:
        """Random documents, the same ones for the same seed and data."""
        among = self.documents if among is None else among
        places = random.Random(f"{self.seed} {sheet}").sample(range(among.height), min(count, among.height))
        return list(among[places].iter_rows(named=True))

    def text(self, row: dict[str, Any], *, final: bool = False) -> str:
        """The document's text as extracted, or as it is trained on."""
        folder = (self._final if final else self._extracted)[row["shard"]]
        documents = pl.scan_parquet(folder / DOCUMENTS_FILE)
        own = documents.filter((pl.col("id") == row["id"]) & (pl.col("offset") == row["offset"]))
        return own.select("text").collect()["text"][0]

    def source(self, row: dict[str, Any]) -> str:
        """The page as the server sent it, or why it is not found: its record has the id of another."""
        path = self._crawl[row["shard"]] / row["warc"]
        try:
            return decode_text(read_record_at(path, row["offset"], record_id=row["id"]).payload)
        except ValueError as error:
            return f"({error})"

    def off(self, *names: str) -> list[str]:
        """What to say of filters that measured nothing."""
        return [f"{name}: {self.states[name]}" for name in names if self.states.get(name, "").startswith("off")]


def _documents(extracted: Path, filtered: Path, final: Path) -> pl.DataFrame:
    """Every document of a shard: its record, measurements and decision, and whether it is in the corpus.

    The reason is the filters', else that of deduplication, null where it was too short without repeated lines.
    """
    records = read_table(extracted / RECORDS_FILE).filter(pl.col("outcome") == DOCUMENT)
    about = records.select("kind", "mime_type", "num_characters", source_bytes="num_bytes")
    ids = pl.read_parquet(final / DOCUMENTS_FILE, columns=["id", "offset"]).with_columns(stays=pl.lit(True))
    decisions = read_table(filtered / DECISIONS_FILE).with_columns(shard=pl.lit(extracted.name))
    dropped = read_table(final / DROPPED_FILE).select("id", "offset", dropped_later="reason")
    return (
        pl.concat([decisions, about], how="horizontal")
        .join(ids.unique(), on=["id", "offset"], how="left", maintain_order="left")
        .join(dropped.unique(), on=["id", "offset"], how="left", maintain_order="left")
        .with_columns(pl.col("stays").fill_null(False), reason=pl.coalesce("reason", "dropped_later"))
        .drop("dropped_later")
    )


def _verdicts_version(root: Path) -> str:
    """A verdict that changes makes the sheets again."""
    return digest({path.name: sha256_of_file(path) for path in sorted(verdicts_file("x").parent.glob("*.toml"))})


@asset(group="sheets", kinds={"markdown", "html"}, owner="team:data", watches=_verdicts_version)
def inspection_sheets(
    step: Step,
    crawl: list[Path],
    extracted_text: list[Path],
    document_scores: list[Path],
    filtered_text: list[Path],
    deduplicated_text: list[Path],
    seed: int,
) -> Metadata:
    """Random records to read, with addresses and scores, and beside each sheet what its reader wrote.

    First look, 25 records, extraction, language, personal data, harm, Gopher's rules, kept and dropped: as
    Markdown here, and in the artifact as one page, `sheets.html`. Verdicts, and own labels that are compared
    with the filters, go into `sheets/PRESET.toml`; a sheet without one is *not read yet*. Of a single page,
    `cs336 why URL` tells the whole story; other thresholds are tried with
    `cs336 what-if gopher.min_words=30`, on the stored scores and in seconds.
    """
    corpus = _Corpus(crawl, extracted_text, document_scores, filtered_text, deduplicated_text, seed)
    sheets = [globals()[f"_{name}"](corpus) for name in SHEETS]
    verdicts = read_verdicts(verdicts_file(step.preset), SHEETS)
    page = as_page(f"Inspection sheets of {step.preset}", sheets, verdicts)
    (step.folder / PAGE_FILE).write_text(page, encoding="utf-8")
    return {
        "num_entries": sum(len(sheet.entries) for sheet in sheets),
        "not_read": [name for name, verdict in verdicts.items() if not verdict.is_read],
    } | {sheet.name: {"markdown": as_markdown(sheet, verdicts[sheet.name])} for sheet in sheets}


def _entry(row: dict[str, Any], columns: Sequence[str], excerpts: Sequence[tuple[str, str]], says: str = "") -> Entry:
    facts = {column: _shown(row[column]) for column in columns if row[column] is not None}
    return Entry(row["url"], f"{row['warc']} at byte {row['offset']:,}", facts, excerpts, says)


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _share(part: int, whole: int) -> str:
    return f"{part:,} of {whole:,} ({part / max(1, whole):.1%})"


def _fate(row: dict[str, Any]) -> str:
    return row["reason"] or ("kept" if row["stays"] else TOO_SHORT)


def _first_look(corpus: _Corpus) -> Sheet:
    rows = list(corpus.documents.head(1).iter_rows(named=True))
    return Sheet(
        "first_look",
        "First look",
        "The first page of the crawl: what is it about, what in its text is noise, what could a model learn from it,"
        " and what should it not? Name a domain where it would help, and one where not.",
        [],
        [
            _entry(
                row,
                ["mime_type", "source_bytes", "num_characters"],
                [("source", corpus.source(row)), _text(corpus, row)],
            )
            for row in rows
        ],
    )


def _text(corpus: _Corpus, row: dict[str, Any]) -> tuple[str, str]:
    return "text", corpus.text(row)


def _records(corpus: _Corpus) -> Sheet:
    rows = corpus.draw("records", 25)
    good = next((place for place, row in enumerate(rows, 1) if row["stays"]), None)
    entries = [
        _entry(
            row | {"domain": urlsplit(row["url"]).netloc, "fate": _fate(row)},
            ["language", "domain", "fate"],
            [_text(corpus, row)],
        )
        for row in rows
    ]
    return Sheet(
        "records",
        "25 records",
        "Of each page: language, domain, kind of page, anything to note. How many until the first good one?",
        [f"The first that the pipeline keeps is number {good}." if good else "The pipeline keeps none of them."],
        entries,
    )


def _extraction(corpus: _Corpus) -> Sheet:
    """Own text beside the crawl's own (WET) where it has both, else beside the page's source."""
    kinds = corpus.documents.select("url", "kind")
    ready = corpus.documents.filter(pl.col("kind") == "conversion")
    pairs = corpus.documents.filter((pl.col("kind") == "response") & pl.col("url").is_in(ready["url"].implode()))
    entries = []
    for row in corpus.draw("extraction", 5, pairs if pairs.height else None):
        other = ("source", corpus.source(row))
        if pairs.height:
            other = ("WET", corpus.text(ready.filter(pl.col("url") == row["url"]).row(0, named=True)))
        entries.append(_entry(row, ["mime_type", "source_bytes", "num_characters"], [_text(corpus, row), other]))
    with_wet = f"{pairs.height:,} of {kinds.height:,} pages have a WET text too." if pairs.height else "No WET here."
    return Sheet(
        "extraction",
        "Extraction",
        "Which text is better, and why? What is lost, what is left over?",
        [with_wet],
        entries,
    )


def _language(corpus: _Corpus) -> Sheet:
    columns = columns_of("language")
    counts = corpus.documents["language"].drop_nulls().value_counts(sort=True).head(5).iter_rows()
    figures = [f"{code}: {_share(count, corpus.documents.height)}" for code, count in counts]
    return Sheet(
        "language",
        "Language",
        "What language is each page in? Where is the model wrong, at which confidence, and which threshold suits?",
        [*corpus.off("language"), *figures],
        [_entry(row, columns, [_text(corpus, row)], row["language"] or "") for row in corpus.draw("language", 20)],
    )


def _pii(corpus: _Corpus) -> Sheet:
    masked = corpus.documents.filter(pl.col("num_masked") > 0)
    entries: list[Entry] = []
    for row in corpus.draw("pii", 20, masked):
        found = replacements(corpus.text(row))
        for kind, was, around in found[: max(1, 20 // max(1, masked.height))]:
            entries.append(
                _entry(row | {"kind": kind, "was": was}, ["kind", "was"], [("in context", around)], "personal")
            )
    kept = corpus.documents.filter("kept")
    return Sheet(
        "pii",
        "Personal data",
        'Is each replacement personal data ("personal") or not? What was missed? What does masking do to a model?',
        [*corpus.off("pii"), f"Something is masked in {_share(masked.height, kept.height)} kept documents."],
        entries[:20],
    )


def _harm(corpus: _Corpus) -> Sheet:
    """The ten that score highest, and ten others at random."""
    columns = ["nsfw_score", "toxic_score"]
    scored = corpus.documents.with_columns(worst=pl.max_horizontal(columns)).filter(pl.col("worst").is_not_null())
    scored = scored.sort("worst", descending=True, maintain_order=True)
    rows = [*scored.head(10).iter_rows(named=True), *corpus.draw("harm", 10, scored.slice(10))]
    harmful = scored.filter(pl.col("worst") > _HARMFUL_FROM).height
    figure = [f"Above {_HARMFUL_FROM}: {_share(harmful, scored.height)} scored pages."] if scored.height else []
    return Sheet(
        "harm",
        "Harm",
        'Is each page "harmful" or "fine"? Which thresholds suit, and what would they do to a model?',
        [*corpus.off("nsfw", "toxic"), *figure],
        [_entry(r, columns, [_text(corpus, r)], "harmful" if r["worst"] > _HARMFUL_FROM else "fine") for r in rows],
    )


def _gopher(corpus: _Corpus) -> Sheet:
    """Ten that the rules reject on their own, and ten that pass."""
    passes = corpus.documents["passes_gopher"]
    rows = corpus.draw("gopher", 10, corpus.documents.filter(~passes))
    rows += corpus.draw("gopher", 20 - len(rows), corpus.documents.filter(passes))
    columns = [*columns_of("gopher"), "reason"]
    return Sheet(
        "gopher",
        "Gopher's rules",
        'Would you "keep" or "drop" each page as prose? Where do the rules disagree with you?',
        [*corpus.off("gopher"), f"Passing: {_share(int(passes.sum()), corpus.documents.height)} pages."],
        [_entry(row, columns, [_text(corpus, row)], "keep" if row["passes_gopher"] else "drop") for row in rows],
    )


def _kept(corpus: _Corpus) -> Sheet:
    stays = corpus.documents.filter("stays")
    columns = ["language_confidence", "quality_score", "num_masked", "num_characters"]
    return Sheet(
        "kept",
        "Kept",
        "Five documents of the corpus, as they are trained on: is each useful for the target?",
        [f"In the corpus: {_share(stays.height, corpus.documents.height)} documents."],
        [_entry(r, columns, [("as trained on", corpus.text(r, final=True))]) for r in corpus.draw("kept", 5, stays)],
    )


def _dropped(corpus: _Corpus) -> Sheet:
    gone = corpus.documents.filter(~pl.col("stays") | (pl.col("num_masked") > 0))
    entries = []
    for row in corpus.draw("dropped", 5, gone):
        by = "masking changed it" if row["stays"] else _fate(row)
        entries.append(_entry(row | {"by": by}, ["by", "language_confidence", "num_characters"], [_text(corpus, row)]))
    return Sheet(
        "dropped",
        "Dropped or changed",
        "Five documents that went or were changed, and by what: was it right?",
        [f"Dropped or changed: {_share(gone.height, corpus.documents.height)} documents."],
        entries,
    )
