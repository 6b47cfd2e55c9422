"""Near-duplicates by MinHash: shingles to signatures, and the whole chain over files.

Source: Broder 1997, "On the resemblance and containment of documents". A shingle is a word n-gram of
the normalized text. Its one base hash goes through num_hashes functions (a x h + b modulo 2^64, of
which the upper 32 bits: multiply-add-shift, Dietzfelbinger 1996); a signature holds the minimum of each.
"""

from __future__ import annotations

import functools
import shutil
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import regex
from numpy.typing import NDArray

from cs336.dedup.exact_lines import output_targets
from cs336.dedup.lsh import EMPTY, candidate_pairs, clusters, survivors
from cs336.filters.ngrams import ngram_hashes, word_hashes
from cs336.processes import map_ordered
from cs336.progress import Progress, silent


@dataclass(frozen=True, kw_only=True)
class MinHashConfig:
    """How near-duplicates are found.

    Attributes:
        enabled: without it every document stays.
        num_hashes, num_bands: a pair of Jaccard similarity s becomes a candidate with probability
            1 - (1 - s^r)^b, r = num_hashes / num_bands; 100 and 20 find 97.5 % at 0.7 and all at 0.8.
        ngrams: words in a shingle; 5 is FineWeb's choice (arXiv:2406.17557).
        jaccard_threshold: candidates at or above are duplicates; 0.8 is the handout's.
        seed: of the hash functions and of who survives.
    """

    enabled: bool = True
    num_hashes: int = 100
    num_bands: int = 20
    ngrams: int = 5
    jaccard_threshold: float = 0.8
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_hashes < 1 or self.num_bands < 1 or self.num_hashes % self.num_bands:
            raise ValueError(f"{self.num_hashes} hashes do not split into {self.num_bands} equal bands")
        if self.ngrams < 1:
            raise ValueError(f"n-grams need at least 1 word, got {self.ngrams}")
        if not 0 < self.jaccard_threshold <= 1:
            raise ValueError(f"the Jaccard threshold must be in (0, 1], got {self.jaccard_threshold}")


def minhash_deduplication(
    paths: Sequence[Path | str],
    num_hashes: int,
    num_bands: int,
    ngrams: int,
    jaccard_threshold: float,
    output_dir: Path | str,
    *,
    seed: int = 0,
) -> None:
    """Copy one file of each cluster of near-duplicates, and every other file, to `output_dir`.

    A file is a document. Kept files are byte-identical copies under their own names.

    Raises:
        ValueError: num_bands does not divide num_hashes, two inputs have one base name, or an output
            would overwrite its input.
    """
    config = MinHashConfig(
        num_hashes=num_hashes, num_bands=num_bands, ngrams=ngrams, jaccard_threshold=jaccard_threshold, seed=seed
    )
    sources = [Path(path) for path in paths]
    targets = output_targets(sources, Path(output_dir))
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in sources]
    found = find_duplicates(texts, [path.name for path in sources], config)
    for source, target, kept in zip(sources, targets, found.kept.tolist(), strict=True):
        if kept:
            shutil.copyfile(source, target)


class Duplicates(NamedTuple):
    """What deduplication found.

    Attributes:
        kept: for each document, whether it survives.
        clusters: for each document, the smallest index of its cluster (its own when alone).
        num_candidates: pairs that agree in a band.
        num_confirmed: of those, at or above the Jaccard threshold.
    """

    kept: NDArray[np.bool_]
    clusters: NDArray[np.int64]
    num_candidates: int
    num_confirmed: int


def find_duplicates(
    texts: Sequence[str],
    keys: Sequence[str],
    config: MinHashConfig,
    *,
    document_signatures: NDArray[np.uint32] | None = None,
    num_workers: int = 1,
    progress: Progress = silent,
) -> Duplicates:
    """Signatures, candidates, exact confirmation, clusters, and one survivor of each.

    Args:
        texts: the documents.
        keys: a name for each, such as its id; decides, with the seed, who survives.
        document_signatures: when they were made before, shard by shard; else they are made here.

    Raises:
        ValueError: texts, keys and signatures differ in number.
    """
    if document_signatures is None:
        document_signatures = signatures(texts, config, num_workers=num_workers, progress=progress)
    if not len(texts) == len(keys) == len(document_signatures):
        raise ValueError(
            f"{len(texts)} texts, {len(keys)} keys and {len(document_signatures)} signatures; need one each"
        )
    candidates = candidate_pairs(document_signatures, config.num_bands)
    confirmed = confirm(candidates, texts, config, progress=progress)
    labels = clusters(confirmed, len(texts))
    return Duplicates(survivors(labels, config.seed, keys), labels, len(candidates), len(confirmed))


