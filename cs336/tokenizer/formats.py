"""Tokenizers in files: our own format, GPT-2's, tiktoken's, and Hugging Face's `tokenizer.json`."""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cs336.files import UserError, replacing
from cs336.tokenizer.pretokenize import PATTERN
from cs336.tokenizer.reference import Merges, apply_merges

OWN_FILE = "bpe.json"
HUGGING_FACE_FILE = "tokenizer.json"
END_OF_TEXT = "<|endoftext|>"  # GPT-2's mark after each document
_FORMAT = "cs336 byte-level BPE, 1"


class Stored(NamedTuple):
    """What a file says: as `Tokenizer` takes it."""

    vocab: dict[int, bytes]
    merges: Merges
    special_tokens: tuple[str, ...]


# ---- our own: any vocabulary, also one in which two merges give the same bytes ----------------------


def write_own(path: Path, tokenizer: Stored) -> None:
    """One JSON object, a line an entry; equal tokenizers give equal bytes."""
    rows = {
        "special_tokens": [json.dumps(token) for token in tokenizer.special_tokens],
        "vocab": [
            json.dumps([number, printable(token)], ensure_ascii=False)
            for number, token in sorted(tokenizer.vocab.items())
        ],
        "merges": [
            json.dumps([printable(left), printable(right)], ensure_ascii=False) for left, right in tokenizer.merges
        ],
    }
    with replacing(path, "w") as file:
        file.write(f'{{"format": {json.dumps(_FORMAT)}')
        for key, lines in rows.items():
            file.write(f',\n"{key}": [\n' + ",\n".join(lines) + "\n]")
        file.write("}\n")


def read_own(path: Path) -> Stored:
    """Read what `write_own` wrote.

    Raises:
        UserError: the file is missing or not such a file.
    """
    stored = _read_json(path)
    if stored.get("format") != _FORMAT:
        raise UserError(f"{path}: not written by this project's tokenizer; train the tokenizer again")
    with _naming(path):
        vocab = {number: from_printable(token) for number, token in stored["vocab"]}
        merges = [(from_printable(left), from_printable(right)) for left, right in stored["merges"]]
        return _checked(Stored(vocab, merges, tuple(stored["special_tokens"])))


# ---- GPT-2's vocab.json and merges.txt --------------------------------------------------------------


def write_gpt2(folder: Path, tokenizer: Stored) -> None:
    """`vocab.json` (printable token to id) and `merges.txt` (one a line)."""
    with replacing(folder / "vocab.json", "w") as file:
        ids: dict[str, int] = {}
        for number, token in sorted(tokenizer.vocab.items()):
            ids.setdefault(printable(token), number)
        json.dump(ids, file, ensure_ascii=False)
    with replacing(folder / "merges.txt", "w") as file:
        lines = (f"{printable(left)} {printable(right)}\n" for left, right in tokenizer.merges)
        file.write("#version: 0.2\n" + "".join(lines))


