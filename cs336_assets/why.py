"""The story of a page, from its WARC record to its tokens, read from the stored artifacts alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from cs336.dedup.reference import jaccard
from cs336.documents import DOCUMENTS_FILE
from cs336.extract.records import DOCUMENT, RECORDS_FILE
from cs336.files import UserError, read_json
from cs336.filters.pipeline import FILTERS, FilterConfig, columns_of, rules
from cs336.presets import Preset
from cs336.store import MANIFEST, Store
from cs336.tokens.index import IndexedDocument, read_index
from cs336.tokens.shards import SPLITS
from cs336_assets.asset import PLAN_ASSET, shard_names
from cs336_assets.dedup import CLUSTERS_FILE, CONTAMINATED, NEAR_DUPLICATE, TOO_SHORT, removed_documents
from cs336_assets.filters import DECISIONS_FILE

MAX_LISTED = 20
_PAGES = ("response", "conversion", "resource", "revisit")  # a crawler's notes about a page are not the page
_WIDTH = 15  # of the first column


class Found(NamedTuple):
    """A record whose address was asked for.

    Attributes:
        shard: of the crawl.
        document: its place among the shard's documents; None when it gave none.
        record: its row of `records.parquet`.
    """

    shard: str
    document: int | None
    record: dict[str, Any]

    @property
    def place(self) -> str:
        return f"{self.record['warc']} at byte {self.record['offset']:,}"


def find_records(store: Store, address: str) -> list[Found]:
    """Records of pages with this address, or else those whose address has it as a part.

    What is no page (requests, metadata) is only named where no page has the address.

    Raises:
        UserError: the crawl was not planned, or a shard's text not extracted.
    """
    parts = []
    for shard in shard_names_of(store):
        path = artifact(store, "extracted_text", shard) / RECORDS_FILE
        if not path.exists():
            raise UserError(f"{path}: not there (older code wrote none); {_remedy(store)}")
        place = pl.when(pl.col("outcome") == DOCUMENT).then((pl.col("outcome") == DOCUMENT).cum_sum() - 1)
        rows = pl.scan_parquet(path).with_columns(shard=pl.lit(shard), document=place)
        parts.append(rows.filter(pl.col("url").str.contains(address, literal=True)).collect())
    matches = pl.concat(parts) if parts else pl.DataFrame()
    if matches.is_empty():
        return []
    pages = matches.filter(pl.col("kind").is_null() | pl.col("kind").is_in(_PAGES))
    matches = pages if pages.height else matches
    exact = matches.filter(pl.col("url") == address)
    told = (exact if exact.height else matches).iter_rows(named=True)
    return [Found(row.pop("shard"), row.pop("document"), row) for row in told]


def shard_names_of(store: Store) -> list[str]:
    """Shards of the crawl.

    Raises:
        UserError: the crawl was not planned.
    """
    artifact(store, PLAN_ASSET)
    return shard_names(store)


def artifact(store: Store, name: str, part: str | None = None) -> Path:
    """The folder of a finished artifact.

    Raises:
        UserError: it was not made; the line names the command that makes it.
    """
    folder = store.path(name, part)
    if not (folder / MANIFEST).exists():
        raise UserError(f"{folder}: not there yet; {_remedy(store)}")
    return folder


def _remedy(store: Store) -> str:
    return f"`cs336 run --preset {store.preset} --job data` makes it"


def fate(store: Store, found: Found) -> str:
    """What became of a record in the end, in a few words: the rule that dropped it, or "kept (train)"."""
    if found.document is None:
        return found.record["outcome"]
    if reason := decision_of(store, found)["reason"][0]:
        return reason
    if _text(store, "unique_lines", found) is None:
        return TOO_SHORT
    if _row(store, found) in removed_documents(artifact(store, "near_duplicates"), found.shard):
        return NEAR_DUPLICATE
    if _text(store, "deduplicated_text", found) is None:
        return CONTAMINATED
    place = tokens_of(store, found)
    return f"kept ({place.split})" if place else "kept, not tokenized"


def tell(store: Store, preset: Preset, found: Found) -> Iterator[str]:
    """The story of one record, a line at a time, ended by its fate.

    Raises:
        UserError: an artifact is missing; what comes before it has been told.
    """
    record = found.record
    kind = ", ".join(
        str(part)
        for part in (
            record["kind"] or "not readable",
            record["http_status"] and f"status {record['http_status']}",
            record["mime_type"],
        )
        if part
    )
    yield record["url"] or "(no address)"
    yield _line("WARC record", f"{found.place} (shard {found.shard}): {kind}")
    if found.document is None:
        size = "" if record["num_bytes"] is None else f" ({record['num_bytes']:,} bytes)"
        yield _line("extracted", f"nothing: {record['outcome']}{size}")
        yield f"-> dropped by extraction: {record['outcome']}"
        return
    yield _line("extracted", f"{record['num_characters']:,} characters from {record['num_bytes']:,} bytes")
    decision = decision_of(store, found)
    states = read_json(artifact(store, "document_scores", found.shard) / "states.json")
    yield from _measurements(decision, states, preset.filters)
    if reason := decision["reason"][0]:
        yield f"-> dropped by the filters: {reason}"
        return
    if decision["num_masked"][0]:
        yield _line("masked", f"{decision['num_masked'][0]:,} e-mail addresses, IP addresses or phone numbers")
    yield from _after_filters(store, preset, found)


def decision_of(store: Store, found: Found) -> pl.DataFrame:
    """Measurements, verdicts and decision of a document, as a table of one row.

    Raises:
        UserError: never made, or made of other documents.
    """
    path = artifact(store, "filtered_text", found.shard) / DECISIONS_FILE
    row = pl.scan_parquet(path).slice(found.document or 0, 1).collect()
    if not row.height or row["id"][0] != found.record["id"]:
        raise UserError(f"{path}: decides on other documents than were extracted; {_remedy(store)}")
    return row


def _measurements(decision: pl.DataFrame, states: dict[str, str], config: FilterConfig) -> Iterator[str]:
    """Everything that was measured, beside its bounds: of all rules, not only the first that failed."""
    failed: list[str] = []
    settings = leaves(config)
    for name in FILTERS:
        own = [(rule, fails) for rule, of, fails in rules(config) if of == name]
        broken = [rule for rule, fails in own if decision.select(fails.alias("fails"))["fails"][0]]
        failed += broken
        used = {column for _, fails in own for column in fails.meta.root_names()}
        columns = [column for column in columns_of(name) if _is_told(decision, column, used)]
        state = states.get(name, "")
        if state.startswith("off") or not columns:
            yield _line(name, state or "nothing measured")
            continue
        blamed = {column for rule, fails in own if rule in broken for column in fails.meta.root_names()}
        for place, column in enumerate(columns):
            verdict = ("FAILS" if column in blamed else "passes") if column in used else "measured only"
            yield _line("" if place else name, _measured(decision[column][0], column, name, settings) + verdict)
    if (failed[0] if failed else None) != decision["reason"][0]:
        yield _line("", "(the preset's thresholds have changed since this was decided: `cs336 run` decides again)")


def _is_told(decision: pl.DataFrame, column: str, used: set[str]) -> bool:
    """What was measured, of words with and without marks only what the rules look at."""
    twins = {name.replace("spaced_", "") for name in used - {column}}
    return decision[column][0] is not None and (column in used or column.replace("spaced_", "") not in twins)


def _measured(value: Any, column: str, filter_name: str, settings: dict[str, Any]) -> str:
    low, high = bounds_of(column, filter_name, settings)
    bounds = [f"{word} {number(bound)}" for word, bound in (("at least", low), ("at most", high)) if bound is not None]
    listed = settings.get(f"{column}s")  # `language` is one of `languages`
    if isinstance(listed, tuple) and listed:
        bounds = [f"one of {', '.join(listed)}"]
    shown = value if isinstance(value, str) else number(value)
    return f"{column:<33}{shown:<11} {', '.join(bounds):<28} "


def bounds_of(column: str, filter_name: str, settings: dict[str, Any]) -> tuple[Any, Any]:
    """The least and the greatest value that passes, by the names of the settings: `nsfw_score` has `max_nsfw_score`.

    Words without marks (`num_spaced_words`) have the bounds of words.
    """
    plain = column.removeprefix("num_").replace("spaced_", "")
    found = []
    for name in (f"min_{plain}", f"max_{plain}"):
        of_this_name = [key for key in settings if key.rpartition(".")[2] == name]
        own = [key for key in of_this_name if key.startswith(f"{filter_name}.")]
        found.append(settings[(own or of_this_name)[0]] if of_this_name else None)
    return found[0], found[1]


def leaves(config: Any, prefix: str = "") -> dict[str, Any]:
    """Every setting of a configuration, nested ones as `gopher.min_words`."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found |= leaves(value, f"{prefix}{field.name}.")
        else:
            found[prefix + field.name] = value
    return found


