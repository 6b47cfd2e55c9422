"""Tokenizer: text to ids and back with a learned BPE vocabulary; whole texts, streams, files."""

from __future__ import annotations

import gzip
import heapq
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

from cs336.files import UserError, replacing
from cs336.tokenizer.pretokenize import (
    PATTERN,
    compile_special_tokens,
    cut_stream,
    pretokens,
    split_special_tokens,
)

END_OF_TEXT = "<|endoftext|>"  # GPT-2's mark after each document
TOKENIZER_FILE = "tokenizer.json"

_FORMAT = "cs336 byte-level BPE, 1"
_ENCODE_CACHE_ENTRIES = 200_000  # about 50 MB; holds nearly all words of a web crawl's shard
_STREAM_CACHE_ENTRIES = 2_048  # about 0.4 MB measured: a stream may take 1 MB in all
_LONG_PRETOKEN_BYTES = 100  # from here on the heap is faster than looking at every pair again


class Tokenizer:
    """Byte-level BPE: any text to ids without an unknown token, and back without loss.

    Attributes:
        vocab: bytes of each id, the special tokens among them.
        merges: pairs of byte strings in the order in which they are merged.
        special_tokens: strings that always become exactly one id.
    """

    def __init__(
        self,
        vocab: Mapping[int, bytes],
        merges: Iterable[tuple[bytes, bytes]],
        special_tokens: Iterable[str] | None = None,
    ) -> None:
        """Build from what `train_bpe` returns.

        Special tokens that `vocab` lacks get the next free ids.

        Raises:
            ValueError: a merge's parts or result are not in `vocab`, or a special token is empty.
        """
        self.vocab = dict(vocab)
        self.merges = list(merges)
        self.special_tokens = tuple(dict.fromkeys(special_tokens or ()))
        id_of: dict[bytes, int] = {}
        for number in sorted(self.vocab):
            id_of.setdefault(self.vocab[number], number)
        for token in self.special_tokens:
            if token.encode() not in id_of:
                number = max(self.vocab, default=-1) + 1
                self.vocab[number] = token.encode()
                id_of[token.encode()] = number
        self._special_ids = {token: id_of[token.encode()] for token in self.special_tokens}
        self._specials = compile_special_tokens(self.special_tokens)
        self._byte_ids = [id_of.get(bytes([byte])) for byte in range(256)]
        self._ranks: dict[tuple[int, int], int] = {}
        self._merged: list[int] = []
        for rank, (left, right) in enumerate(self.merges):
            for part in (left, right, left + right):
                if part not in id_of:
                    raise ValueError(
                        f"merge {rank} ({left!r}, {right!r}): {part!r} is not in the vocabulary;"
                        " vocabulary and merges must come from the same training"
                    )
            self._ranks.setdefault((id_of[left], id_of[right]), rank)
            self._merged.append(id_of[left + right])
        self.clear_cache()

    def clear_cache(self) -> None:
        """Forget the pre-tokens encoded so far, which make repeated words fast."""
        self._cache = _Cache(self._encode_pretoken, _ENCODE_CACHE_ENTRIES)

    def __reduce__(self) -> tuple[Any, ...]:
        return Tokenizer, (self.vocab, self.merges, self.special_tokens)  # without the cache

    @property
    def vocab_size(self) -> int:
        """Rows that an embedding needs: the greatest id plus one."""
        return max(self.vocab, default=-1) + 1

    @property
    def end_of_text_id(self) -> int:
        """The id of `<|endoftext|>`.

        Raises:
            ValueError: it is not among the special tokens.
        """
        if END_OF_TEXT not in self._special_ids:
            raise ValueError(f"{END_OF_TEXT} is not a special token here; pass it in special_tokens")
        return self._special_ids[END_OF_TEXT]

    # ---- text to ids

    def encode(self, text: str) -> list[int]:
        """Ids of a text.

        Special tokens become one id each (where several start together, the longest wins); the rest is
        cut into pre-tokens, in which the merges are applied in the order of their creation.

        Raises:
            ValueError: a byte of the text is not in the vocabulary (never with a trained one), or the
                text holds a lone surrogate, which UTF-8 cannot write.
        """
        ids: list[int] = []
        for part, is_special in split_special_tokens(text, self._specials):
            if is_special:
                ids.append(self._special_ids[part])
            else:
                ids.extend(chain.from_iterable(map(self._cache.__getitem__, PATTERN.findall(part))))
        return ids

    def encode_iterable(self, iterable: Iterable[str]) -> Iterator[int]:
        """Ids of a stream, one by one: equal to `encode` of all strings joined, however they are cut.

        Needs less than 1 MB however long the stream is, unless one run of letters, say, is.
        """
        cache = _Cache(self._encode_pretoken, _STREAM_CACHE_ENTRIES)
        for piece in cut_stream(iterable, self.special_tokens):
            for part, is_special in split_special_tokens(piece, self._specials):
                if is_special:
                    yield self._special_ids[part]
                else:
                    for pretoken in pretokens(part):
                        yield from cache[pretoken]

    def _encode_pretoken(self, pretoken: str) -> list[int]:
        ids: list[int] = []
        for byte in pretoken.encode():
            number = self._byte_ids[byte]
            if number is None:
                raise ValueError(f"byte {bytes([byte])!r} of {pretoken!r} is not in the vocabulary")
            ids.append(number)
        if len(ids) < _LONG_PRETOKEN_BYTES:
            return apply_merges(ids, self._ranks, self._merged)
        return apply_merges_with_heap(ids, self._ranks, self._merged)

    # ---- ids to text

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; bytes that are not UTF-8 (half a character, say) become U+FFFD.

        Raises:
            ValueError: an id that the vocabulary does not have.
        """
        try:
            return b"".join([self.vocab[number] for number in ids]).decode("utf-8", errors="replace")
        except KeyError as error:
            raise ValueError(f"id {error} is not in the vocabulary of {self.vocab_size} entries") from None

    # ---- files

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json`, and `vocab.json` and `merges.txt` as GPT-2's tools read them.

        Each file appears whole or not at all; equal tokenizers give equal bytes.
        """
        tokens = sorted(self.vocab.items())
        merges = [[printable(left), printable(right)] for left, right in self.merges]
        with replacing(folder / TOKENIZER_FILE, "w") as file:
            rows = {
                "special_tokens": [json.dumps(token) for token in self.special_tokens],
                "vocab": [json.dumps([number, printable(token)], ensure_ascii=False) for number, token in tokens],
                "merges": [json.dumps(merge, ensure_ascii=False) for merge in merges],
            }
            file.write(f'{{"format": {json.dumps(_FORMAT)}')
            for key, lines in rows.items():
                file.write(f',\n"{key}": [\n' + ",\n".join(lines) + "\n]")
            file.write("}\n")
        with replacing(folder / "vocab.json", "w") as file:
            ids: dict[str, int] = {}
            for number, token in tokens:
                ids.setdefault(printable(token), number)
            json.dump(ids, file, ensure_ascii=False)
        with replacing(folder / "merges.txt", "w") as file:
            file.write("#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in merges))

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read what `save` wrote, special tokens included.

        Raises:
            UserError: the file is missing or not such a file.
        """
        path = folder / TOKENIZER_FILE
        stored = _read_json(path)
        if stored.get("format") != _FORMAT:
            raise UserError(f"{path}: not written by this project's tokenizer; train the tokenizer again")
        return cls(_stored_vocab(stored), _stored_merges(stored), stored["special_tokens"])

    @classmethod
    def from_files(
        cls,
        vocab_filepath: str | Path,
        merges_filepath: str | Path,
        special_tokens: Iterable[str] | None = None,
    ) -> Tokenizer:
        """Read vocabulary and merges; which format a file has is seen from its content.

        Args:
            vocab_filepath: our `tokenizer.json`, or GPT-2's JSON of printable tokens and ids; plain or
                gzipped (`.gz`), as the merges may be.
            merges_filepath: our `tokenizer.json` again, or GPT-2's `merges.txt`.
            special_tokens: None takes those stored in `tokenizer.json`, and none for GPT-2's files.

        Raises:
            UserError: a file is missing or has neither format.
        """
        vocab_path, merges_path = Path(vocab_filepath), Path(merges_filepath)
        stored = _read_json(vocab_path)
        if stored.get("format") == _FORMAT:
            vocab = _stored_vocab(stored)
            special_tokens = stored["special_tokens"] if special_tokens is None else special_tokens
        else:
            vocab = _gpt2_vocab(stored, vocab_path)
        return cls(vocab, _read_merges(merges_path), special_tokens)


class _Cache(dict[str, list[int]]):
    """Ids of pre-tokens seen before, two generations of them: what is still in use moves to the newer."""

    def __init__(self, encode: Callable[[str], list[int]], max_entries: int) -> None:
        super().__init__()
        self._encode = encode
        self._max_young = max_entries // 2
        self._old: dict[str, list[int]] = {}

    def __missing__(self, pretoken: str) -> list[int]:
        ids = self._old.get(pretoken)
        if ids is None:
            ids = self._encode(pretoken)
        if len(pretoken) < _LONG_PRETOKEN_BYTES:  # longer ones hardly ever come again
            if len(self) >= self._max_young:
                self._old = dict(self)
                self.clear()
            self[pretoken] = ids
        return ids


def apply_merges(ids: list[int], ranks: Mapping[tuple[int, int], int], merged: list[int]) -> list[int]:
    """Merge the present pair of lowest rank, all its occurrences left to right, until none is left.

    Args:
        ids: of the single bytes of a pre-token.
        ranks: of the pairs of ids that merge; 0 first.
        merged: the id that each rank gives.
    """
    while len(ids) > 1:
        pair_ranks = [ranks.get(pair, math.inf) for pair in pairwise(ids)]
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
    heap = [(rank, place) for place, pair in enumerate(pairwise(ids)) if (rank := ranks.get(pair)) is not None]
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


def _byte_characters() -> dict[int, str]:
    """GPT-2's printable character for each byte: itself where it has one, else from U+0100 on."""
    printable_bytes = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printable_bytes]
    return {byte: chr(byte) for byte in printable_bytes} | {byte: chr(256 + n) for n, byte in enumerate(others)}


