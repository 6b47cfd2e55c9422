"""Texts to signatures and to sets of shingles on the compiled kernels: batches of texts as bytes, on threads."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cs336.dedup import compiled
from cs336.dedup.reference import hash_functions, without_marks
from cs336.processes import in_batches, map_threads

_BATCH_CHARS = 1_000_000  # of the texts that one thread has at a time
_BLOCK = 256  # code points that enter the table together
_FINAL_SIGMA = "\u03a3"  # the one letter whose lower case depends on its neighbours


def signatures_of(
    texts: Iterable[str], *, n: int, num_hashes: int, seed: int, num_threads: int = 1
) -> Iterator[NDArray[np.uint32]]:
    """Signatures of texts, in order, in batches of rows: (some documents, num_hashes) each.

    The same whatever the number of threads.
    """
    functions = hash_functions(num_hashes, seed)
    compiled.warm_up()
    return map_threads(
        functools.partial(_signatures, n=n, functions=functions),
        in_batches(texts, len, _BATCH_CHARS),
        num_threads=num_threads,
    )


def _signatures(texts: Sequence[str], *, n: int, functions: tuple[Any, Any]) -> NDArray[np.uint32]:
    rows = np.empty((len(texts), len(functions[0])), np.uint32)
    _run(compiled.sign, texts, n, *functions, rows)
    return rows


def shingle_sets(texts: Iterable[str], n: int, *, num_threads: int = 1) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """The distinct shingles of each text, sorted, one text after the other; and where each text's end.

    8 bytes a shingle: about one and a half times the texts.
    """
    compiled.warm_up()
    found = list(
        map_threads(functools.partial(_sets, n=n), in_batches(texts, len, _BATCH_CHARS), num_threads=num_threads)
    )
    begins = np.cumsum([0, *(len(sets) for sets, _ in found)])
    sets = np.concatenate([np.empty(0, np.uint64), *(sets for sets, _ in found)])
    ends = [own + begin for (_, own), begin in zip(found, begins.tolist(), strict=False)]
    return sets, np.concatenate([np.empty(0, np.int64), *ends])


def _sets(texts: Sequence[str], *, n: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    room = np.empty(sum(map(len, texts)) + 2 * len(texts), np.uint64)  # a word has a character, at least
    ends = np.empty(len(texts), np.int64)
    _run(compiled.shingle_sets, texts, n, room, ends)
    return room[: ends[-1] if len(ends) else 0].copy(), ends


def _run(kernel: Callable[..., tuple[int, int]], texts: Sequence[str], *arguments: Any) -> None:
    """Have a kernel work on texts, and fill the table of characters as far as it asks for that."""
    parts = [
        (text.lower() if _FINAL_SIGMA in text else text).encode("utf-8", "surrogatepass") for text in texts
    ]  # lower case of lower case is the same
    ends = np.cumsum(np.fromiter(map(len, parts), np.int64, len(parts)))
    # A bytearray, since the kernels are compiled for arrays that can be written.
    buffer = np.frombuffer(bytearray().join([*parts, b"\0"]), np.uint8)
    number, point = kernel(buffer, ends, 0, _ascii(), _characters(), *arguments)
    while number < len(texts):
        _add_block(_characters(), point)
        number, point = kernel(buffer, ends, number, _ascii(), _characters(), *arguments)


@functools.cache
def _ascii() -> NDArray[np.uint8]:
    """What stands for each ASCII character after normalization: one, a space, or nothing."""
    table = np.empty(128, np.uint8)
    for point in range(128):
        kept = _normalized(chr(point))
        table[point] = kept[0] if kept else compiled.DROPPED
    return table


@functools.cache
def _characters() -> NDArray[np.uint8]:
    """A row for each code point: the bytes that stand for it, and one more than their number at the end (0: unknown).

    Rows are written by blocks, when needed; threads that write the same block write the same. Memory that no
    block has touched is not there yet.
    """
    return np.zeros((0x110000, compiled.CHARACTER_BYTES + 1), np.uint8)


def _add_block(table: NDArray[np.uint8], point: int) -> None:
    first = point - point % _BLOCK
    rows = np.zeros((_BLOCK, compiled.CHARACTER_BYTES + 1), np.uint8)
    for offset in range(_BLOCK):
        kept = _normalized(chr(first + offset))
        rows[offset, : len(kept)] = np.frombuffer(kept, np.uint8)
        rows[offset, compiled.CHARACTER_BYTES] = 1 + len(kept)
    table[first : first + _BLOCK, :-1] = rows[:, :-1]
    table[first : first + _BLOCK, -1] = rows[:, -1]  # last: from here on other threads read the row


def _normalized(character: str) -> bytes:
    """What stands for a character, wherever it stands; white space is one space."""
    kept = without_marks(character.lower())
    return "".join(" " if each.isspace() else each for each in kept).encode("utf-8", "surrogatepass")
