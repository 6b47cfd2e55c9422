"""Texts to signatures and to sets of shingles on the compiled kernels: batches of texts as bytes, on threads."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cs336.dedup import compiled
from cs336.dedup.reference import hash_functions, without_marks
from cs336.filters.character_table import FINAL_SIGMA, CharacterTable
from cs336.processes import in_batches, map_threads

_BATCH_CHARS = 1_000_000  # of the texts that one thread has at a time


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
        (text.lower() if FINAL_SIGMA in text else text).encode("utf-8", "surrogatepass") for text in texts
    ]  # lower case of lower case is the same
    ends = np.cumsum(np.fromiter(map(len, parts), np.int64, len(parts)))
    # A bytearray, since the kernels are compiled for arrays that can be written.
    buffer = np.frombuffer(bytearray().join([*parts, b"\0"]), np.uint8)
    table = _characters()
    number, point = kernel(buffer, ends, 0, table.ascii, table.rows, *arguments)
    while number < len(texts):
        table.add(point)
        number, point = kernel(buffer, ends, number, table.ascii, table.rows, *arguments)


@functools.cache
def _characters() -> CharacterTable:
    return CharacterTable(_normalized)


def _normalized(character: str) -> bytes:
    """What stands for a character, wherever it stands; white space is one space."""
    kept = without_marks(character.lower())
    return "".join(" " if each.isspace() else each for each in kept).encode("utf-8", "surrogatepass")
