"""Labels and probabilities of fastText's supervised models, equal to fastText's own and several times faster.

The package `fasttext` trains the models and is the oracle of the tests. Of a text it takes a stream of words, and of
each word its row, and rows for every run of its characters; the mean of these rows, times the output matrix, gives
the labels' scores.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cs336.filters import fasttext_kernels as kernels
from cs336.filters.fasttext_file import read_fasttext

_NUM_SEEN, _ROWS_OF_A_WORD = 1 << 15, 15  # words whose rows are remembered: 2.4 MB; few have more rows


class FastTextModel:
    """A supervised model, of the loss "hs" (hierarchical softmax, as lid.176) or "softmax".

    Attributes:
        labels: in the file's order, with their `__label__`.

    Raises:
        ValueError: no such model, or of another loss.
        OSError: as of opening the file.
    """

    def __init__(self, path: Path) -> None:
        file = read_fasttext(path)
        if file.loss not in ("hs", "softmax"):
            raise ValueError(f"its loss is {file.loss}; classifiers of hs or softmax can be read")
        kernels.warm_up()
        self.labels = file.labels
        entries = [*file.words, *(label.encode() for label in file.labels)]
        words = np.frombuffer(bytearray(b"".join(entries)), np.uint8)
        ends = np.cumsum(np.fromiter(map(len, entries), np.int64, len(entries)))
        self._vocabulary = words, ends, kernels.word_table(words, ends)
        has_buckets = file.bucket_rows is None or bool((file.bucket_rows >= 0).any())
        max_chars, word_ngrams = (file.max_chars, file.word_ngrams) if has_buckets else (0, 1)
        self._settings = len(file.words), file.num_buckets, file.min_chars, max_chars, word_ngrams
        self._weights, self._buckets = file.input, (np.zeros(0, np.uint32), np.zeros(0, np.int32))
        if file.bucket_rows is not None:
            self._weights, self._buckets = _by_bucket(file.input, len(file.words), file.bucket_rows)
        self._seen = np.zeros(_NUM_SEEN, np.uint64), np.zeros((_NUM_SEEN, 1 + _ROWS_OF_A_WORD), np.int32)
        self._output = np.array(file.output)
        self._tree = huffman_tree(file.label_counts) if file.loss == "hs" else None

    def log_probabilities(self, text: str) -> NDArray[np.float32] | None:
        """Of each label, in float32 and with fastText's additions: log(p + 1e-5) at each turn.

        The whole text is one line; lone surrogates count as question marks.

        Returns:
            -inf for a label below 1e-5 in hierarchical softmax; None where the model knows no word of the text.
        """
        data = utf8(text)
        rows = np.empty(self._num_rows_at_most(len(data)), np.int32)
        buffer = np.frombuffer(bytearray(b" %b   " % data), np.uint8)
        num_rows = kernels.text_rows(buffer, self._vocabulary, self._settings, self._buckets, self._seen, rows)
        if not num_rows:
            return None
        hidden = kernels.mean_row(self._weights, rows[:num_rows])
        scores = np.empty(len(self.labels), np.float32)
        if self._tree is not None:
            kernels.tree_scores(hidden, self._output, self._tree, scores)
        else:
            kernels.softmax_scores(hidden, self._output, scores)
        return scores

    def _num_rows_at_most(self, num_bytes: int) -> int:
        """Of a text of so many bytes. Memory that no row comes to is never touched."""
        _, _, min_chars, max_chars, word_ngrams = self._settings
        num_words = num_bytes // 2 + 2  # a space stands between two; the line's end
        num_chars = num_bytes + 2 * num_words  # with brackets
        return num_words * max(1, word_ngrams) + num_chars * max(0, max_chars - max(1, min_chars) + 1)


def _by_bucket(
    weights: NDArray[np.float32], num_words: int, bucket_rows: NDArray[np.int32]
) -> tuple[NDArray[np.float32], tuple[NDArray[np.uint32], NDArray[np.int32]]]:
    """A pruned model's matrix, its rows in the order of their buckets; and the `buckets` of the kernels.

    A bit for each bucket fits in a processor's cache, where a number for each of two million would not.
    """
    is_left = np.pad(bucket_rows >= 0, (0, -len(bucket_rows) % 32))
    before = np.cumsum(is_left.reshape(-1, 32).sum(1)) - is_left.reshape(-1, 32).sum(1)
    rows = num_words + bucket_rows[bucket_rows >= 0]
    ordered = weights[np.concatenate([np.arange(num_words), rows])]
    return ordered, (np.packbits(is_left, bitorder="little").view(np.uint32), before.astype(np.int32))


def utf8(text: str) -> bytes:
    """The text in UTF-8; lone surrogates, which have no such form, become question marks."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="replace")


def huffman_tree(counts: NDArray[np.int64]) -> NDArray[np.int32]:
    """Children of each node of the labels' Huffman tree: (2 labels - 1, 2), labels first, the root last.

    The counts fall, as fastText sorts its labels; of two nodes as frequent, the inner one is taken first.
    """
    num_labels = len(counts)
    totals = [*counts.tolist(), *[10**15] * max(0, num_labels - 1)]
    children = np.full((len(totals), 2), -1, np.int32)
    leaf, inner = num_labels - 1, num_labels
    for node in range(num_labels, len(totals)):
        for side in range(2):
            if leaf >= 0 and totals[leaf] < totals[inner]:
                children[node, side], leaf = leaf, leaf - 1
            else:
                children[node, side], inner = inner, inner + 1
        totals[node] = totals[children[node, 0]] + totals[children[node, 1]]
    return children
