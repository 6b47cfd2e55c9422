"""Documents between the stages: one Parquet file a shard, each row traceable to its WARC record."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from cs336.files import UserError, replacing

DOCUMENTS_FILE = "documents.parquet"


class Document(NamedTuple):
    """One text and where it came from.

    Attributes:
        id: the WARC-Record-ID of the record it was read from, or one of its own where another document of the shard
            has that; so no two of a shard have one.
        url: the page's address.
        warc: file name of the WARC file.
        offset: byte offset of the record in that file (of its gzip member, when compressed).
        text: the text; any Unicode, newlines included.
    """

    id: str
    url: str
    warc: str
    offset: int
    text: str


SCHEMA = {"id": pl.String, "url": pl.String, "warc": pl.String, "offset": pl.Int64, "text": pl.String}


def write_documents(folder: Path, documents: Iterable[Document]) -> int:
    """Write `folder/documents.parquet`, whole or not at all; returns the number of documents.

    Same documents in, same bytes out.
    """
    return write_table(folder / DOCUMENTS_FILE, pl.DataFrame(list(documents), schema=SCHEMA, orient="row"))


def read_documents(folder: Path) -> Iterator[Document]:
    """Documents of one shard, in stored order.

    Raises:
        UserError: the folder holds no documents; the line names the file.
    """
    for row in read_table(folder / DOCUMENTS_FILE).iter_rows():
        yield Document(*row)


class Texts(Sequence[str]):
    """The texts of many shards by number, one shard's in memory at a time: to be read in ascending order."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._paths = [folder / DOCUMENTS_FILE for folder in folders]
        counts = [pl.scan_parquet(path).select(pl.len()).collect().item() for path in self._paths]
        self._ends = np.cumsum(np.array(counts, np.int64))
        self._shard, self._texts = -1, pl.Series([""])

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: Any) -> Any:
        shard = int(np.searchsorted(self._ends, index, side="right"))
        if shard != self._shard:
            self._texts = pl.Series([""])  # before the next one is read
            self._texts = pl.scan_parquet(self._paths[shard]).select("text").collect()["text"]
            self._shard = shard
        return self._texts[int(index) - int(self._ends[shard]) + len(self._texts)]


def write_table(path: Path, table: pl.DataFrame) -> int:
    """Write any table as Parquet, whole or not at all; returns the number of rows."""
    with replacing(path) as file:
        table.write_parquet(file, compression="zstd", compression_level=3, statistics=False)
    return table.height


def read_table(path: Path) -> pl.DataFrame:
    """Read a Parquet table.

    Raises:
        UserError: missing or unreadable; the line names the file.
    """
    try:
        return pl.read_parquet(path)
    except FileNotFoundError:
        raise UserError(f"{path}: not found; materialize the asset that writes it") from None
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{path}: not a readable Parquet file ({error}); delete its folder and run again") from None