def number(value: Any) -> str:
    """A count with commas, a score with four digits."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _after_filters(store: Store, preset: Preset, found: Found) -> Iterator[str]:
    before, after = _text(store, "filtered_text", found), _text(store, "unique_lines", found)
    if after is None:
        least = preset.lines.min_words
        yield _line("lines", f"fewer than {least:,} words are left without the lines that the crawl repeats")
        yield f"-> dropped by repeated lines: {TOO_SHORT}"
        return
    lines, left = (len(text.split("\n")) for text in (before or "", after))
    yield _line(
        "lines", f"{lines - left:,} of {lines:,} removed; the crawl repeats them" if left < lines else "all stay"
    )
    yield _line("duplicates", _cluster(store, found, preset.minhash.ngrams))
    if _row(store, found) in removed_documents(artifact(store, "near_duplicates"), found.shard):
        yield f"-> dropped by deduplication: {NEAR_DUPLICATE}"
        return
    if _text(store, "deduplicated_text", found) is None:
        yield _line("contaminated", "shares words with an evaluation that were joined where repeated lines went")
        yield f"-> dropped after deduplication: {CONTAMINATED}"
        return
    place = tokens_of(store, found)
    if place is None:
        yield "-> kept, but not tokenized: its text cannot be written as UTF-8"
        return
    last = place.first_token + place.num_tokens - 1
    yield _line(
        "tokens", f"{place.num_tokens:,} from {place.num_text_bytes:,} bytes; document {place.row:,} of the shard"
    )
    yield f"-> kept: token_shards/{found.shard}/{place.split}.bin, tokens {place.first_token:,} to {last:,}"


def _text(store: Store, name: str, found: Found) -> str | None:
    """The document's text at a stage, None where it is no longer there."""
    texts = _stage(store, name, found).select("text").collect()["text"]
    return texts[0] if len(texts) else None


