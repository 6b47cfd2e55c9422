"""Learn a byte-level BPE vocabulary: count pre-tokens, then merge the most frequent pair again and again."""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cs336.files import UserError
from cs336.processes import in_batches
from cs336.progress import Progress, silent
from cs336.tokenizer import reference
from cs336.tokenizer.formats import END_OF_TEXT
from cs336.tokenizer.pretokenize import cut_stream
from cs336.tokenizer.reference import Merges
from cs336.tokenizer.segments import Segments, cut_segments, file_ranges, read_segments

Vocab = dict[int, bytes]

_SHORT_TEXT_BYTES = 1_000_000  # up to here plain Python is done before the compiled kernels are loaded
_TASK_BYTES = 2_000_000  # counted at a time by one thread; memory is this much a thread, and its table
_NUM_STEPS = 10  # of the progress bar while merges are learnt; each sorts the frequent pairs anew


@dataclass(frozen=True, kw_only=True)
class BpeConfig:
    """What decides a vocabulary, apart from the text.

    Attributes:
        vocab_size: entries in all: special tokens, the 256 bytes, and one for each merge.
        special_tokens: strings that always become exactly one id and that no merge touches.
            GPT-2's end-of-text mark alone, as in the course.
        pretrained: catalogue entry whose vocabulary is taken instead of learning one, such as "gpt2-vocab";
            `vocab_size` is then that one's. "" learns.
    """

    vocab_size: int
    special_tokens: tuple[str, ...] = (END_OF_TEXT,)
    pretrained: str = ""


def train_bpe(
    input_path: str | Path,
    vocab_size: int,
    special_tokens: Iterable[str],
    *,
    num_workers: int = 1,
    progress: Progress = silent,
) -> tuple[Vocab, Merges]:
    """Learn a vocabulary from one UTF-8 text file.

    Special tokens are hard boundaries: the text is cut at them before anything is counted. The most
    frequent pair is merged first; of equally frequent ones the lexicographically greatest pair of
    byte strings.

    Memory does not grow with the file but with its distinct pre-tokens: 310 to 380 bytes each, measured with 0.7 to
    4 million of them and one to four threads, beyond what the loaded kernels take (`python -m benchmarks tokenizer`
    gives `num_distinct` and the peak of each run). Most of that is held while merges are learnt. Before, each thread
    has 2 MB of text and a table of its own: 64 to 128 bytes for each pre-token that it has met, 192 while the
    table grows; so with very many threads this is the greater part.

    Args:
        input_path: plain text; read in pieces, so it may be larger than memory.
        vocab_size: entries in all; fewer come out when no pair is left to merge.
        special_tokens: such as `<|endoftext|>` between documents.
        num_workers: threads that count pre-tokens; the result does not depend on it.

    Returns:
        The vocabulary (id to bytes: special tokens, then the 256 bytes, then one entry a merge) and
        the merges in the order of their creation.

    Raises:
        ValueError: `vocab_size` has no room for the bytes and special tokens, or a special token is empty.
        UserError: the file is missing or not UTF-8.

    Source: Sennrich et al. 2016, arXiv:1508.07909, on bytes as in GPT-2; CS336 assignment 1, section 2.
    """
    config = BpeConfig(vocab_size=vocab_size, special_tokens=tuple(special_tokens))
    num_merges = _num_merges(config)
    path = Path(input_path)
    if not path.exists():
        raise UserError(f"{path}: not found; give the path of a text file to learn a vocabulary from")
    if path.stat().st_size <= _SHORT_TEXT_BYTES:
        counts = reference.count_pretokens([_read_text(path)], config.special_tokens)
        return _vocabulary(reference.learn_merges(counts, num_merges, progress=progress), config)
    counted = _count(_blocks(path, config.special_tokens, progress), num_workers)
    return _vocabulary(_learn(counted, num_merges, progress), config)


def num_distinct_pretokens(input_path: str | Path, special_tokens: Iterable[str], *, num_workers: int = 1) -> int:
    """How many different pre-tokens a UTF-8 text file holds: what the memory of `train_bpe` grows with.

    Raises:
        UserError: the file is not UTF-8.
    """
    return len(_count(_blocks(Path(input_path), tuple(special_tokens), silent), num_workers).counts)


def train_bpe_from_documents(
    texts: Iterable[str], config: BpeConfig, *, num_workers: int = 1, progress: Progress = silent
) -> tuple[Vocab, Merges]:
    """Learn a vocabulary from separate documents: as `train_bpe`, with a hard boundary after each text.

    Returns:
        Vocabulary and merges, as `Tokenizer` takes them.

    Raises:
        ValueError: `config.vocab_size` has no room for the bytes and special tokens, or a text holds a lone
            surrogate, which UTF-8 cannot write.
    """
    num_merges = _num_merges(config)
    batches = in_batches(progress(texts, unit="documents", label="count pre-tokens"), len, _TASK_BYTES)
    first = next(batches, [])
    if sum(map(len, first)) <= _SHORT_TEXT_BYTES:  # and so there is no second
        pieces = (piece for text in first for piece in cut_stream([text], config.special_tokens))
        counts = reference.count_pretokens(pieces, config.special_tokens)
        return _vocabulary(reference.learn_merges(counts, num_merges, progress=progress), config)
    specials = {token.encode(): 0 for token in config.special_tokens}
    blocks = (functools.partial(cut_segments, batch, specials) for batch in itertools.chain([first], batches))
    return _vocabulary(_learn(_count(blocks, num_workers), num_merges, progress), config)


