"""Does a text hold evaluation questions? Exact overlap of word n-grams.

n = 13 is GPT-3's choice (Brown et al. 2020, arXiv:2005.14165, appendix C), since then the usual one.
"""

from __future__ import annotations

import functools
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cs336.files import UserError, replacing
from cs336.filters.character_table import CharacterTable
from cs336.filters.ngrams import ngram_hashes, span_hashes, word_hashes
from cs336.filters.overlap import overlaps, table_of, words_and_lines

_NOT_WORD = re.compile(r"(?:[^\w\n]|_)+")
_ASCII_WORDS = bytes(ord(c.lower()) if c.isalnum() or c == "\n" else 32 for c in map(chr, range(128))) + bytes(128)
_MAX_EVALS = 64  # one bit each
_FORMAT = 2  # of the file: 1 had other hashes


class EvalIndex:
    """Hashes of every n-gram of every evaluation text, with the evaluations that it occurs in.

    A text shorter than n words has no n-gram: it is remembered whole, and matches only a whole line
    or a whole document, so that a short question does not hit the common phrases inside it. Whole
    longer texts are remembered too, which tells a copied document from one that quotes. N-grams of
    numbers alone are left out.

    Attributes:
        n: words in an n-gram.
        evals: names of the evaluations, sorted.
        num_ngrams: distinct hashes of n-grams.
        num_short: distinct hashes of texts shorter than n words.
        num_empty: texts without a word, which cannot match anything.
    """

    def __init__(
        self,
        *,
        n: int,
        evals: tuple[str, ...],
        ngrams: NDArray[np.uint64],
        ngram_evals: NDArray[np.uint64],
        short: NDArray[np.uint64],
        short_evals: NDArray[np.uint64],
        whole: NDArray[np.uint64],
        whole_evals: NDArray[np.uint64],
        num_empty: int = 0,
    ) -> None:
        self.n = n
        self.evals = evals
        self.num_empty = num_empty
        self._ngrams = table_of(ngrams, ngram_evals)
        self._short = table_of(short, short_evals)
        self._whole, self._whole_evals = whole, whole_evals

    @property
    def num_ngrams(self) -> int:
        return len(self._ngrams.hashes)

    @property
    def num_short(self) -> int:
        return len(self._short.hashes)

    @classmethod
    def build(cls, texts_by_eval: Mapping[str, Iterable[str]], n: int = 13) -> EvalIndex:
        """Index the texts of each evaluation.

        Raises:
            ValueError: n below 1, or more than 64 evaluations.
        """
        if n < 1:
            raise ValueError(f"n-grams need n of at least 1, got {n}")
        if len(texts_by_eval) > _MAX_EVALS:
            raise ValueError(f"an index holds at most {_MAX_EVALS} evaluations, got {len(texts_by_eval)}; split it")
        evals = tuple(sorted(texts_by_eval))
        long: list[list[NDArray[np.uint64]]] = [[] for _ in evals]
        short: list[list[NDArray[np.uint64]]] = [[] for _ in evals]
        whole: list[list[NDArray[np.uint64]]] = [[] for _ in evals]
        num_empty = 0
        for number, name in enumerate(evals):
            for text in texts_by_eval[name]:
                words = _only_words(text).split()
                hashes = word_hashes(words)
                if not len(hashes):
                    num_empty += 1
                elif len(hashes) < n:
                    short[number].append(ngram_hashes(hashes, len(hashes)))
                else:
                    long[number].append(ngram_hashes(hashes, n)[_holds_a_word(words, n)])
                    whole[number].append(ngram_hashes(hashes, len(hashes)))
        ngrams, ngram_evals = _with_bits(long)
        shorts, short_evals = _with_bits(short)
        wholes, whole_evals = _with_bits(whole)
        return cls(
            n=n,
            evals=evals,
            ngrams=ngrams,
            ngram_evals=ngram_evals,
            short=shorts,
            short_evals=short_evals,
            whole=wholes,
            whole_evals=whole_evals,
            num_empty=num_empty,
        )

    def count(self, text: str) -> dict[str, int]:
        """For each evaluation that the text overlaps with, how many of its n-grams, lines or wholes match."""
        return self._by_eval(self._hits(text))

    def num_hits(self, text: str) -> int:
        """How many n-grams (by position), short lines or wholes match any evaluation."""
        return len(self._hits(text))

    def copies(self, text: str) -> tuple[str, ...]:
        """Evaluations of which this whole document is one text, word for word; most often none."""
        hashes, _ = words_and_lines(text, _words())
        if not len(hashes):
            return ()
        tables = self._short[:2] if len(hashes) < self.n else (self._whole, self._whole_evals)
        found = _look_up(ngram_hashes(hashes, len(hashes)), *tables)
        return tuple(name for bit, name in enumerate(self.evals) if len(found) and int(found[0]) >> bit & 1)

    def is_contaminated(self, text: str, max_hits: int) -> bool:
        """Does a text match at more places than are allowed, or is it an evaluation's text word for word?"""
        return self.num_hits(text) > max_hits or bool(self.copies(text))

    def plain_count(self, text: str) -> dict[str, int]:
        """What `count` gives, plainly: for reading, and for the tests."""
        words = _only_words(text)
        hashes = word_hashes(words.split())
        lengths = np.array([len(line.split()) for line in words.split("\n")])
        ends = np.cumsum(lengths)
        is_short = (lengths > 0) & (lengths < self.n)
        spans = span_hashes(hashes, (ends - lengths)[is_short], ends[is_short])
        if 0 < len(hashes) < self.n and np.count_nonzero(lengths) > 1:  # a short whole, over several lines
            spans = np.append(spans, ngram_hashes(hashes, len(hashes)))
        found = [_look_up(ngram_hashes(hashes, self.n), *self._ngrams[:2]), _look_up(spans, *self._short[:2])]
        return self._by_eval(np.concatenate(found))

    def _hits(self, text: str) -> NDArray[np.uint64]:
        """Bits of the evaluations, for each place of the text that matches any."""
        return overlaps(*words_and_lines(text, _words()), self.n, self._ngrams, self._short)

    def _by_eval(self, hits: NDArray[np.uint64]) -> dict[str, int]:
        if not len(hits):
            return {}
        counts = {
            name: int(np.count_nonzero(hits >> np.uint64(bit) & np.uint64(1))) for bit, name in enumerate(self.evals)
        }
        return {name: count for name, count in counts.items() if count}

    def save(self, path: Path) -> None:
        """Write one .npz file, whole or not at all; the same index gives the same bytes."""
        with replacing(path) as file:
            np.savez(
                file,
                format=np.array(_FORMAT),
                n=np.array(self.n),
                evals=np.array(self.evals, dtype=np.str_),
                ngrams=self._ngrams.hashes,
                ngram_evals=self._ngrams.bits,
                short=self._short.hashes,
                short_evals=self._short.bits,
                whole=self._whole,
                whole_evals=self._whole_evals,
                num_empty=np.array(self.num_empty),
            )

    @classmethod
    def load(cls, path: Path) -> EvalIndex:
        """Read what `save` wrote.

        Raises:
            UserError: the file is missing or is no such index.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                if int(arrays["format"]) != _FORMAT:
                    raise ValueError(f"of format {arrays['format']}, not {_FORMAT}")
                return cls(
                    n=int(arrays["n"]),
                    evals=tuple(map(str, arrays["evals"])),
                    ngrams=arrays["ngrams"],
                    ngram_evals=arrays["ngram_evals"],
                    short=arrays["short"],
                    short_evals=arrays["short_evals"],
                    whole=arrays["whole"],
                    whole_evals=arrays["whole_evals"],
                    num_empty=int(arrays["num_empty"]),
                )
        except FileNotFoundError:
            raise UserError(f"{path}: not found; build the evaluation index first") from None
        except (KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{path}: not an evaluation index ({error}); delete it and build it again") from None


@functools.cache
def _words() -> CharacterTable:
    return CharacterTable(lambda character: _only_words(character).encode())


def _only_words(text: str) -> str:
    """Lower-case letters and digits; everything else is a space, but line feeds stay."""
    if text.isascii():  # several times faster than the pattern
        return text.encode().translate(_ASCII_WORDS).decode()
    return _NOT_WORD.sub(" ", text.lower())


def _holds_a_word(words: list[str], n: int) -> NDArray[np.bool_]:
    """Of each n-gram, whether it holds more than numbers: page numbers in a row are no copy of a question."""
    is_word = np.array([not word.isdigit() for word in words])
    sums = np.concatenate([[0], np.cumsum(is_word)])
    return sums[n:] > sums[:-n]


def _with_bits(hashes_by_eval: list[list[NDArray[np.uint64]]]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Distinct hashes, sorted, and for each the bits of the evaluations it came from."""
    per_eval = [np.unique(np.concatenate(arrays)) if arrays else np.zeros(0, np.uint64) for arrays in hashes_by_eval]
    hashes = np.unique(np.concatenate([np.zeros(0, np.uint64), *per_eval]))
    bits = np.zeros(len(hashes), dtype=np.uint64)
    for number, own in enumerate(per_eval):
        bits[np.searchsorted(hashes, own)] |= np.uint64(1 << number)
    return hashes, bits


def _look_up(hashes: NDArray[np.uint64], table: NDArray[np.uint64], bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Bits of those hashes that the sorted table holds, in no particular order."""
    if not len(table) or not len(hashes):
        return np.zeros(0, dtype=np.uint64)
    hashes = np.sort(hashes)  # neighbours then search the same part of the table: fewer cache misses
    places = np.minimum(np.searchsorted(table, hashes), len(table) - 1)
    return bits[places[table[places] == hashes]]
