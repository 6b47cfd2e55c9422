"""Encode on the compiled kernels: many texts at once, on threads, remembering the pre-tokens seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from cs336.processes import in_batches
from cs336.tokenizer import compiled
from cs336.tokenizer.segments import PADDING, Segments, cut_segments, file_ranges, read_segments

_MAX_ENTRIES = 1 << 18  # pre-tokens remembered by a thread: 32 MB, nearly all of the words of a crawl's shard
_BATCH_CHARS = 1_000_000  # encoded at once: its ids need 4 MB of room, 16 MB for an alphabet of 4-byte characters
_RANGE_BYTES = 2_000_000  # of a file, the same
_ROOM_IDS = 4 * _BATCH_CHARS  # in one array for the results of several batches: 16 MB

T = TypeVar("T")
U = TypeVar("U")


class _Memory(NamedTuple):
    """What one thread at a time works with.

    Attributes:
        known: the pre-tokens seen, as the kernels take them.
        room: the rest of a large array, for ids. A large one, since the system gives out its memory in large
            pages; fresh arrays for all batches would cost nearly as much as encoding.
    """

    known: tuple[Any, ...]
    room: np.ndarray


class Encoder:
    """The compiled form of a vocabulary.

    Args:
        byte_ids: id of each single byte.
        merges: (left id, right id, merged id) in order.
        special_ids: UTF-8 bytes and id of each special token.
        words: tokens to remember from the start.
    """

    def __init__(
        self,
        byte_ids: Sequence[int],
        merges: Sequence[tuple[int, int, int]],
        special_ids: Mapping[bytes, int],
        words: Iterable[bytes],
    ) -> None:
        compiled.warm_up()
        self._byte_ids = np.array(byte_ids, np.uint32)
        columns = np.array(merges, np.int64).reshape(-1, 3)
        lefts, rights, merged = np.ascontiguousarray(columns.T)
        self._merged = merged.astype(np.uint32)
        self._special_ids = dict(special_ids)
        self._memories: list[_Memory] = []  # those that no thread works with now
        self._known: tuple[Any, ...] = compiled.empty_memory()
        texts = [word.decode() for word in words if _is_text(word)]
        with compiled.announced():
            self._pairs = compiled.pair_table(lefts, rights)
            self._byte_ranks = compiled.ranks_of_bytes(self._pairs, self._byte_ids)
            self._known = self._encode(cut_segments(texts, self._special_ids), self._known, len(texts) + 1)[2]

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of texts, one after the other, and where each text's ids end.

        Raises:
            UnicodeEncodeError: a text holds a lone surrogate.
        """
        return self._encode_and_remember(cut_segments(texts, self._special_ids))

    def clear(self) -> None:
        """Forget the pre-tokens seen so far, except the vocabulary's own."""
        self._memories = []

    def encode_without_memory(self, text: str) -> np.ndarray:
        """Ids of one text; nothing is remembered, so that streams need no more and no more memory."""
        return self._encode(cut_segments([text], self._special_ids), self._known, 0)[0]

    def encode_batches(
        self, batches: Iterable[Sequence[str]], num_threads: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """As `encode`, for each of many batches, in their order, a few of them at a time on threads."""
        return _map_ordered(self.encode, batches, num_threads)

    def encode_files(self, paths: Sequence[Path], num_threads: int) -> Iterator[np.ndarray]:
        """Ids of UTF-8 files, an array a file, in their order; many ranges of them at a time on threads.

        Raises:
            UserError: a file is not UTF-8.
        """
        specials = list(self._special_ids)
        ranges = [
            (path, start, end)
            for path in paths
            for start, end in [*file_ranges(path, specials, _RANGE_BYTES)] or [(0, 0)]  # also for an empty file
        ]
        parts: list[np.ndarray] = []
        for (path, _, end), ids in zip(ranges, _map_ordered(self._encode_range, ranges, num_threads), strict=True):
            parts.append(ids)
            if end == path.stat().st_size:
                yield np.concatenate(parts)
                parts = []

    def _encode_range(self, place: tuple[Path, int, int]) -> np.ndarray:
        return self._encode_and_remember(read_segments(*place, self._special_ids))[0]

    def _encode_and_remember(self, segments: Segments) -> tuple[np.ndarray, np.ndarray]:
        try:
            memory = self._memories.pop()
        except IndexError:
            known = tuple(part.copy() if isinstance(part, np.ndarray) else part for part in self._known)
            memory = _Memory(known, np.empty(0, np.uint32))
        num_ids = len(segments.buffer) + PADDING
        room = memory.room if len(memory.room) >= num_ids else np.empty(max(num_ids, _ROOM_IDS), np.uint32)
        ids, ends, known = self._encode(segments, memory.known, _MAX_ENTRIES, room)
        self._memories.append(_Memory(known, room[len(ids) :]))
        return ids, ends

    def _encode(
        self, segments: Segments, known: tuple[Any, ...], max_entries: int, room: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, tuple[Any, ...]]:
        if room is None:
            room = np.empty(len(segments.buffer) + PADDING, np.uint32)
        segment_ends = np.empty(len(segments.starts), np.int64)
        if not len(segments.starts):
            return room[:0], segment_ends, known
        segment, place, number = 0, int(segments.starts[0]), 0
        while True:
            segment, place, number, num_entries, num_texts, num_kept = compiled.encode_segments(
                segments.buffer,
                segments.starts,
                segments.ends,
                segments.specials,
                compiled.classes(),
                self._pairs,
                self._merged,
                self._byte_ids,
                self._byte_ranks,
                max_entries,
                *known,
                room,
                segment_ends,
                segment,
                place,
                number,
            )
            known = (known[0], num_entries, known[2], num_texts, known[4], num_kept)
            if segment == len(segments.starts):
                return room[:number], segment_ends[segments.last_of_text], known
            known = compiled.grown_memory(*known)


def _map_ordered(work: Callable[[T], U], items: Iterable[T], num_threads: int) -> Iterator[U]:
    """`work` of each item, in their order; a few of them at a time on threads."""
    if num_threads <= 1:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(num_threads) as pool:
        waiting: list[Future[U]] = []
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > 2 * num_threads:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()


def batches_of(texts: Iterable[str]) -> Iterator[list[str]]:
    """Texts in batches of about a million characters, in their order."""
    return in_batches(texts, len, _BATCH_CHARS)


def _is_text(word: bytes) -> bool:
    try:
        word.decode()
    except UnicodeDecodeError:
        return False
    return True
