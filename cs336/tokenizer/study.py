"""What a vocabulary is like: where its training spends time and memory, how it compresses, beside others."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import resource
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from cs336.processes import die_with_parent
from cs336.tokenizer.bpe import Tokenizer
from cs336.tokenizer.reference import Merges
from cs336.tokenizer.train import BpeConfig, train_bpe_from_documents

T = TypeVar("T")

PILE_BYTES = 825 * 10**9  # Gao et al. 2020, arXiv:2101.00027; the handout's question
LARGEST_UINT16 = 2**16 - 1

# ---- training, watched


@dataclass(frozen=True)
class TrainingProfile:
    """One training in a process of its own.

    Attributes:
        load_seconds: until the compiled kernels were there, before training began: half a minute the first
            time on a machine, then a second.
        seconds: wall time by stage, in their order; reading is that of all threads together, and goes
            on while other threads count.
        num_bytes: of the texts, in UTF-8.
        peak_bytes: the most memory that the process held; `bytes_before` of them before the first text.
        merges_sha256: of the merges learnt, see `merges_sha256`.
    """

    load_seconds: float
    seconds: dict[str, float]
    num_bytes: int
    peak_bytes: int
    bytes_before: int
    merges_sha256: str

    @property
    def slowest(self) -> str:
        return max(self.seconds, key=self.seconds.__getitem__)


def profile_training(texts: Callable[[], Iterable[str]], config: BpeConfig, *, num_workers: int = 1) -> TrainingProfile:
    """Train once more, in a fresh process, with a clock at each stage.

    Args:
        texts: makes the training texts; it goes to the process, so it is importable from its module.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=die_with_parent, initargs=(os.getpid(),)) as pool:
        return pool.submit(_profile, texts, config, num_workers).result()


def merges_sha256(merges: Merges) -> str:
    """Equal for equal merges in equal order."""
    return hashlib.sha256("\n".join(f"{left.hex()} {right.hex()}" for left, right in merges).encode()).hexdigest()


def _profile(texts: Callable[[], Iterable[str]], config: BpeConfig, num_workers: int) -> TrainingProfile:
    from cs336.tokenizer import compiled

    start = time.perf_counter()
    compiled.warm_up()
    loaded = time.perf_counter()
    bytes_before = _memory("VmRSS")
    watch = _Watch()
    _, merges = train_bpe_from_documents(
        watch.reading(texts()), config, num_workers=num_workers, progress=watch.progress
    )
    done = time.perf_counter()
    learning = watch.learning_from or done
    return TrainingProfile(
        load_seconds=loaded - start,
        seconds={
            "read the documents": watch.reading_seconds,
            "count pre-tokens, index their pairs": max(0.0, learning - loaded - watch.reading_seconds),
            "learn merges": done - learning,
        },
        num_bytes=watch.num_bytes,
        peak_bytes=_memory("VmHWM"),
        bytes_before=bytes_before,
        merges_sha256=merges_sha256(merges),
    )


class _Watch:
    """Clocks at the two places where training can be seen from outside: its texts, and its progress."""

    def __init__(self) -> None:
        self.reading_seconds = 0.0
        self.num_bytes = 0
        self.learning_from: float | None = None

    def reading(self, texts: Iterable[str]) -> Iterator[str]:
        waiting = iter(texts)
        while True:
            start = time.perf_counter()
            text = next(waiting, None)
            self.reading_seconds += time.perf_counter() - start
            if text is None:
                return
            self.num_bytes += len(text.encode("utf-8", "surrogatepass"))
            yield text

    def progress(
        self, items: Iterable[T], *, total: int | None = None, unit: str = "items", label: str = ""
    ) -> Iterator[T]:
        if label == "learn merges":
            self.learning_from = time.perf_counter()
        yield from items