def _num_merges(config: BpeConfig) -> int:
    num_special = len(set(config.special_tokens))
    if "" in config.special_tokens:
        raise ValueError("a special token is empty; give it at least one character")
    if config.vocab_size < 256 + num_special:
        raise ValueError(
            f"vocab_size {config.vocab_size} is too small: 256 bytes and {num_special} special tokens"
            f" need at least {256 + num_special}"
        )
    return config.vocab_size - 256 - num_special


def _vocabulary(merges: Merges, config: BpeConfig) -> tuple[Vocab, Merges]:
    tokens = [token.encode() for token in dict.fromkeys(config.special_tokens)]
    tokens += [bytes([byte]) for byte in range(256)]
    tokens += [left + right for left, right in merges]
    return dict(enumerate(tokens)), merges


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start:,}; convert the file to UTF-8 first") from None


def _blocks(path: Path, special_tokens: Iterable[str], progress: Progress) -> Iterator[Callable[[], Segments]]:
    """How to read each piece of a file."""
    specials = [token.encode() for token in special_tokens]
    ranges = list(file_ranges(path, specials, _TASK_BYTES))
    for start, end in progress(ranges, unit="2 MB", label="count pre-tokens"):
        yield functools.partial(read_segments, path, start, end, dict.fromkeys(specials, 0))


class _Counts(NamedTuple):
    """Distinct pre-tokens: their bytes one after the other, where each starts, and how often it occurs."""

    words: np.ndarray
    starts: np.ndarray
    counts: np.ndarray


def _count(blocks: Iterable[Callable[[], Segments]], num_workers: int) -> _Counts:
    """Count in threads, each with a table of its own; their order makes no difference."""
    from cs336.tokenizer import compiled

    compiled.warm_up()
    classes = compiled.classes()
    waiting, lock = iter(blocks), threading.Lock()

    def work() -> tuple[Any, ...]:
        table: tuple[Any, ...] = compiled.empty_table()
        while True:
            with lock:
                block = next(waiting, None)
            if block is None:
                return table
            segments = block()
            table = compiled.count_segments(segments.buffer, segments.starts, segments.ends, classes, *table)

    with ThreadPoolExecutor(num_workers) as pool:
        futures = [pool.submit(work) for _ in range(num_workers)]
        tables = [future.result() for future in futures]
    total = tables.pop(0)
    while tables:
        total = compiled.add_counts(*total, *compiled.counted_words(*tables.pop()[:3]))
    return _Counts(*compiled.counted_words(*total[:3]))


def _learn(counted: _Counts, num_merges: int, progress: Progress) -> Merges:
    """As `reference.learn_merges`, on compiled kernels."""
    from cs336.tokenizer import compiled

    if len(counted.counts) == 0 or num_merges == 0:
        return []
    num_positions = int(counted.starts[-1])
    if 3 * num_positions >= 2**31:  # places are counted in 32 bits
        raise UserError(f"{num_positions:,} bytes of distinct pre-tokens are too many; train on a sample of the text")
    symbols = counted.words[:num_positions].astype(np.int32)
    words = np.zeros((len(counted.counts), 4), np.int64)
    words[:, 0], words[:, 1], words[:, 2] = counted.starts[:-1], np.diff(counted.starts), counted.counts
    with compiled.announced():
        lefts, rights, counts, heads, rows, num_pairs, nodes, num_nodes = compiled.pair_index(
            symbols, counted.starts, counted.counts
        )
    token_bytes = np.zeros(256 + 16 * num_merges + 1_024, np.uint8)
    token_bytes[:256] = np.arange(256)
    token_starts = np.zeros(256 + num_merges + 2, np.int64)
    token_starts[:257] = np.arange(257)
    token_rows = np.full(1 << (2 * num_merges + 1_024).bit_length(), -1, np.int32)
    merged_lefts, merged_rights = np.empty(num_merges, np.int32), np.empty(num_merges, np.int32)
    num_tokens, threshold, made = 256, int(counts[:num_pairs].max(initial=0)), 0
    step = -(-num_merges // _NUM_STEPS)
    for goal in progress(range(step, num_merges + step, step), unit="steps", label="learn merges"):
        while made < min(goal, num_merges) and threshold:
            done, rows, num_pairs, num_nodes, num_tokens, threshold = compiled.learn(
                min(goal, num_merges) - made,
                *(symbols, words.reshape(-1)),
                *(lefts, rights, counts, heads, rows, num_pairs, nodes, num_nodes),
                *(token_bytes, token_starts, token_rows, num_tokens, threshold),
                *(merged_lefts[made:], merged_rights[made:]),
            )
            made += done
            if made < min(goal, num_merges) and threshold:
                token_bytes = np.concatenate([token_bytes, np.zeros(len(token_bytes), np.uint8)])
    flat = token_bytes.tobytes()
    starts = token_starts.tolist()
    pairs = zip(merged_lefts[:made].tolist(), merged_rights[:made].tolist(), strict=True)
    return [(flat[starts[a] : starts[a + 1]], flat[starts[b] : starts[b + 1]]) for a, b in pairs]
