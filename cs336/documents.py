"""Documents between the stages: one Parquet file a shard, each row traceable to its WARC record."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import polars as pl

from cs336.files import UserError, replacing

DOCUMENTS_FILE = "documents.parquet"


class Document(NamedTuple):
    """One text and where it came from.

    Attributes:
        id: the WARC-Record-ID of the record it was read from.
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
