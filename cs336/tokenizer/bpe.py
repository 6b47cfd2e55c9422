"""Tokenizer: text to ids and back with a learned BPE vocabulary; whole texts, streams, files."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cs336.files import UserError
from cs336.tokenizer import formats
from cs336.tokenizer.formats import END_OF_TEXT
from cs336.tokenizer.pretokenize import (
    PATTERN,
    compile_special_tokens,
    cut_stream,
    pretokens,
    split_special_tokens,
)
from cs336.tokenizer.reference import apply_merges, apply_merges_with_heap

if TYPE_CHECKING:
    from cs336.tokenizer.encoder import Encoder

_STREAM_CACHE_ENTRIES = 2_048  # about 0.4 MB measured: a stream may take 1 MB in all
_STREAM_IDS = 1_024  # of a stream that become Python's integers at once
_CACHE_ENTRIES = 20_000
_LONG_PRETOKEN_BYTES = 100  # from here on the heap is faster than looking at every pair again
_COMPILE_FROM_CHARS = 200_000  # shorter texts are done before the compiled kernels are loaded
# Of the kernels' table of merges; larger vocabularies are encoded in Python.
_GREATEST_COMPILED_ID, _MOST_COMPILED_MERGES = (1 << 21) - 2, 1 << 22


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
        self._cache = _Cache(self._encode_pretoken, _CACHE_ENTRIES)
        self._encoder: Encoder | None = None

    def prepare(self) -> None:
        """Load the compiled kernels now, not when the first long text comes (seconds the first time on a machine).

        Needed before `encode_iterable` only: a stream must not need memory, so it does not load them itself,
        and is several times faster with them.
        """
        if self._encoder is None and self._why_plain() is None:
            from cs336.tokenizer.encoder import Encoder

            id_of = {token: number for number, token in sorted(self.vocab.items(), reverse=True)}
            self._encoder = Encoder(
                [number for number in self._byte_ids if number is not None],
                [(id_of[left], id_of[right], id_of[left + right]) for left, right in self.merges],
                {token.encode(): number for token, number in self._special_ids.items()},
                words=[token for token in self.vocab.values() if token not in map(str.encode, self.special_tokens)],
            )

    def _why_plain(self) -> str | None:
        """Why the compiled kernels cannot encode with this vocabulary; None if they can."""
        for byte, number in enumerate(self._byte_ids):
            if number is None:
                return f"byte {bytes([byte])!r} is not in the vocabulary"
        if max(self.vocab) > _GREATEST_COMPILED_ID or len(self.merges) > _MOST_COMPILED_MERGES:
            return f"an id is above {_GREATEST_COMPILED_ID:,}, or there are more than {_MOST_COMPILED_MERGES:,} merges"
        return None

    def clear_cache(self) -> None:
        """Forget the pre-tokens encoded so far, which make repeated words fast."""
        self._cache = _Cache(self._encode_pretoken, _CACHE_ENTRIES)
        if self._encoder is not None:
            self._encoder.clear()

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
        if self._encoder is not None or len(text) >= _COMPILE_FROM_CHARS:
            return self.encode_batch([text])[0].tolist()
        return self._encode_plainly(text)

    def encode_batch(self, texts: Sequence[str], *, num_threads: int = 1) -> list[np.ndarray]:
        """Ids of many texts as arrays (uint32): what `encode` gives for each, many times as fast.

        Raises:
            ValueError: as `encode`.
        """
        if self._encoder is None and sum(map(len, texts)) >= _COMPILE_FROM_CHARS:
            self.prepare()
        if self._encoder is None:
            return [np.array(self._encode_plainly(text), np.uint32) for text in texts]
        from cs336.tokenizer.encoder import batches_of

        encoded: list[np.ndarray] = []
        for ids, ends in self._encoder.encode_batches(batches_of(texts), num_threads):
            start = 0
            for end in ends.tolist():
                encoded.append(ids[start:end])
                start = end
        return encoded

    def encode_batches(
        self, batches: Iterable[Sequence[str]], *, num_threads: int = 1
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Ids of a stream of batches of texts: what `encode` gives for each text.

        Batches are read as they are needed, a few for each thread at a time, and come out in their order.
        Threads are kept busy by batches of about a million characters.

        Yields:
            The ids of a batch's texts one after the other (uint32), and where the ids of each text end.

        Raises:
            ValueError: as `encode`.
        """
        remaining = iter(batches)
        num_chars = 0
        for batch in remaining:
            num_chars += sum(map(len, batch))
            if self._encoder is None and num_chars >= _COMPILE_FROM_CHARS:
                self.prepare()
            if self._encoder is not None:
                yield from self._encoder.encode_batches(chain([batch], remaining), num_threads)
                return
            encoded = [self._encode_plainly(text) for text in batch]
            ends = np.cumsum(np.array([len(ids) for ids in encoded], np.int64))
            yield np.array(list(chain.from_iterable(encoded)), np.uint32), ends

    def encode_files(self, paths: Sequence[Path], *, num_threads: int = 1) -> Iterator[np.ndarray]:
        """Ids (uint32) of each of many UTF-8 files: what `encode` gives for their text, without making strings of it.

        Raises:
            ValueError: a byte is not in the vocabulary, or that is too large for the compiled kernels.
            UserError: a file is missing or not UTF-8.
        """
        for path in paths:
            if not path.exists():
                raise UserError(f"{path}: not found; give the paths of text files")
        self.prepare()
        if self._encoder is None:
            raise ValueError(f"{self._why_plain()}; encode the files' texts with `encode`")
        yield from self._encoder.encode_files(paths, num_threads)

    def _encode_plainly(self, text: str) -> list[int]:
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
            if self._encoder is not None:
                ids = self._encoder.encode_without_memory(piece)
                for start in range(0, len(ids), _STREAM_IDS):
                    yield from ids[start : start + _STREAM_IDS].tolist()
                continue
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
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of ids, which may end within a character.

        Raises:
            ValueError: an id that the vocabulary does not have.
        """
        try:
            return b"".join([self.vocab[number] for number in ids])
        except KeyError as error:
            raise ValueError(f"id {error} is not in the vocabulary of {self.vocab_size} entries") from None

    # ---- files

    def save(self, folder: Path) -> None:
        """Write `bpe.json`; `tokenizer.json` as transformers and vLLM load it; GPT-2's `vocab.json` and `merges.txt`.

        Each file appears whole or not at all; equal tokenizers give equal bytes. A vocabulary that `tokenizer.json`
        cannot express, which training never gives, goes without it.
        """
        stored = self._stored()
        formats.write_own(folder / formats.OWN_FILE, stored)
        formats.write_gpt2(folder, stored)
        with contextlib.suppress(ValueError):
            formats.write_hugging_face(folder, stored)

    def save_hugging_face(self, folder: Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json` alone.

        Raises:
            ValueError: that format cannot tell two of the tokens apart.
        """
        formats.write_hugging_face(folder, self._stored())

    def save_gpt2(self, folder: Path) -> None:
        """Write GPT-2's `vocab.json` and `merges.txt` alone; they do not say which tokens are special."""
        formats.write_gpt2(folder, self._stored())

    def save_tiktoken(self, path: Path) -> None:
        """Write tiktoken's file of ranks.

        Raises:
            ValueError: the merges do not follow from the order of the ids, which is what tiktoken goes by.
        """
        formats.write_tiktoken(path, self._stored())

    def _stored(self) -> formats.Stored:
        return formats.Stored(self.vocab, self.merges, self.special_tokens)

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read what `save` wrote, special tokens included; or a folder that has Hugging Face's `tokenizer.json` only.

        Raises:
            UserError: the file is missing or not such a file.
        """
        if not (folder / formats.OWN_FILE).exists() and (folder / formats.HUGGING_FACE_FILE).exists():
            return cls.from_hugging_face(folder / formats.HUGGING_FACE_FILE)
        return cls._from_stored(formats.read_own(folder / formats.OWN_FILE), folder / formats.OWN_FILE)

    @classmethod
    def from_files(
        cls,
        vocab_filepath: str | Path,
        merges_filepath: str | Path,
        special_tokens: Iterable[str] | None = None,
    ) -> Tokenizer:
        """Read GPT-2's `vocab.json` and `merges.txt`, plain or gzipped (`.gz`).

        Args:
            special_tokens: the files do not mark them; None takes none.

        Raises:
            UserError: a file is missing or not such a file.
        """
        stored = formats.read_gpt2(Path(vocab_filepath), Path(merges_filepath))
        return cls._from_stored(stored._replace(special_tokens=tuple(special_tokens or ())), Path(merges_filepath))

    @classmethod
    def from_hugging_face(cls, path: str | Path) -> Tokenizer:
        """Read a `tokenizer.json` of byte-level BPE that cuts text as GPT-2 does.

        Raises:
            UserError: the file is missing, or its text is cut or merged otherwise.
        """
        return cls._from_stored(formats.read_hugging_face(Path(path)), Path(path))

    @classmethod
    def from_tiktoken(cls, path: str | Path, special_tokens: Mapping[str, int]) -> Tokenizer:
        """Read tiktoken's file of ranks; special tokens and their ids are not in it.

        Raises:
            UserError: the file is missing or not such a file.
        """
        return cls._from_stored(formats.read_tiktoken(Path(path), special_tokens), Path(path))

    @classmethod
    def _from_stored(cls, stored: formats.Stored, path: Path) -> Tokenizer:
        try:
            return cls(*stored)
        except ValueError as error:
            raise UserError(f"{path}: {error}") from None


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