def _row(store: Store, found: Found) -> int:
    """Its place among the shard's documents when near-duplicates are looked for."""
    return _stage(store, "unique_lines", found).select("row").collect()["row"][0]


def _stage(store: Store, name: str, found: Found) -> pl.LazyFrame:
    """The document's row at a stage, if it is still there."""
    documents = pl.scan_parquet(artifact(store, name, found.shard) / DOCUMENTS_FILE).with_row_index("row")
    return documents.filter(pl.col("id") == found.record["id"])


def _cluster(store: Store, found: Found, ngrams: int) -> str:
    clusters = pl.scan_parquet(artifact(store, "near_duplicates") / CLUSTERS_FILE)
    is_own = (pl.col("row") == _row(store, found)) & (pl.col("shard") == found.shard)
    own = clusters.filter(is_own).select("cluster").collect()["cluster"]
    members = clusters.filter(pl.col("cluster").is_in(own.implode())).collect()
    if members.is_empty():
        return "none"
    survivor = members.filter("kept").row(0, named=True)
    if (survivor["shard"], survivor["row"]) == (found.shard, _row(store, found)):
        return f"the one that stays of {members.height:,} near-identical documents"
    other = pl.scan_parquet(artifact(store, "unique_lines", survivor["shard"]) / DOCUMENTS_FILE)
    theirs = other.slice(survivor["row"], 1).select("text").collect()["text"][0]
    similarity = jaccard(_text(store, "unique_lines", found) or "", theirs, ngrams)
    return (
        f"one of {members.height:,} near-identical documents; {survivor['url']} stays"
        f" (Jaccard similarity {similarity:.3f})"
    )


def tokens_of(store: Store, found: Found) -> IndexedDocument | None:
    """Where the document's tokens lie, None if nowhere."""
    folder = artifact(store, "token_shards", found.shard)
    wanted = found.record["id"], found.record["offset"]
    for split in SPLITS:
        for document in read_index(folder, split):
            if (document.id, document.offset) == wanted:
                return document
    return None


def _line(name: str, text: str) -> str:
    return f"  {name:<{_WIDTH}}{text}"
