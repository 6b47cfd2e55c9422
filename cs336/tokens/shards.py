"""Token shards: a crawl shard's documents as flat arrays of token ids on disk, training and held-out apart."""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cs336.files import UserError, replacing
from cs336.processes import in_batches
from cs336.progress import Progress, silent
from cs336.tokenizer.bpe import END_OF_TEXT, Tokenizer
from cs336.tokenizer.pretokenize import cut_stream
from cs336.tokens.index import IndexedDocument, index_line, index_path

if TYPE_CHECKING:
    from cs336.documents import Document

SPLITS = ("train", "valid")
TOKEN_DTYPE = np.dtype("<u2")  # two bytes a token, so at most 65,536 of them; little-endian on every machine

_BATCH_CHARS = 1_000_000  # encoded at a time by one thread: its ids need 4 MB at most
_READ_TOKENS = 1 << 22  # tokens looked at at a time when a whole file is checked: 8 MB


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """Which documents are held out.

    Attributes:
        valid_fraction: share of whole documents kept out of training. 2 %: of a crawl shard's few
            MB, tens of KB are enough to tell 0.01 bits per byte apart, and training loses little.
        valid_pattern: regular expression searched in a document's address; the documents in which it is
            found are the held-out ones, and `valid_fraction` is not looked at. For corpora that come
            with a validation file. "" is none.
    """

    valid_fraction: float = 0.02
    valid_pattern: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.valid_fraction <= 1:
            raise ValueError(f"valid_fraction {self.valid_fraction} is not a share; give a number from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class ShardStats:
    """What `write_shard` wrote.

    Attributes:
        num_documents, num_tokens, num_text_bytes: both splits together; tokens include one
            `<|endoftext|>` a document, bytes are UTF-8's and do not.
        num_valid_documents, num_valid_tokens, num_valid_text_bytes: the held-out part of them.
        num_skipped: documents left out, by reason.
        encode_seconds: wall time.
    """

    num_documents: int
    num_tokens: int
    num_text_bytes: int
    num_valid_documents: int
    num_valid_tokens: int
    num_valid_text_bytes: int
    num_skipped: dict[str, int]
    encode_seconds: float


def document_key(url: str, record_id: str) -> str:
    """What identifies a document when it is decided whether it is held out."""
    return f"{url}\n{record_id}"


def is_held_out(document_id: str, config: SplitConfig) -> bool:
    """Whether a document belongs to the held-out part: decided by its identity alone, mostly by a hash of it.

    So a document stays on its side when others come, go or change places, and a smaller
    `valid_fraction` holds out a subset.

    Args:
        document_id: as `document_key` makes it.
    """
    if config.valid_pattern:
        return re.search(config.valid_pattern, document_id.partition("\n")[0]) is not None
    digest = hashlib.blake2b(document_id.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < config.valid_fraction * 2**64


def write_shard(
    folder: Path,
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    *,
    split: SplitConfig,
    num_workers: int = 1,
    progress: Progress = silent,
) -> ShardStats:
    """Encode documents in their order into `train.bin` and `valid.bin`, and note where each one lies.

    The files are bare uint16 ids, little-endian, `<|endoftext|>` after each document; `train.jsonl`
    and `valid.jsonl` have one line a document (see `cs336.tokens.index`). A few million characters are
    held at a time, however many documents come. A text that UTF-8 cannot write is skipped and counted.

    Args:
        num_workers: threads that encode; the files do not depend on it.

    Raises:
        ValueError: the vocabulary has more than 65,536 entries, or no `<|endoftext|>`.
    """
    _check_vocabulary(tokenizer)
    end_of_text = tokenizer.end_of_text_id
    start = time.perf_counter()
    skipped: Counter[str] = Counter()
    waiting: deque[list[_Origin]] = deque()  # of the batches on their way through the encoder

    def batches() -> Iterator[list[str]]:
        watched = progress(documents, unit="documents", label="tokenize")
        for batch in in_batches(_readable(watched, skipped), lambda each: len(each[1]), _BATCH_CHARS):
            waiting.append([origin for origin, _ in batch])
            yield [text for _, text in batch]

    with contextlib.ExitStack() as stack:
        train, valid = (_Split(stack, folder / f"{name}.bin") for name in SPLITS)
        for ids, ends in tokenizer.encode_batches(batches(), num_threads=num_workers):
            origins = waiting.popleft()
            held_out = [is_held_out(document_key(each.url, each.id), split) for each in origins]
            tokens, lengths = _with_ends(ids, ends, end_of_text)
            is_valid = np.repeat(held_out, lengths)
            train.write(tokens[~is_valid])
            valid.write(tokens[is_valid])
            for origin, length, is_held in zip(origins, lengths.tolist(), held_out, strict=True):
                (valid if is_held else train).note(origin, length)
    return ShardStats(
        num_documents=train.num_documents + valid.num_documents,
        num_tokens=train.num_tokens + valid.num_tokens,
        num_text_bytes=train.num_text_bytes + valid.num_text_bytes,
        num_valid_documents=valid.num_documents,
        num_valid_tokens=valid.num_tokens,
        num_valid_text_bytes=valid.num_text_bytes,
        num_skipped=dict(skipped),
        encode_seconds=time.perf_counter() - start,
    )


def write_text(
    path: Path, chunks: Iterable[str], tokenizer: Tokenizer, *, name: str, num_workers: int = 1
) -> tuple[int, int, int]:
    """Encode one text, however long, into a file of bare uint16 ids, with an index of its documents beside it.

    The ids are those of `Tokenizer.encode` on the whole text, however it is cut into chunks; nothing is
    added or held out. Each `<|endoftext|>` of the text ends a document.

    Args:
        path: such as `train.bin`; the index is then `train.jsonl`.
        name: of the text, which stands in the index as its file; offsets there are bytes of its UTF-8.
        num_workers: threads that encode.

    Returns:
        Number of documents, of tokens, and of bytes of text.

    Raises:
        ValueError: the vocabulary has more than 65,536 entries, or the text holds a lone surrogate.
    """
    _check_vocabulary(tokenizer)
    mark = tokenizer.end_of_text_id if END_OF_TEXT in tokenizer.special_tokens else -1
    token_bytes = np.zeros(tokenizer.vocab_size, np.int64)
    token_bytes[list(tokenizer.vocab)] = [len(token) for token in tokenizer.vocab.values()]
    batches = in_batches(cut_stream(chunks, tokenizer.special_tokens), len, _BATCH_CHARS)
    num_tokens = num_bytes = begin = 0  # before this batch; and where the document begins in the text's bytes
    with contextlib.ExitStack() as stack:
        out = _Split(stack, path)

        def end_document(token: int, text_end: int) -> None:
            row = out.num_documents
            out.note(_Origin(row, f"{name}#{row}", name, name, begin, text_end - begin), token - out.num_tokens)

        for ids, _ in tokenizer.encode_batches(batches, num_threads=num_workers):
            out.write(ids)
            bytes_until = num_bytes + np.cumsum(token_bytes[ids])
            marks = np.flatnonzero(ids == mark)
            for token, place in zip((num_tokens + marks + 1).tolist(), bytes_until[marks].tolist(), strict=True):
                end_document(token, place - len(END_OF_TEXT))
                begin = place
            num_tokens += len(ids)
            num_bytes = int(bytes_until[-1]) if len(ids) else num_bytes
        if num_tokens > out.num_tokens:
            end_document(num_tokens, num_bytes)
    return out.num_documents, num_tokens, num_bytes


def _check_vocabulary(tokenizer: Tokenizer) -> None:
    if tokenizer.vocab_size > 65_536:
        raise ValueError(f"{tokenizer.vocab_size} entries do not fit uint16; train with a vocab_size up to 65,536")


class _Origin(NamedTuple):
    """What the index says of a document before its tokens are known: see `IndexedDocument`."""

    row: int
    id: str
    url: str
    warc: str
    offset: int
    num_text_bytes: int


def _readable(documents: Iterable[Document], skipped: Counter[str]) -> Iterator[tuple[_Origin, str]]:
    for row, document in enumerate(documents):
        try:
            num_bytes = len(document.text.encode())
        except UnicodeEncodeError:
            skipped["not writable as UTF-8"] += 1
            continue
        yield _Origin(row, document.id, document.url, document.warc, document.offset, num_bytes), document.text


def _with_ends(ids: np.ndarray, ends: np.ndarray, end_of_text: int) -> tuple[np.ndarray, np.ndarray]:
    """The ids of a batch with `<|endoftext|>` after each text, and how many each text has then."""
    marks = ends + np.arange(len(ends))
    tokens = np.empty(len(ids) + len(ends), TOKEN_DTYPE)
    is_text = np.ones(len(tokens), bool)
    is_text[marks] = False
    tokens[is_text] = ids
    tokens[marks] = end_of_text
    return tokens, np.diff(marks, prepend=-1)


class _Split:
    """A file of ids and its index, being written; both appear when `stack` is left without an error."""

    def __init__(self, stack: contextlib.ExitStack, path: Path) -> None:
        self._tokens = stack.enter_context(replacing(path))
        self._index = stack.enter_context(replacing(index_path(path), "w"))
        self._name = path.stem
        self.num_documents = self.num_tokens = self.num_text_bytes = 0

    def write(self, ids: np.ndarray) -> None:
        self._tokens.write(ids.astype(TOKEN_DTYPE, copy=False).data)

    def note(self, origin: _Origin, num_tokens: int) -> None:
        """The next document's tokens are these many."""
        row, record_id, url, warc, offset, num_bytes = origin
        place = IndexedDocument(self._name, self.num_tokens, num_tokens, num_bytes, row, record_id, url, warc, offset)
        self._index.write(index_line(place))
        self.num_documents += 1
        self.num_tokens += num_tokens
        self.num_text_bytes += num_bytes


def open_tokens(path: Path) -> np.ndarray:
    """Token ids of one file, memory-mapped and read-only (an empty array for an empty file).

    Raises:
        UserError: the file is missing, or ends within a token.
    """
    if not path.exists():
        raise UserError(f"{path}: not found; `cs336 tokenizer encode --out` or the asset token_shards makes it")
    size = path.stat().st_size
    if size % TOKEN_DTYPE.itemsize:
        raise UserError(f"{path}: {size} bytes are not whole uint16 tokens; delete its folder and run again")
    if size == 0:  # cannot be mapped
        return np.empty(0, dtype=TOKEN_DTYPE)
    return np.memmap(path, dtype=TOKEN_DTYPE, mode="r")


def largest_token_id(folders: Iterable[Path]) -> int:
    """The greatest id stored in any split of any of these shards, read from disk; -1 if there is no token at all."""
    largest = -1
    for folder in folders:
        for name in SPLITS:
            tokens = open_tokens(folder / f"{name}.bin")
            for start in range(0, len(tokens), _READ_TOKENS):
                largest = max(largest, int(tokens[start : start + _READ_TOKENS].max()))
    return largest


class TokenArray:
    """Several token arrays as if they were one after the other; nothing is copied until it is read.

    `len(tokens)`, `tokens[i]` and `tokens[start:stop]` work as on one NumPy array.
    """

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        self._arrays = [array for array in arrays if len(array)]
        self._starts = np.cumsum([0, *map(len, self._arrays)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, place: int | slice) -> Any:
        if isinstance(place, slice):
            start, stop, step = place.indices(len(self))
            if step != 1:
                raise ValueError(f"step {step} is not supported; slice with step 1")
            return self._read(start, stop)
        if not -len(self) <= place < len(self):
            raise IndexError(f"place {place} is outside {len(self)} tokens")
        start = place % len(self)
        return self._read(start, start + 1)[0]

    def _read(self, start: int, stop: int) -> np.ndarray:
        parts = []
        number = int(np.searchsorted(self._starts, start, side="right")) - 1
        while start < stop:
            begin = int(self._starts[number])
            part = self._arrays[number][start - begin : stop - begin]
            parts.append(part)
            start += len(part)
            number += 1
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.empty(0, dtype=TOKEN_DTYPE)


def concatenate(folders: Iterable[Path], split: str) -> TokenArray:
    """One split of several shards, in the order given.

    Raises:
        ValueError: `split` is neither "train" nor "valid".
        UserError: a shard's file is missing or damaged.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} does not exist; choose one of {', '.join(SPLITS)}")
    return TokenArray([open_tokens(folder / f"{split}.bin") for folder in folders])
