"""Readers of the benchmark data sets, in their original form, a mirror's, or the hub's.

A benchmark with a question missing is another benchmark: a row that cannot be read is an error that
names file and line, never a skipped row.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import lzma
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cs336.files import UserError

_MMLU_SPLITS = {"dev": "dev", "val": "val", "validation": "val", "test": "test"}
_SUFFIXES = ("", ".gz", ".xz")


def read_gsm8k(path: Path, split: str) -> list[dict[str, str]]:
    """GSM8K problems: `question`, and `answer` whose last line is `#### <number>`.

    Args:
        path: the folder of `train.jsonl` and `test.jsonl` (compressed or not), or one such file.
        split: "train" (7,473 problems) or "test" (1,319); of a single file it is not looked at.

    Raises:
        UserError: file missing, or a row without question or answer.
    """
    rows = []
    for place, row in _json_rows(_file_of(path, f"{split}.jsonl")):
        rows.append({"question": _text(row, "question", place), "answer": _text(row, "answer", place)})
    return rows


def read_paloma(path: Path) -> Iterator[tuple[str, str]]:
    """Documents of one source of Paloma, as (place, text): those of its validation split, else of all files.

    Args:
        path: a folder of JSON Lines files, compressed or not, with the field `text`.

    Raises:
        UserError: no file, or a row without text.
    """
    files = sorted(each for each in path.rglob("*") if ".jsonl" in each.name)
    files = [each for each in files if "val" in str(each.relative_to(path))] or files
    if not files:
        raise UserError(f"{path}: holds no JSON Lines files; run `cs336 data fetch paloma-c4-100`")
    for file in files:
        for number, (place, row) in enumerate(_json_rows(file)):
            yield f"{file.relative_to(path)}#{number}", _text(row, "text", place)


def read_mmlu(path: Path, split: str) -> list[dict[str, Any]]:
    """MMLU questions by subject in alphabetical order: `subject`, `question`, `options`, `answer`.

    Args:
        path: a tar archive or a folder of header-less CSV files `<split>/<subject>_<split>.csv` (the
            original form), or a folder of the hub's Parquet files.
        split: "dev" (285 questions: five per subject, for prompts), "val" or "validation" (1,531), or
            "test" (14,042).

    Returns:
        subject with spaces, not underscores; four options; answer "A", "B", "C" or "D".

    Raises:
        ValueError: no such split.
        UserError: nothing of this split there, or a row without four options and a letter.
    """
    if split not in _MMLU_SPLITS:
        raise ValueError(f"MMLU has no split {split!r}; choose dev, val or test")
    short = _MMLU_SPLITS[split]
    if path.is_dir():
        parquet = [each for each in path.rglob("*.parquet") if each.name.startswith(short)]
        if parquet:
            return _mmlu_from_parquet(sorted(parquet))
        files: Iterable[tuple[str, str]] = (
            (each.name, each.read_text(encoding="utf-8")) for each in path.rglob(f"*_{short}.csv")
        )
    else:
        files = _texts_of_archive(path, f"_{short}.csv")
    rows: list[dict[str, Any]] = []
    for name, text in sorted(files):
        subject = name.removesuffix(f"_{short}.csv").replace("_", " ")
        for number, fields in enumerate(csv.reader(io.StringIO(text, newline="")), 1):
            if len(fields) != 6 or fields[5].strip() not in ("A", "B", "C", "D"):
                raise UserError(f"{path}: {name}, row {number}: not a question, four options and a letter A-D")
            rows.append(
                {"subject": subject, "question": fields[0], "options": fields[1:5], "answer": fields[5].strip()}
            )
    if not rows:
        raise UserError(f"{path}: holds no MMLU questions of split {split}; run `cs336 data fetch mmlu`")
    return rows


def read_simple_safety_tests(path: Path) -> list[dict[str, str]]:
    """SimpleSafetyTests, 100 prompts: `id`, `harm_area`, `counter`, `category`, `prompt`.

    Raises:
        UserError: file missing, or without these columns.
    """
    with open_text(path) as lines:
        rows = list(csv.DictReader(lines))
    columns = ("id", "harm_area", "counter", "category", "prompts_final")
    if not rows or any(not row.get(column) for row in rows for column in columns):
        raise UserError(f"{path}: not SimpleSafetyTests: every row needs {', '.join(columns)}")
    names = (*columns[:-1], "prompt")
    return [{name: row[column] for name, column in zip(names, columns, strict=True)} for row in rows]


def read_alpaca_eval(path: Path) -> list[dict[str, str]]:
    """AlpacaEval, 805 instructions: `instruction`, reference `output`, its `generator`, and `dataset`.

    The output belongs to an old reference model: whoever evaluates writes their own over it.

    Args:
        path: JSON Lines, compressed or not, or the origin's single JSON list.

    Raises:
        UserError: file missing, or a row without one of the four fields.
    """
    fields = ("instruction", "output", "generator", "dataset")
    return [{field: _text(row, field, place) for field in fields} for place, row in _json_rows(path)]


def open_text(path: Path) -> io.TextIOBase:
    """Open UTF-8 text, plain, `.gz` or `.xz`.

    Raises:
        UserError: no such file.
    """
    try:
        if path.suffix == ".gz":
            return io.TextIOWrapper(gzip.open(path), encoding="utf-8", newline="")
        if path.suffix == ".xz":
            return io.TextIOWrapper(lzma.open(path), encoding="utf-8", newline="")
        return open(path, encoding="utf-8", newline="")
    except FileNotFoundError:
        raise UserError(f"{path}: not found") from None


def _file_of(path: Path, name: str) -> Path:
    if not path.is_dir():
        return path
    for suffix in _SUFFIXES:
        if (path / (name + suffix)).exists():
            return path / (name + suffix)
    raise UserError(f"{path}: holds no {name}, compressed or not")


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Rows of JSON Lines, or of one JSON list, each with its place for messages."""
    with open_text(path) as file:
        first = file.read(1)
        file.seek(0)
        try:
            if first == "[":
                yield from ((f"{path}: item {number}", row) for number, row in enumerate(json.load(file), 1))
                return
        except json.JSONDecodeError as error:
            raise UserError(f"{path}: not valid JSON ({error.msg})") from None
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield f"{path}:{number}", json.loads(line)
                except json.JSONDecodeError as error:
                    raise UserError(f"{path}:{number}: not valid JSON ({error.msg})") from None