def _memory(field: str) -> int:
    """`VmRSS` or `VmHWM` of this process; the peak where there is no /proc.

    Not `ru_maxrss` where it can be helped: Linux lets a new program inherit its parent's.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


# ---- its entries


def longest_tokens(tokenizer: Tokenizer, count: int) -> list[bytes]:
    """The longest learned entries, longest first; of equal length the one learned first."""
    learned = list(dict.fromkeys(left + right for left, right in tokenizer.merges))
    return sorted(learned, key=len, reverse=True)[:count]


def count_occurrences(tokens: Sequence[bytes], texts: Iterable[str]) -> list[int]:
    """How often the bytes of each token occur in the texts, whatever tokens they are encoded in there."""
    counts = [0] * len(tokens)
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        for place, token in enumerate(tokens):
            counts[place] += encoded.count(token)
    return counts


def kind_of_token(token: bytes) -> str:
    """What a token is, by its characters: the handout's "does it make sense?" by rule.

    "a word", "several words", "a number", "white space", "one character repeated", "marks", "a mixture",
    or "part of a character".
    """
    try:
        text = token.decode()
    except UnicodeDecodeError:
        return "part of a character"
    body = text.strip()
    if not body:
        return "white space"
    if len(body) > 1 and len(set(body)) == 1:
        return "one character repeated"
    kinds = {unicodedata.category(character)[0] for character in body if not character.isspace()}
    if kinds <= {"L", "M"}:
        return "a word" if len(body.split()) == 1 else "several words"
    if kinds == {"N"}:
        return "a number"
    return "a mixture" if kinds & {"L", "N"} else "marks"


class Comparison(NamedTuple):
    """Two vocabularies side by side, special tokens left out.

    Attributes:
        num_shared: entries in both.
        num_ours, num_theirs: entries of each.
        longest_ours, longest_theirs: the longest entries that only one of them has, longest first.
    """

    num_shared: int
    num_ours: int
    num_theirs: int
    longest_ours: list[bytes]
    longest_theirs: list[bytes]


def compare_vocabularies(ours: Tokenizer, theirs: Tokenizer, *, count: int = 10) -> Comparison:
    """Which entries two tokenizers share, and the longest that they do not."""
    a, b = (set(each.vocab.values()) - {token.encode() for token in each.special_tokens} for each in (ours, theirs))

    def longest(tokens: set[bytes]) -> list[bytes]:
        return sorted(tokens, key=lambda token: (-len(token), token))[:count]

    return Comparison(len(a & b), len(a), len(b), longest(a - b), longest(b - a))


# ---- how it compresses, and how fast


def bytes_per_token(tokenizer: Tokenizer, texts: Sequence[str]) -> float:
    """UTF-8 bytes over tokens of all texts together, end-of-text marks not counted.

    Raises:
        ValueError: the texts hold no byte.
    """
    num_bytes = sum(len(text.encode()) for text in texts)
    if not num_bytes:
        raise ValueError("the texts hold no byte; give at least one that is not empty")
    return num_bytes / sum(map(len, tokenizer.encode_batch(texts)))


def compression_by_size(tokenizer: Tokenizer, texts: Sequence[str]) -> dict[int, float]:
    """Bytes per token if training had stopped earlier: at 512, 1,024, ... entries, and at the end.

    A smaller vocabulary of the same training is a prefix of the merges, so nothing is trained again; and
    each longer prefix needs no more tokens than a shorter one.
    """
    first = 256 + len(tokenizer.special_tokens)
    last = first + len(tokenizer.merges)
    sizes = [*(size for power in range(9, 17) if first < (size := 2**power) < last), last]
    single_bytes = {byte: bytes([byte]) for byte in range(256)}
    found = {}
    for size in sizes:
        merges = tokenizer.merges[: size - first]
        results = dict.fromkeys(left + right for left, right in merges)
        vocab = single_bytes | dict(enumerate(results, 256))
        found[size] = bytes_per_token(Tokenizer(vocab, merges, tokenizer.special_tokens), texts)
    return found


def encoding_rate(tokenizer: Tokenizer, texts: Sequence[str], *, num_threads: int = 1) -> float:
    """Bytes encoded in a second, with the kernels loaded and nothing remembered from earlier texts."""
    tokenizer.prepare()
    tokenizer.encode_batch(["once, so that all kernels are there"], num_threads=num_threads)
    tokenizer.clear_cache()
    start = time.perf_counter()
    tokenizer.encode_batch(texts, num_threads=num_threads)
    return sum(len(text.encode()) for text in texts) / (time.perf_counter() - start)