_CHARACTER_OF_BYTE = _byte_characters()
_BYTE_OF_CHARACTER = {character: byte for byte, character in _CHARACTER_OF_BYTE.items()}


def printable(token: bytes) -> str:
    """Bytes in GPT-2's printable characters, one a byte; `from_printable` is the inverse."""
    return "".join([_CHARACTER_OF_BYTE[byte] for byte in token])


def from_printable(text: str) -> bytes:
    """The bytes behind printable characters.

    Raises:
        KeyError: a character that stands for no byte.
    """
    return bytes([_BYTE_OF_CHARACTER[character] for character in text])


def _read_text(path: Path) -> str:
    opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8", newline="\n") as file:
            return file.read()
    except FileNotFoundError:
        raise UserError(f"{path}: not found; train the tokenizer first, or name its files") from None
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
        raise UserError(f"{path}: not a readable tokenizer file ({error})") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a tokenizer file (a JSON object is expected)")
    return value


def _stored_vocab(stored: dict[str, Any]) -> dict[int, bytes]:
    return {number: from_printable(token) for number, token in stored["vocab"]}


def _stored_merges(stored: dict[str, Any]) -> list[tuple[bytes, bytes]]:
    return [(from_printable(left), from_printable(right)) for left, right in stored["merges"]]


def _gpt2_vocab(stored: dict[str, Any], path: Path) -> dict[int, bytes]:
    vocab: dict[int, bytes] = {}
    for token, number in stored.items():
        if not isinstance(number, int):
            raise UserError(f"{path}: neither a {TOKENIZER_FILE} of this project nor GPT-2's vocabulary")
        if all(character in _BYTE_OF_CHARACTER for character in token):
            vocab[number] = from_printable(token)
        else:
            vocab[number] = token.encode()  # a special token, which other tools write as it is
    return vocab


def _read_merges(path: Path) -> list[tuple[bytes, bytes]]:
    text = _read_text(path)
    if text.startswith('{"format": ' + json.dumps(_FORMAT)):
        return _stored_merges(_read_json(path))
    merges = []
    # Not splitlines(), which knows more line ends than "\n". "#" starts a comment in the first line only.
    for number, line in enumerate(text.split("\n"), 1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        try:
            left, right = line.split(" ")
            merges.append((from_printable(left), from_printable(right)))
        except (ValueError, KeyError):
            raise UserError(f"{path}:{number}: not a merge, two printable tokens and a space: {line!r}") from None
    return merges
