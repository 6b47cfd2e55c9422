"""Byte-level BPE in plain Python: what the compiled kernels must equal, and quick enough for short texts."""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from cs336.progress import Progress, silent
from cs336.tokenizer.pretokenize import PATTERN, compile_special_tokens, split_special_tokens

Merges = list[tuple[bytes, bytes]]


def count_pretokens(pieces: Iterable[str], special_tokens: Iterable[str]) -> Counter[str]:
    """How often each pre-token occurs; special tokens are cut out and not counted."""
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


def apply_merges(ids: list[int], ranks: Mapping[tuple[int, int], int], merged: list[int]) -> list[int]:
    """Merge the present pair of lowest rank, all its occurrences left to right, until none is left.

    Args:
        ids: of the single bytes of a pre-token.
        ranks: of the pairs of ids that merge; 0 first.
        merged: the id that each rank gives.
    """
    while len(ids) > 1:
        pair_ranks = [ranks.get(pair, math.inf) for pair in itertools.pairwise(ids)]
        best = min(pair_ranks)
        if best == math.inf:
            return ids
        result = []
        place, last = 0, len(ids) - 1
        while place <= last:
            if place < last and pair_ranks[place] == best:
                result.append(merged[int(best)])
                place += 2
            else:
                result.append(ids[place])
                place += 1
        ids = result
    return ids


def apply_merges_with_heap(ids: list[int], ranks: Mapping[tuple[int, int], int], merged: list[int]) -> list[int]:
    """As `apply_merges`, in time n log n: for long runs without a boundary.

    Ids stand in a linked list; a heap holds the pairs that merge, by rank and place.
    """
    gone = -1
    ids = list(ids)
    before = list(range(-1, len(ids) - 1))
    after = [*range(1, len(ids)), gone]
    heap = [
        (rank, place) for place, pair in enumerate(itertools.pairwise(ids)) if (rank := ranks.get(pair)) is not None
    ]
    heapq.heapify(heap)
    while heap:
        best = heap[0][0]
        touched = []
        while heap and heap[0][0] == best:  # all places of this rank, left to right, before any new pair
            _, place = heapq.heappop(heap)
            following = after[place]
            if ids[place] == gone or following == gone or ranks.get((ids[place], ids[following])) != best:
                continue
            ids[place] = merged[best]
            ids[following] = gone
            after[place] = after[following]
            if after[place] != gone:
                before[after[place]] = place
            touched += [place] if before[place] == gone else [before[place], place]
        for place in touched:
            if ids[place] == gone or after[place] == gone:
                continue
            rank = ranks.get((ids[place], ids[after[place]]))
            if rank is not None:
                heapq.heappush(heap, (rank, place))
    return [number for number in ids if number != gone]