def signatures(
    texts: Iterable[str], config: MinHashConfig, *, num_workers: int = 1, progress: Progress = silent
) -> NDArray[np.uint32]:
    """One signature a text, in order: (documents, num_hashes).

    A text without words has EMPTY everywhere, which `candidate_pairs` never matches.
    """
    watched = progress(texts, unit="documents", label="minhash")
    rows = list(map_ordered(functools.partial(signature, config=config), watched, num_workers=num_workers, per_task=32))
    return np.stack(rows) if rows else np.zeros((0, config.num_hashes), dtype=np.uint32)


def signature(text: str, config: MinHashConfig) -> NDArray[np.uint32]:
    """Minimum of each hash function over the text's shingles: (num_hashes,)."""
    shingles = shingle_hashes(text, config.ngrams)
    if not len(shingles):
        return np.full(config.num_hashes, EMPTY, dtype=np.uint32)
    multipliers, offsets = _hash_functions(config.num_hashes, config.seed)
    minima = np.full(config.num_hashes, np.iinfo(np.uint64).max, dtype=np.uint64)
    for start in range(0, len(shingles), _BLOCK):
        hashed = multipliers * shingles[start : start + _BLOCK]
        hashed += offsets
        np.minimum(minima, hashed.min(axis=1), out=minima)
    # The upper bits of the minimum are the minimum of the upper bits. EMPTY stays for empty texts.
    return np.minimum(minima >> np.uint64(32), EMPTY - 1).astype(np.uint32)


_BLOCK = 512  # shingles at once: 100 functions x 512 x 8 bytes stay in a core's cache


def shingle_hashes(text: str, n: int) -> NDArray[np.uint64]:
    """Hash of each word n-gram of the normalized text, with repeats.

    Fewer than n words make one shingle; no word makes none.
    """
    hashes = word_hashes(normalize(text).split())
    return ngram_hashes(hashes, min(n, len(hashes))) if len(hashes) else hashes


def normalize(text: str) -> str:
    """For comparison only: lower case, decomposed (NFD), no combining marks, no punctuation, single spaces.

    Punctuation are Unicode's categories P and S; it leaves no gap ("don't" is "dont").
    """
    text = text.lower()
    if text.isascii():
        return " ".join(text.translate(_ASCII_PUNCTUATION).split())
    return " ".join(_DROPPED.sub("", unicodedata.normalize("NFD", text)).split())


_ASCII_PUNCTUATION = {ord(mark): None for mark in r"""!"#$%&'()*+,-./:;<=>?@[\]^_`{|}~"""}
_DROPPED = regex.compile(r"[\p{M}\p{P}\p{S}]+")


def confirm(
    pairs: NDArray[np.int64], texts: Sequence[str], config: MinHashConfig, *, progress: Progress = silent
) -> NDArray[np.int64]:
    """Those pairs whose exact Jaccard similarity reaches the threshold."""
    # Pairs are sorted by their first member, so its set is made once for all of them.
    shingles = functools.lru_cache(maxsize=1024)(lambda index: _shingles(texts[index], config.ngrams))
    watched = progress(pairs.tolist(), unit="pairs", label="confirm")
    similar = [_jaccard(shingles(left), shingles(right)) >= config.jaccard_threshold for left, right in watched]
    return pairs[np.array(similar, dtype=bool)]


def jaccard(text_a: str, text_b: str, n: int) -> float:
    """Shared over all distinct word n-grams of two texts, normalized: 0 to 1; 0 when a text has no word."""
    return _jaccard(_shingles(text_a, n), _shingles(text_b, n))


def _jaccard(a: frozenset[tuple[str, ...]], b: frozenset[tuple[str, ...]]) -> float:
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared) if shared else 0.0


def _shingles(text: str, n: int) -> frozenset[tuple[str, ...]]:
    words = normalize(text).split()
    if not words:
        return frozenset()
    n = min(n, len(words))
    return frozenset(zip(*(words[start:] for start in range(n)), strict=False))


@functools.lru_cache(maxsize=4)
def _hash_functions(num_hashes: int, seed: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Odd multipliers and offsets, as columns."""
    generator = np.random.Generator(np.random.PCG64(seed))
    numbers = generator.integers(0, 1 << 64, size=(2, num_hashes, 1), dtype=np.uint64)
    return numbers[0] | np.uint64(1), numbers[1]
