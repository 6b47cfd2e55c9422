"""Learn a byte-level BPE vocabulary: count pre-tokens, then merge the most frequent pair again and again."""

from __future__ import annotations

import functools
import heapq
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cs336.files import UserError
from cs336.processes import map_ordered
from cs336.progress import Progress, silent
from cs336.tokenizer.pretokenize import PATTERN, compile_special_tokens, cut_stream, split_special_tokens

Vocab = dict[int, bytes]
Merges = list[tuple[bytes, bytes]]

# Characters counted in one task: long enough to hide the cost of sending the text to a worker.
_TASK_CHARS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class BpeConfig:
    """What decides a vocabulary, apart from the text.

    Attributes:
        vocab_size: entries in all: special tokens, the 256 bytes, and one for each merge.
        special_tokens: strings that always become exactly one id and that no merge touches.
            GPT-2's end-of-text mark alone, as in the course.
    """

    vocab_size: int
    special_tokens: tuple[str, ...] = ("<|endoftext|>",)


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

    Args:
        input_path: plain text; read in pieces, so it may be larger than memory.
        vocab_size: entries in all; fewer come out when no pair is left to merge.
        special_tokens: such as `<|endoftext|>` between documents.
        num_workers: processes that count pre-tokens; the result does not depend on it.

    Returns:
        The vocabulary (id to bytes: special tokens, then the 256 bytes, then one entry a merge) and
        the merges in the order of their creation.

    Raises:
        ValueError: `vocab_size` has no room for the bytes and special tokens.
        UserError: the file is missing or not UTF-8.

    Source: Sennrich et al. 2016, arXiv:1508.07909, on bytes as in GPT-2; CS336 assignment 1, section 2.
    """
    config = BpeConfig(vocab_size=vocab_size, special_tokens=tuple(special_tokens))
    path = Path(input_path)
    if path.exists() and path.stat().st_size <= _TASK_CHARS:
        num_workers = 1  # one task: starting a process would take longer than the work
    pieces = cut_stream(_read_text(path), config.special_tokens)
    return _train(pieces, config, num_workers=num_workers, progress=progress)


def train_bpe_from_documents(
    texts: Iterable[str], config: BpeConfig, *, num_workers: int = 1, progress: Progress = silent
) -> tuple[Vocab, Merges]:
    """Learn a vocabulary from separate documents: as `train_bpe`, with a hard boundary after each text.

    Returns:
        Vocabulary and merges, as `Tokenizer` takes them.

    Raises:
        ValueError: `config.vocab_size` has no room for the bytes and special tokens.
    """
    pieces = (piece for text in texts for piece in cut_stream([text], config.special_tokens))
    return _train(pieces, config, num_workers=num_workers, progress=progress)


def _train(pieces: Iterable[str], config: BpeConfig, *, num_workers: int, progress: Progress) -> tuple[Vocab, Merges]:
    special_tokens = tuple(dict.fromkeys(config.special_tokens))
    num_merges = config.vocab_size - 256 - len(special_tokens)
    if num_merges < 0:
        raise ValueError(
            f"vocab_size {config.vocab_size} is too small: 256 bytes and {len(special_tokens)} special tokens"
            f" need at least {256 + len(special_tokens)}"
        )
    counts = count_pretokens(pieces, special_tokens, num_workers=num_workers, progress=progress)
    merges = learn_merges(counts, num_merges, progress=progress)
    tokens = [token.encode() for token in special_tokens]
    tokens += [bytes([byte]) for byte in range(256)]
    tokens += [left + right for left, right in merges]
    return dict(enumerate(tokens)), merges


def _read_text(path: Path) -> Iterator[str]:
    """A file's text in blocks, line ends as they are."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            while block := file.read(_TASK_CHARS):
                yield block
    except FileNotFoundError:
        raise UserError(f"{path}: not found; give the path of a text file to learn a vocabulary from") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason}); convert the file to UTF-8 first") from None


def count_pretokens(
    pieces: Iterable[str], special_tokens: Iterable[str], *, num_workers: int = 1, progress: Progress = silent
) -> Counter[str]:
    """How often each pre-token occurs; special tokens are cut out and not counted."""
    tasks = _tasks(progress(pieces, unit="pieces", label="count pre-tokens"))
    counts: Counter[str] = Counter()
    for part in map_ordered(functools.partial(_count_task, tuple(special_tokens)), tasks, num_workers=num_workers):
        counts.update(part)
    return counts


def _tasks(pieces: Iterable[str]) -> Iterator[list[str]]:
    task: list[str] = []
    size = 0
    for piece in pieces:
        task.append(piece)
        size += len(piece)
        if size >= _TASK_CHARS:
            yield task
            task, size = [], 0
    if task:
        yield task


def _count_task(special_tokens: tuple[str, ...], pieces: list[str]) -> Counter[str]:
    specials = compile_special_tokens(special_tokens)
    counts: Counter[str] = Counter()
    for piece in pieces:
        for part, is_special in split_special_tokens(piece, specials):
            if not is_special:
                # findall's list is a piece's, so it stays small; it is a third faster than finditer.
                counts.update(PATTERN.findall(part))
    return counts


