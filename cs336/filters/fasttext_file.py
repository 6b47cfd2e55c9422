"""fastText's supervised models, read from its own files: `.bin`, and `.ftz` as `quantize` writes them.

A file is, in the order of its bytes (little-endian, nothing aligned): two magic numbers; the settings; the dictionary
with words, labels and, of a pruned model, which buckets are left; the input matrix, a row a word and then a row a
bucket; the output matrix. A quantised matrix holds one byte for a few numbers of a row: which of 256 centroids stands
for them; the rows' norms are kept apart, quantised too. All matrices come out as float32: a quantised one takes rows x
dim x 4 bytes of memory, and any other stays in the file, of which the processes of a machine share one copy.

Source: Joulin et al. 2016, arXiv:1612.03651 (quantisation); the layout is what fastText 0.9.2 writes (version 12).
"""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_MAGIC, _VERSION, _OLD_VERSION = 793712314, 12, 11
_SUPERVISED = 3
_LOSSES = {1: "hs", 2: "ns", 3: "softmax", 4: "ova"}
_CENTROIDS = 256


class FastTextFile(NamedTuple):
    """What a file holds.

    Attributes:
        word_ngrams: the longest run of words that has a bucket of its own; 1 is none.
        num_buckets: of hashed character and word n-grams.
        min_chars, max_chars: of the character n-grams of a word, its two brackets included; max_chars 0 is none.
        loss: "hs" for hierarchical softmax, "softmax", "ns", or "ova".
        words, labels: UTF-8, in the order of their rows; labels with their `__label__`.
        label_counts: how often each was seen in training; the tree of hierarchical softmax is made of them.
        bucket_rows: rows of a pruned model's buckets, counted from the first bucket, -1 where one was pruned;
            None where none was.
        input: (words and buckets, dim); unless quantised a view of the mapped file, read-only and not aligned.
        output: (labels, dim), likewise; for "hs" of the tree's inner nodes.
    """

    word_ngrams: int
    num_buckets: int
    min_chars: int
    max_chars: int
    loss: str
    words: list[bytes]
    labels: list[str]
    label_counts: NDArray[np.int64]
    bucket_rows: NDArray[np.int32] | None
    input: NDArray[np.float32]
    output: NDArray[np.float32]