def _text(row: Any, field: str, place: str) -> str:
    value = row.get(field) if isinstance(row, dict) else None
    if not isinstance(value, str):
        raise UserError(f"{place}: no text field {field!r}")
    return value


def _texts_of_archive(path: Path, ending: str) -> Iterator[tuple[str, str]]:
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                file = archive.extractfile(member) if member.isfile() and member.name.endswith(ending) else None
                if file is not None:
                    yield Path(member.name).name, file.read().decode("utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: not found") from None
    except (tarfile.TarError, lzma.LZMAError, EOFError, OSError) as error:
        raise UserError(f"{path}: not a readable tar archive ({error}); fetch it again") from None


def _mmlu_from_parquet(paths: list[Path]) -> list[dict[str, Any]]:
    import polars as pl  # only this form needs it, and the machine that trains may lack it

    rows = []
    for path in paths:
        for row in pl.read_parquet(path).iter_rows(named=True):
            if len(row["choices"]) != 4 or row["answer"] not in range(4):
                raise UserError(f"{path}: a row without four choices and an answer 0-3")
            rows.append(
                {
                    "subject": row["subject"].replace("_", " "),
                    "question": row["question"],
                    "options": list(row["choices"]),
                    "answer": "ABCD"[row["answer"]],
                }
            )
    return sorted(rows, key=lambda row: row["subject"])  # stable: a subject's questions keep their order
