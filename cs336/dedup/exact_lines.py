"""Drop every line that the corpus holds more than once, all its copies.

Two passes: hash all lines and keep the hashes seen twice, then rewrite without those lines. With
64-bit hashes, 1.3e9 lines have about 0.05 expected collisions. A line's hash is `ngrams.hash_bytes` of what
stands before its terminator.
"""

from __future__ import annotations

import itertools
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cs336.dedup import compiled
from cs336.dedup.repeated import RepeatedHashes, SortedHashes, write_sorted
from cs336.files import replacing

MEMORY_BYTES = 2 << 30  # holds all lines of 3 GB of text, or of more where many repeat
_BLOCK_BYTES = 8_000_000  # of a file at a time; more where a line is longer


@dataclass(frozen=True, kw_only=True)
class LineConfig:
    """How lines are dropped.

    Attributes:
        enabled: without it no line is taken for repeated; `min_words` stays.
        exempt_blank: keep blank lines. Without it all but a lone one repeat, so paragraph gaps vanish.
        min_words: documents left with fewer words are dropped; 50 is Gopher's floor (the public
            reference run applies it again after this step). 0 drops none but those left empty.
        memory_bytes: for the table of lines, about; what does not fit goes to disk. Results do not depend on it.
    """

    enabled: bool = True
    exempt_blank: bool = False
    min_words: int = 50
    memory_bytes: int = MEMORY_BYTES


def exact_line_deduplication(
    paths: Sequence[Path | str], output_dir: Path | str, *, memory_bytes: int = MEMORY_BYTES
) -> None:
    """Rewrite each file into `output_dir`, under its own name, with only the lines the corpus holds once.

    Order and bytes of what is kept do not change, a file left without lines is written empty, and
    blank lines are lines. A line's terminator ("\\n" or "\\r\\n") does not count.

    Time grows with the length of the text; memory does not, but with the longest line. On disk, beside the output,
    lines take up to 17 bytes each while it runs.

    Args:
        memory_bytes: for the table of lines, about.

    Raises:
        ValueError: two inputs have one base name, or an output would overwrite its input.
    """
    sources = [Path(path) for path in paths]
    targets = output_targets(sources, Path(output_dir))
    with tempfile.TemporaryDirectory(prefix=".lines-", dir=output_dir) as scratch:
        dropped = _flags_of_repeated(sources, Path(scratch), memory_bytes)
        with open(dropped, "rb") as flags:
            for source, target in zip(sources, targets, strict=True):
                with replacing(target) as file:
                    for block in _blocks(source):
                        lines = _lines_of(block)
                        drop = np.fromfile(flags, np.bool_, len(lines.ends))
                        file.write(_kept(lines, drop))


def _flags_of_repeated(sources: Sequence[Path], scratch: Path, memory_bytes: int) -> Path:
    """A file with one byte for each line of all sources, in order: whether the corpus holds it more than once.

    The hashes are kept in a file in between, so that a table of repeated lines that memory does not hold is read for
    many lines at once.
    """
    (scratch / "ranges").mkdir()
    counts = RepeatedHashes(scratch / "ranges", memory_bytes)
    with open(scratch / "hashes.u64", "wb") as file:
        for block in itertools.chain.from_iterable(map(_blocks, sources)):
            hashes = _lines_of(block).hashes
            hashes.tofile(file)
            counts.add(hashes)
    write_sorted(scratch / "repeated.u64", counts.repeated())
    repeated = SortedHashes([scratch / "repeated.u64"], memory_bytes)
    with open(scratch / "hashes.u64", "rb") as file, open(scratch / "repeated.bool", "wb") as flags:
        while len(hashes := np.fromfile(file, np.uint64, repeated.queries_at_once)):
            repeated.contain(hashes).tofile(flags)
    return scratch / "repeated.bool"