def read_fasttext(path: Path) -> FastTextFile:
    """Read a model, whose file must stay as it is for as long as the result is used (replaced by a rename, it does).

    Raises:
        ValueError: no supervised fastText model, or a truncated one.
        OSError: as of opening the file.
    """
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise ValueError("it is truncated: empty")
        reader = _Reader(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    magic, version = reader.take("<ii")
    if magic != _MAGIC or version not in (_VERSION, _OLD_VERSION):
        raise ValueError(f"it begins with {magic}, {version}; fastText writes {_MAGIC}, {_VERSION}")
    dim, _, _, _, _, word_ngrams, loss, kind, num_buckets, min_chars, max_chars, _, _ = reader.take("<12id")
    if kind != _SUPERVISED or loss not in _LOSSES:
        raise ValueError(f"it is of kind {kind} and loss {loss}; a classifier is of kind {_SUPERVISED}")
    words, labels, label_counts, pruned = _dictionary(reader)
    is_quantised = reader.take("<?")[0]
    weights = reader.quantised_matrix() if is_quantised else reader.matrix()
    output = reader.quantised_matrix() if reader.take("<?")[0] and is_quantised else reader.matrix()
    num_rows = len(words) + (num_buckets if pruned is None else len(pruned))
    if weights.shape != (num_rows, dim) or output.shape != (len(labels), dim):
        raise ValueError(f"matrices of {weights.shape} and {output.shape}, not {(num_rows, dim), (len(labels), dim)}")
    if num_buckets <= 0 and (word_ngrams > 1 or max_chars > 0):
        raise ValueError(f"{num_buckets} buckets for n-grams")
    bucket_rows = None
    if pruned is not None:
        if len(pruned) and not (_within(pruned["bucket"], num_buckets) and _within(pruned["row"], len(pruned))):
            raise ValueError("buckets or rows beyond the last")
        bucket_rows = np.full(num_buckets, -1, np.int32)
        bucket_rows[pruned["bucket"]] = pruned["row"]
    return FastTextFile(
        word_ngrams=word_ngrams,
        num_buckets=num_buckets,
        min_chars=min_chars,
        max_chars=max_chars if version == _VERSION else 0,  # classifiers had no character n-grams then
        loss=_LOSSES[loss],
        words=words,
        labels=labels,
        label_counts=label_counts,
        bucket_rows=bucket_rows,
        input=weights,
        output=output,
    )


def _within(values: NDArray[np.int32], size: int) -> bool:
    return bool(values.min() >= 0 and values.max() < size)


def _dictionary(reader: _Reader) -> tuple[list[bytes], list[str], NDArray[np.int64], NDArray[np.void] | None]:
    """Words; labels and their counts; pairs of bucket and row that pruning left, or None."""
    size, num_words, num_labels, _, num_pruned = reader.take("<iiiqq")
    if size != num_words + num_labels:
        raise ValueError(f"{size} words, of them {num_words} words and {num_labels} labels")
    words: list[bytes] = []
    labels: list[str] = []
    counts: list[int] = []
    for _ in range(size):
        word = reader.string()
        count, is_label = reader.take("<qb")
        if is_label:
            labels.append(word.decode(errors="replace"))
            counts.append(count)
        else:
            words.append(word)
    if (len(words), len(labels)) != (num_words, num_labels):
        raise ValueError(f"{len(words)} words and {len(labels)} labels, announced {num_words} and {num_labels}")
    pruned = None if num_pruned < 0 else reader.array([("bucket", "<i4"), ("row", "<i4")], num_pruned)
    return words, labels, np.array(counts, np.int64), pruned


class _Reader:
    """Takes one thing after the other from a mapped file."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._place = 0

    def take(self, form: str) -> tuple:
        size = struct.calcsize(form)
        if self._place + size > len(self._data):
            raise ValueError("it is truncated")
        values = struct.unpack_from(form, self._data, self._place)
        self._place += size
        return values

    def string(self) -> bytes:
        end = self._data.find(b"\0", self._place)
        if end < 0:
            raise ValueError("it is truncated")
        found = self._data[self._place : end]
        self._place = end + 1
        return found

    def array(self, dtype: object, count: int) -> NDArray:
        kind = np.dtype(dtype)  # type: ignore[call-overload]
        if count < 0 or self._place + kind.itemsize * count > len(self._data):
            raise ValueError("it is truncated")
        found = np.frombuffer(self._data, kind, count, self._place)
        self._place += kind.itemsize * count
        return found

    def matrix(self) -> NDArray[np.float32]:
        num_rows, num_columns = self.take("<qq")
        return self.array("<f4", num_rows * num_columns).reshape(num_rows, num_columns)

    def quantised_matrix(self) -> NDArray[np.float32]:
        has_norms, num_rows, num_columns, num_codes = self.take("<?qqi")
        codes = self.array("<u1", num_codes)
        weights = self._decoded(codes.reshape(num_rows, -1), num_columns)
        if has_norms:
            norm_codes = self.array("<u1", num_rows)
            weights *= self._decoded(norm_codes.reshape(num_rows, 1), 1)
        return weights

    def _decoded(self, codes: NDArray[np.uint8], num_columns: int) -> NDArray[np.float32]:
        """Rows of centroids, whose table comes here: a code stands for `width` columns, the last for what is left."""
        dim, num_parts, width, last_width = self.take("<4i")
        if (dim, num_parts) != (num_columns, codes.shape[1]) or (num_parts - 1) * width + last_width != dim:
            raise ValueError(f"{dim} columns in {num_parts} parts of {width} and {last_width}; codes {codes.shape}")
        centroids = self.array("<f4", dim * _CENTROIDS)
        rows = np.empty((len(codes), dim), np.float32)
        for part in range(num_parts):
            size = last_width if part == num_parts - 1 else width
            begin = part * _CENTROIDS * width
            table = centroids[begin : begin + _CENTROIDS * size].reshape(_CENTROIDS, size)
            rows[:, part * width : part * width + size] = table[codes[:, part]]
        return rows
