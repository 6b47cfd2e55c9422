"""Token shards: a crawl shard's documents as flat arrays of token ids on disk, training and held-out apart."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cs336.files import UserError, read_jsonl, replacing
from cs336.processes import map_ordered
from cs336.progress import Progress, silent
from cs336.tokenizer.bpe import Tokenizer

if TYPE_CHECKING:
    from cs336.documents import Document

SPLITS = ("train", "valid")
INDEX_FILE = "index.jsonl"
TOKEN_DTYPE = np.dtype("<u2")  # two bytes a token, so at most 65,536 of them; little-endian on every machine

# Characters in one task for a worker: enough to hide the cost of sending it.
_TASK_CHARS = 250_000
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


class IndexedDocument(NamedTuple):
    """Where one document's tokens lie.

    Attributes:
        split: "train" or "valid".
        first_token: place of its first token in the split's file.
        num_tokens: with the closing `<|endoftext|>`.
        num_text_bytes: of its text in UTF-8.
        row: its place among the shard's documents.
        id: the record it was read from.
        url: the page's address.
    """

    split: str
    first_token: int
    num_tokens: int
    num_text_bytes: int
    row: int
    id: str
    url: str


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

    The files are bare uint16 ids, little-endian, `<|endoftext|>` after each document; `index.jsonl`
    has one line a document. A text that UTF-8 cannot write is skipped and counted.

    Args:
        num_workers: processes that encode; the files do not depend on it.

    Raises:
        ValueError: the vocabulary has more than 65,536 entries, or no `<|endoftext|>`; or
            `valid_fraction` is not within 0 and 1.
    """
    if tokenizer.vocab_size > 65_536:
        raise ValueError(f"{tokenizer.vocab_size} entries do not fit uint16; train with a vocab_size up to 65,536")
    if not 0 <= split.valid_fraction <= 1:
        raise ValueError(f"valid_fraction {split.valid_fraction} is not a share; give a number from 0 to 1")
    end_of_text = tokenizer.end_of_text_id
    start = time.perf_counter()
    num_documents, num_tokens, num_text_bytes = Counter[str](), Counter[str](), Counter[str]()
    skipped: Counter[str] = Counter()
    with contextlib.ExitStack() as stack:
        index = stack.enter_context(replacing(folder / INDEX_FILE, "w"))
        files = {name: stack.enter_context(replacing(folder / f"{name}.bin")) for name in SPLITS}
        encode = stack.enter_context(_encoder(tokenizer, num_workers))
        tasks = _tasks(progress(documents, unit="documents", label="tokenize"))
        encoded = (document for task in map_ordered(encode, tasks, num_workers=num_workers) for document in task)
        for row, (record_id, url, text_bytes, ids) in enumerate(encoded):
            if ids is None:
                skipped["not writable as UTF-8"] += 1
                continue
            name = "valid" if is_held_out(document_key(url, record_id), split) else "train"
            files[name].write(np.append(ids, TOKEN_DTYPE.type(end_of_text)).astype(TOKEN_DTYPE).tobytes())
            entry = IndexedDocument(name, num_tokens[name], len(ids) + 1, text_bytes, row, record_id, url)
            index.write(json.dumps(entry._asdict(), ensure_ascii=False) + "\n")
            num_documents[name] += 1
            num_tokens[name] += entry.num_tokens
            num_text_bytes[name] += text_bytes
    return ShardStats(
        num_documents=num_documents.total(),
        num_tokens=num_tokens.total(),
        num_text_bytes=num_text_bytes.total(),
        num_valid_documents=num_documents["valid"],
        num_valid_tokens=num_tokens["valid"],
        num_valid_text_bytes=num_text_bytes["valid"],
        num_skipped=dict(skipped),
        encode_seconds=time.perf_counter() - start,
    )


# A document on its way to a worker (record id, URL, text) and back (record id, URL, UTF-8 bytes, ids).
# Plain tuples: reading a Document back would make each worker import polars.
_Text = tuple[str, str, str]
_Encoded = tuple[str, str, int, Any]


def _tasks(documents: Iterable[Document]) -> Iterator[list[_Text]]:
    task: list[_Text] = []
    size = 0
    for document in documents:
        task.append((document.id, document.url, document.text))
        size += len(document.text)
        if size >= _TASK_CHARS:
            yield task
            task, size = [], 0
    if task:
        yield task


@contextlib.contextmanager
def _encoder(tokenizer: Tokenizer, num_workers: int) -> Iterator[Callable[[list[_Text]], list[_Encoded]]]:
    """The function that encodes a task; workers read the tokenizer from a file, once each."""
    if num_workers <= 1:
        yield functools.partial(_encode_texts, tokenizer)
        return
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder))
        yield functools.partial(_encode_in_worker, folder)


def _encode_in_worker(folder: str, texts: list[_Text]) -> list[_Encoded]:
    return _encode_texts(_load_once(folder), texts)


@functools.lru_cache(maxsize=1)
def _load_once(folder: str) -> Tokenizer:
    return Tokenizer.load(Path(folder))


def _encode_texts(tokenizer: Tokenizer, texts: list[_Text]) -> list[_Encoded]:
    encoded: list[_Encoded] = []
    for record_id, url, text in texts:
        try:
            text_bytes = len(text.encode())
        except UnicodeEncodeError:
            encoded.append((record_id, url, 0, None))
            continue
        encoded.append((record_id, url, text_bytes, np.array(tokenizer.encode(text), dtype=TOKEN_DTYPE)))
    return encoded


def open_tokens(path: Path) -> np.ndarray:
    """Token ids of one file, memory-mapped and read-only (an empty array for an empty file).

    Raises:
        UserError: the file is missing, or ends within a token.
    """
    if not path.exists():
        raise UserError(f"{path}: not found; materialize the token shards")
    size = path.stat().st_size
    if size % TOKEN_DTYPE.itemsize:
        raise UserError(f"{path}: {size} bytes are not whole uint16 tokens; delete its folder and run again")
    if size == 0:  # cannot be mapped
        return np.empty(0, dtype=TOKEN_DTYPE)
    return np.memmap(path, dtype=TOKEN_DTYPE, mode="r")


def read_index(folder: Path) -> Iterator[IndexedDocument]:
    """Where each document of a shard lies, in the documents' order.

    Raises:
        UserError: the index is missing or damaged.
    """
    for row in read_jsonl(folder / INDEX_FILE):
        yield IndexedDocument(**row)


def largest_token_id(folders: Iterable[Path]) -> int:
    """The greatest id stored in any split of any of these shards, read from disk.

    Raises:
        ValueError: there is no token at all.
    """
    largest = -1
    for folder in folders:
        for name in SPLITS:
            tokens = open_tokens(folder / f"{name}.bin")
            for start in range(0, len(tokens), _READ_TOKENS):
                largest = max(largest, int(tokens[start : start + _READ_TOKENS].max()))
    if largest < 0:
        raise ValueError("the shards hold no tokens; check how many documents were kept before them")
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