def output_targets(sources: Sequence[Path], output_dir: Path) -> list[Path]:
    """Where each file goes: its base name in the output folder, which is created.

    Raises:
        ValueError: two inputs have one base name, or an output would overwrite its input.
    """
    twice = [name for name, count in Counter(path.name for path in sources).items() if count > 1]
    if twice:
        raise ValueError(f"two inputs are called {twice[0]!r}, and would overwrite each other; rename one")
    output_dir.mkdir(parents=True, exist_ok=True)
    if any(path.parent.resolve() == output_dir.resolve() for path in sources):
        raise ValueError(f"{output_dir} holds inputs; write into another folder")
    return [output_dir / path.name for path in sources]


def line_hashes(text: str) -> NDArray[np.uint64]:
    """64-bit hash of every line, in order; the same on every machine and in every run."""
    return _lines_of(bytearray(text, "utf-8", "surrogatepass")).hashes


def repeated_hashes(arrays: Iterable[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    """Sorted distinct hashes that occur at least twice in all the arrays together.

    Holds all hashes in memory: 16 bytes a line at the peak. `RepeatedHashes` finds the same in fixed memory.
    """
    hashes = np.concatenate([np.zeros(0, dtype=np.uint64), *arrays])
    hashes.sort()
    return np.unique(hashes[1:][hashes[1:] == hashes[:-1]])


def deduplicate_lines(texts: Iterable[str], repeated: SortedHashes, config: LineConfig) -> Iterator[str | None]:
    """Each text without the lines whose hash is repeated, the rest byte for byte; None when too few words are left,
    and the document is to be dropped.

    Args:
        config: its `exempt_blank` keeps lines of white space alone, whatever their count.
    """
    for batch in _batches(texts, repeated.queries_at_once):
        found = repeated.contain(np.concatenate([lines.hashes for lines in batch]))
        for lines, drop in zip(batch, np.split(found, np.cumsum([len(each.ends) for each in batch[:-1]])), strict=True):
            if config.exempt_blank:
                _exempt_blank(lines, drop)
            kept = str(_kept(lines, drop), "utf-8", "surrogatepass")
            yield kept if len(kept.split()) >= max(1, config.min_words) else None


class _Lines(NamedTuple):
    """Attributes: bytes; of each line its hash and where it ends, terminator included."""

    data: bytearray
    hashes: NDArray[np.uint64]
    ends: NDArray[np.int64]


def _lines_of(data: bytearray) -> _Lines:
    compiled.warm_up()
    num_lines = data.count(b"\n") + (not data.endswith(b"\n") and len(data) > 0)
    hashes, ends = np.empty(num_lines, np.uint64), np.empty(num_lines, np.int64)
    compiled.line_hashes(np.frombuffer(data, np.uint8), 0, len(data), hashes, ends)
    return _Lines(data, hashes, ends)


def _kept(lines: _Lines, drop: NDArray[np.bool_]) -> memoryview:
    """The bytes of the lines that are not dropped."""
    target = np.empty(len(lines.data), np.uint8)
    size = compiled.copy_kept(np.frombuffer(lines.data, np.uint8), 0, lines.ends, drop, target)
    return target[:size].data


def _exempt_blank(lines: _Lines, drop: NDArray[np.bool_]) -> None:
    """Drop no line of white space alone."""
    for number in np.flatnonzero(drop).tolist():
        start = lines.ends[number - 1] if number else 0
        drop[number] = bool(lines.data[start : lines.ends[number]].decode("utf-8", "replace").strip())


def _blocks(path: Path) -> Iterator[bytearray]:
    """A file in pieces of whole lines."""
    rest = b""
    with open(path, "rb") as file:
        # A line longer than a block: what is read doubles, so that it is not copied again and again.
        while data := file.read(max(_BLOCK_BYTES, len(rest))):
            end = data.rfind(b"\n") + 1
            if end:
                yield bytearray().join([rest, data[:end]])
            rest = data[end:] if end else rest + data
    if rest:
        yield bytearray(rest)


def _batches(texts: Iterable[str], max_lines: int) -> Iterator[list[_Lines]]:
    """Lines of texts, about `max_lines` together."""
    batch: list[_Lines] = []
    num_lines = 0
    for text in texts:
        batch.append(_lines_of(bytearray(text, "utf-8", "surrogatepass")))
        num_lines += len(batch[-1].ends)
        if num_lines >= max_lines:
            yield batch
            batch, num_lines = [], 0
    if batch:
        yield batch
