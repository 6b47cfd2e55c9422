"""Encode on the compiled kernels: many texts at once, on threads, remembering the pre-tokens seen."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from cs336.tokenizer import compiled
from cs336.tokenizer.segments import PADDING, cut_segments

_MAX_ENTRIES = 1 << 18  # pre-tokens remembered by a thread: 16 MB, nearly all of the words of a crawl's shard
_BATCH_CHARS = 1_000_000  # encoded by one call of a kernel: its ids need 4 MB at most
_ROOM_IDS = 4 * _BATCH_CHARS  # in one array for the results of several batches: 16 MB


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
        self._pairs = compiled.pair_table(*(np.ascontiguousarray(columns[:, column]) for column in range(3)))
        self._special_ids = dict(special_ids)
        self._memories, self._rooms = threading.local(), threading.local()
        self._known: tuple[Any, ...] = compiled.empty_memory()
        texts = [word.decode() for word in words if _is_text(word)]
        self._known = self._encode(texts, self._known, len(texts) + 1)[2]

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of texts, one after the other, and where each text's ids end.

        Raises:
            UnicodeEncodeError: a text holds a lone surrogate.
        """
        memory = getattr(self._memories, "memory", None)
        if memory is None:
            memory = tuple(part.copy() if isinstance(part, np.ndarray) else part for part in self._known)
        ids, ends, self._memories.memory = self._encode(texts, memory, _MAX_ENTRIES)
        return ids, ends

    def clear(self) -> None:
        """Forget the pre-tokens seen so far, except the vocabulary's own."""
        self._memories = threading.local()

    def encode_without_memory(self, text: str) -> np.ndarray:
        """Ids of one text; nothing is remembered, so that streams need no more and no more memory."""
        return self._encode([text], self._known, 0)[0]

    def encode_batches(
        self, batches: Iterable[Sequence[str]], num_threads: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """As `encode`, for each of many batches, in their order, a few of them at a time on threads."""
        if num_threads <= 1:
            yield from map(self.encode, batches)
            return
        with ThreadPoolExecutor(num_threads) as pool:
            waiting = []
            for batch in batches:
                waiting.append(pool.submit(self.encode, batch))
                if len(waiting) > 2 * num_threads:
                    yield waiting.pop(0).result()
            for future in waiting:
                yield future.result()

    def _encode(self, texts: Sequence[str], memory: tuple[Any, ...], max_entries: int) -> tuple[Any, Any, Any]:
        segments = cut_segments(texts, self._special_ids)
        num_ids = len(segments.buffer) + PADDING
        room = self._room(num_ids) if max_entries else np.empty(num_ids, np.uint32)
        segment_ends = np.empty(len(segments.starts), np.int64)
        number, *memory = compiled.encode_segments(
            segments.buffer,
            segments.starts,
            segments.ends,
            segments.specials,
            compiled.classes(),
            self._pairs,
            self._byte_ids,
            max_entries,
            *memory,
            room,
            segment_ends,
        )
        if max_entries:
            self._rooms.room = room[number:]
        return room[:number], segment_ends[segments.last_of_text], tuple(memory)

    def _room(self, num_ids: int) -> np.ndarray:
        """Where a batch's ids can be written: the rest of a large array of this thread, or a new one.

        Large ones, since the system gives out their memory in large pages; a fresh array for each batch would
        cost nearly as much as encoding it.
        """
        room: np.ndarray | None = getattr(self._rooms, "room", None)
        if room is None or len(room) < num_ids:
            room = np.empty(max(num_ids, _ROOM_IDS), np.uint32)
        return room


def batches_of(texts: Iterable[str]) -> Iterator[list[str]]:
    """Texts in batches of about a million characters, in their order."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _BATCH_CHARS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _is_text(word: bytes) -> bool:
    try:
        word.decode()
    except UnicodeDecodeError:
        return False
    return True