def learn_merges(pretoken_counts: Mapping[str, int], num_merges: int, *, progress: Progress = silent) -> Merges:
    """The first `num_merges` merges over pre-tokens and their frequencies; fewer when no pair is left.

    Only pairs that touch a merged pair change their counts, so the counts are kept up to date rather
    than taken anew: an index says which pre-tokens hold a pair, a heap which pair is most frequent.
    """
    pairs = _PairCounts(pretoken_counts)
    merges: Merges = []
    for _ in progress(range(num_merges), total=num_merges, unit="merges", label="learn merges"):
        pair = pairs.pop_most_frequent()
        if pair is None:
            break
        merges.append((pairs.tokens[pair[0]], pairs.tokens[pair[1]]))
        pairs.merge(pair)
    return merges


class _PairCounts:
    """Pre-tokens as lists of token ids, with the frequency of every adjacent pair.

    Attributes:
        tokens: bytes of each id; an id here is a place in this list, not in the vocabulary.
    """

    def __init__(self, pretoken_counts: Mapping[str, int]) -> None:
        self.tokens = [bytes([byte]) for byte in range(256)]
        self._id_of = {token: number for number, token in enumerate(self.tokens)}
        self._heap_keys = [_descending_key(token) for token in self.tokens]
        self._words = [list(pretoken.encode()) for pretoken in pretoken_counts]
        self._frequencies = list(pretoken_counts.values())
        self._counts: defaultdict[tuple[int, int], int] = defaultdict(int)
        self._words_with: defaultdict[tuple[int, int], set[int]] = defaultdict(set)
        for number, (word, frequency) in enumerate(zip(self._words, self._frequencies, strict=True)):
            for pair in itertools.pairwise(word):
                self._counts[pair] += frequency
                self._words_with[pair].add(number)
        self._heap = [self._entry(pair) for pair in self._counts]
        heapq.heapify(self._heap)

    def _entry(self, pair: tuple[int, int]) -> tuple[int, str, str, int, int]:
        """Heap entries sort by falling count, then by falling bytes of the pair."""
        left, right = pair
        return -self._counts[pair], self._heap_keys[left], self._heap_keys[right], left, right

    def pop_most_frequent(self) -> tuple[int, int] | None:
        """Take out the pair to merge next; None when no pair is left.

        Counts that fell since they were pushed are put right only here, when they come up: entries
        never understate a count, so the first true one is the greatest.
        """
        while self._heap:
            negative_count, _, _, left, right = self._heap[0]
            count = self._counts.get((left, right), 0)
            if count == -negative_count:
                heapq.heappop(self._heap)
                return left, right
            if count == 0:
                heapq.heappop(self._heap)
            else:
                heapq.heapreplace(self._heap, self._entry((left, right)))
        return None

    def merge(self, pair: tuple[int, int]) -> None:
        """Replace a pair, left to right, in every pre-token that holds it, and adjust the counts."""
        merged = self._add_token(self.tokens[pair[0]] + self.tokens[pair[1]])
        changes: defaultdict[tuple[int, int], int] = defaultdict(int)
        for number in self._words_with.pop(pair):
            self._merge_in_word(number, pair, merged, changes)
        del self._counts[pair]
        changes.pop(pair, None)  # overlapping occurrences, as in "aaa": all are gone
        for changed, change in changes.items():
            if change == 0:
                continue
            self._counts[changed] += change
            if change > 0:
                heapq.heappush(self._heap, self._entry(changed))
            elif self._counts[changed] == 0:
                del self._counts[changed]
                del self._words_with[changed]

    def _add_token(self, token: bytes) -> int:
        """The id of a token; the same bytes reached by another merge are the same token."""
        number = self._id_of.setdefault(token, len(self.tokens))
        if number == len(self.tokens):
            self.tokens.append(token)
            self._heap_keys.append(_descending_key(token))
        return number

    def _merge_in_word(
        self, number: int, pair: tuple[int, int], merged: int, changes: defaultdict[tuple[int, int], int]
    ) -> None:
        word = self._words[number]
        frequency = self._frequencies[number]
        left, right = pair
        result: list[int] = []
        place, last = 0, len(word) - 1
        while place <= last:
            token = word[place]
            if token != left or place == last or word[place + 1] != right:
                result.append(token)
                place += 1
                continue
            if result:
                changes[result[-1], left] -= frequency
                changes[result[-1], merged] += frequency
                self._words_with[result[-1], merged].add(number)
            if place + 2 <= last:
                following = word[place + 2]
                changes[right, following] -= frequency
                changes[merged, following] += frequency
                self._words_with[merged, following].add(number)
            result.append(merged)
            place += 2
        self._words[number] = result


def _descending_key(token: bytes) -> str:
    """A string that sorts before another's exactly if this token sorts after the other.

    Bytes are turned round, and the end mark, greater than all of them, puts a prefix behind the
    longer token.
    """
    return "".join(chr(255 - byte) for byte in token) + chr(256)