def read_gpt2(vocab_path: Path, merges_path: Path) -> Stored:
    """Read GPT-2's two files, plain or gzipped; special tokens are not marked in them.

    Raises:
        UserError: a file is missing or not such a file.
    """
    ids = _read_json(vocab_path)
    if not all(type(number) is int for number in ids.values()):
        raise UserError(f"{vocab_path}: not GPT-2's vocab.json; Tokenizer.load reads {OWN_FILE}")
    with _naming(vocab_path):
        vocab = _checked(Stored({number: _bytes_of(token) for token, number in ids.items()}, [], ())).vocab
    merges = []
    # Not splitlines(), which knows more line ends than "\n". "#" starts a comment in the first line only.
    for number, line in enumerate(_read_text(merges_path).split("\n"), 1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        try:
            left, right = line.split(" ")
            merges.append((from_printable(left), from_printable(right)))
        except (ValueError, KeyError):
            raise UserError(
                f"{merges_path}:{number}: not a merge, two printable tokens and a space: {line!r}"
            ) from None
    return Stored(vocab, merges, ())


# ---- Hugging Face's tokenizer.json ------------------------------------------------------------------


def write_hugging_face(folder: Path, tokenizer: Stored) -> None:
    """`tokenizer.json` and `tokenizer_config.json`, which transformers and vLLM load as they are.

    They give the same ids for every text whose characters their own Unicode tables know: a letter that
    Unicode has got since may be cut from its word. Their decoder shows special tokens of ASCII alone rightly.

    Raises:
        ValueError: two ids have the same bytes, or a special token is spelt as another token is in this
            format; it cannot tell them apart.
    """
    ids = {token: number for number, token in tokenizer.vocab.items()}
    if len(ids) < len(tokenizer.vocab):
        raise ValueError("two ids have the same bytes; tokenizer.json has room for one (use bpe.json)")
    vocab = {printable(token): number for number, token in sorted(_ordinary(tokenizer).items())}
    for token in tokenizer.special_tokens:
        if vocab.setdefault(token, ids[token.encode()]) != ids[token.encode()]:
            raise ValueError(f"{token!r} is a special token and, in tokenizer.json, another one's name (use bpe.json)")
    # The pattern is spelt out: ByteLevel's own changed its Unicode tables between versions.
    splits = {"type": "Split", "pattern": {"Regex": PATTERN.pattern}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": ids[token.encode()], "content": token, "single_word": False, "lstrip": False}
            | {"rstrip": False, "normalized": False, "special": True}
            for token in sorted(tokenizer.special_tokens, key=lambda token: ids[token.encode()])
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [splits, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None}
        | {"end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
        | {"vocab": vocab, "merges": [[printable(left), printable(right)] for left, right in tokenizer.merges]},
    }
    with replacing(folder / HUGGING_FACE_FILE, "w") as file:
        json.dump(document, file, ensure_ascii=False)
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    if END_OF_TEXT in tokenizer.special_tokens:
        config |= {"eos_token": END_OF_TEXT, "bos_token": END_OF_TEXT}
    with replacing(folder / "tokenizer_config.json", "w") as file:
        json.dump(config, file, ensure_ascii=False, indent=1)


def read_hugging_face(path: Path) -> Stored:
    """Read a byte-level BPE `tokenizer.json` that cuts text as GPT-2 does.

    Raises:
        UserError: the file is missing, or its text is cut or merged otherwise (Llama 3's and Qwen's are).
    """
    stored = _read_json(path)
    with _naming(path):
        model = stored["model"]
        # Early files, GPT-2's own among them, do not name the kind of model.
        kind = model.get("type", "BPE" if "merges" in model else None)
        if kind != "BPE" or any(model.get(key) for key in _FOREIGN):
            raise UserError(f"{path}: not byte-level BPE ({kind!r}); open it with the package `tokenizers`")
        if stored.get("normalizer") is not None or not _cuts_as_gpt2(stored.get("pre_tokenizer")):
            raise UserError(f"{path}: cuts text by another pattern than GPT-2's; open it with the package `tokenizers`")
        added = stored.get("added_tokens", [])
        if any(token.get(key) for token in added for key in ("single_word", "lstrip", "rstrip")):
            raise UserError(f"{path}: special tokens take in what is beside them; open it with `tokenizers`")
        vocab = {number: _bytes_of(token) for token, number in model["vocab"].items()}
        vocab |= {token["id"]: token["content"].encode() for token in added}
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        merges = [(from_printable(left), from_printable(right)) for left, right in pairs]
        return _checked(Stored(vocab, merges, tuple(token["content"] for token in added)))


# What a BPE model may have and ours does not.
_FOREIGN = ("byte_fallback", "ignore_merges", "continuing_subword_prefix", "end_of_word_suffix", "dropout")


def _cuts_as_gpt2(pre_tokenizer: Any) -> bool:
    parts = pre_tokenizer.get("pretokenizers", [pre_tokenizer]) if isinstance(pre_tokenizer, dict) else []
    if [part.get("type") for part in parts] == ["ByteLevel"]:
        return parts[0].get("use_regex", True) and not parts[0].get("add_prefix_space")
    if [part.get("type") for part in parts] == ["Split", "ByteLevel"]:
        return parts[0].get("pattern") == {"Regex": PATTERN.pattern} and not parts[1].get("use_regex", True)
    return False


# ---- tiktoken's ranks -------------------------------------------------------------------------------


def write_tiktoken(path: Path, tokenizer: Stored) -> None:
    """Lines of a token in base64 and its id; special tokens are given to `tiktoken.Encoding` beside it.

    tiktoken gives the same ids for every text, unless special tokens overlap: then it finds any of them.

    Raises:
        ValueError: the merges do not follow from the tokens and their order, which is all that tiktoken goes by;
            those that training gives do.
    """
    ordinary = _ordinary(tokenizer)
    if len(set(ordinary.values())) < len(ordinary) or _merges_of(ordinary) != tokenizer.merges:
        raise ValueError("the merges do not follow from the order of the ids, and tiktoken's file has no other order")
    with replacing(path, "wb") as file:
        for number, token in sorted(ordinary.items()):
            file.write(base64.b64encode(token) + b" %d\n" % number)


def read_tiktoken(path: Path, special_tokens: Mapping[str, int]) -> Stored:
    """Read tiktoken's ranks; the merges are found again by encoding each token with those before it.

    Args:
        special_tokens: and their ids, which the file does not have.

    Raises:
        UserError: the file is missing or not such a file, or a token is not made of two before it.
    """
    vocab: dict[int, bytes] = {}
    for place, line in enumerate(_read_text(path).splitlines(), 1):
        try:
            encoded, rank = line.split()
            vocab[int(rank)] = base64.b64decode(encoded, validate=True)
        except ValueError:
            raise UserError(f"{path}:{place}: not a token in base64 and its rank: {line[:80]!r}") from None
    try:
        merges = _merges_of(vocab)
    except ValueError as error:
        raise UserError(f"{path}: {error}; not a BPE's ranks") from None
    vocab |= {number: token.encode() for token, number in special_tokens.items()}
    with _naming(path):
        return _checked(Stored(vocab, merges, tuple(special_tokens)))


def _merges_of(vocab: Mapping[int, bytes]) -> Merges:
    """The only merges with which each token is made of two tokens before it.

    Raises:
        ValueError: there are none.
    """
    id_of = {token: number for number, token in vocab.items()}
    merges: Merges = []
    ranks: dict[tuple[int, int], int] = {}
    merged: list[int] = []
    for number, token in sorted(vocab.items()):
        if len(token) == 1:
            continue
        letters = [id_of.get(token[at : at + 1], -1) for at in range(len(token))]
        parts = apply_merges(letters, ranks, merged)
        if len(parts) != 2 or -1 in parts:
            raise ValueError(f"token {number} ({token!r}) is not made of two earlier ones")
        ranks[parts[0], parts[1]] = len(merged)
        merged.append(number)
        merges.append((vocab[parts[0]], vocab[parts[1]]))
    return merges


# ---- bytes as printable text ------------------------------------------------------------------------


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


def _bytes_of(token: str) -> bytes:
    if all(character in _BYTE_OF_CHARACTER for character in token):
        return from_printable(token)
    return token.encode()  # a special token, which other tools write as it is


def _ordinary(tokenizer: Stored) -> dict[int, bytes]:
    """The vocabulary without the special tokens, except those that text is made of too: bytes and merged pairs."""
    special = {token.encode() for token in tokenizer.special_tokens}
    special -= {left + right for left, right in tokenizer.merges}
    return {number: token for number, token in tokenizer.vocab.items() if len(token) == 1 or token not in special}


def _checked(stored: Stored) -> Stored:
    """The same, if its parts are of the types they should be."""
    wrong = next((number for number in stored.vocab if type(number) is not int or number < 0), None)
    if wrong is not None:
        raise ValueError(f"{wrong!r} is no id")
    for token in stored.special_tokens:
        if not isinstance(token, str):
            raise ValueError(f"{token!r} is no special token")
        token.encode()
    return stored


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Whatever a file lacks or has in a wrong place ends in one line with its name."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a whole tokenizer file ({type(error).__name__}: {error})") from error


def _read_text(path: Path) -> str:
    opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8", newline="\n") as file:
            return file.read()
    except FileNotFoundError:
        raise UserError(f"{path}: not found; train the tokenizer first, or name its files") from None
    except (OSError, UnicodeDecodeError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not a readable tokenizer file ({error})") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a tokenizer file (a JSON object is expected)")
    return value
