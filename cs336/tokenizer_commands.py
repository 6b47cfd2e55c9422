"""`cs336 tokenizer ...`: learn a vocabulary from text files, use it, hand it to other programs."""

from __future__ import annotations

import argparse
import codecs
import gzip
import os
import resource
import sys
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cs336.command_line import add_action
from cs336.files import UserError, creating, write_json
from cs336.processes import available_cores, wanted_workers
from cs336.tokenizer.formats import END_OF_TEXT

if TYPE_CHECKING:
    from cs336.progress import Progress
    from cs336.tokenizer.bpe import Tokenizer
    from cs336.tokenizer.reference import Merges
    from cs336.tokenizer.train import BpeConfig, Vocab

RANKS_FILE = "ranks.tiktoken"
ENCODING_FILE = "encoding.json"

_CHUNK_BYTES = 1 << 20
_SAMPLE_CHARS = 4_000_000  # encoded after training, to say how many bytes a token has
_IDS_PER_LINE = 20
_STDIN = Path("-")

_TRAIN = """Learn a byte-level BPE vocabulary: how to cut any text into tokens, learnt from yours.

  cs336 tokenizer train books.txt news.txt.gz --vocab-size 10000 --out my-tokenizer

FILEs are UTF-8 text, gzipped or not; `-` is standard input. Put <|endoftext|> between documents: it
becomes one token, and nothing is learnt across it. Text is read in pieces, so a file may be larger
than memory; what grows is a table of the distinct words.

The folder OUT then holds bpe.json (everything), tokenizer.json (for transformers and vLLM), and
vocab.json with merges.txt (as GPT-2's). In Python: Tokenizer.load(Path("my-tokenizer")) of
cs336.tokenizer.bpe."""

_ENCODE = """Text to token ids.

  echo "Hello, world" | cs336 tokenizer encode my-tokenizer
  cs336 tokenizer encode my-tokenizer book.txt --pieces         one line a token: its id and its text
  cs336 tokenizer encode my-tokenizer book.txt --out train.bin  for training: see below

--out writes bare ids of two bytes each (little-endian uint16, numpy.memmap opens them) and beside them
train.jsonl: for each document, up to <|endoftext|>, where its ids begin and where in the file it stood.
The ids are the same on any number of threads."""

_DECODE = """Token ids to text: exactly the bytes that were encoded.

  cs336 tokenizer encode my-tokenizer book.txt | cs336 tokenizer decode my-tokenizer
  cs336 tokenizer decode my-tokenizer train.bin

FILE holds ids in decimal, between them white space; or, named .bin, those that `encode --out` wrote."""

_EXPORT = """Write a tokenizer for other programs.

  cs336 tokenizer export my-tokenizer --format tiktoken --out for-tiktoken

  huggingface   tokenizer.json and tokenizer_config.json: AutoTokenizer.from_pretrained(OUT), vLLM
  tiktoken      ranks.tiktoken and encoding.json; how to open them is printed
  gpt2          vocab.json and merges.txt; they do not say which tokens are special

FOLDER is what `train` wrote, an artifact such as artifacts/tiny/tokenizer, or holds one of these formats."""


def register(commands: argparse._SubParsersAction) -> None:
    """Add the commands to `cs336`'s parser."""
    command = commands.add_parser("tokenizer", help="train a tokenizer on your text, encode, decode, export it")
    actions = command.add_subparsers(required=True, metavar="ACTION")

    action = add_action(actions, "train", _TRAIN)
    action.add_argument("files", nargs="+", type=Path, metavar="FILE", help="text to learn from")
    action.add_argument(
        "--vocab-size", type=int, default=32_000, metavar="N", help="entries in all (default: %(default)s)"
    )
    action.add_argument("--out", type=Path, required=True, help="new folder")
    action.add_argument(
        "--special",
        action="append",
        metavar="TOKEN",
        help=f"a string that is always one token; may be given several times (default: {END_OF_TEXT} alone)",
    )
    _add_threads_option(action)
    action.set_defaults(run=_train)

    action = add_action(actions, "encode", _ENCODE)
    action.add_argument("folder", type=Path, metavar="FOLDER", help="the tokenizer")
    action.add_argument("file", type=Path, nargs="?", default=_STDIN, metavar="FILE", help="default: standard input")
    action.add_argument("--out", type=Path, metavar="NAME.bin", help="write the ids and an index there")
    action.add_argument("--pieces", action="store_true", help="show what each id stands for")
    _add_threads_option(action)
    action.set_defaults(run=_encode)

    action = add_action(actions, "decode", _DECODE)
    action.add_argument("folder", type=Path, metavar="FOLDER", help="the tokenizer")
    action.add_argument("file", type=Path, nargs="?", default=_STDIN, metavar="FILE", help="default: standard input")
    action.set_defaults(run=_decode)

    action = add_action(actions, "export", _EXPORT)
    action.add_argument("folder", type=Path, metavar="FOLDER", help="the tokenizer")
    action.add_argument("--format", required=True, choices=("huggingface", "tiktoken", "gpt2"))
    action.add_argument("--out", type=Path, required=True, help="new folder")
    action.set_defaults(run=_export)


def _add_threads_option(action: argparse.ArgumentParser) -> None:
    action.add_argument("--threads", type=int, default=0, metavar="N", help="default: CS336_WORKERS, else one a core")


# ---- train ------------------------------------------------------------------------------------------


def _train(options: argparse.Namespace) -> None:
    from cs336.tokenizer.bpe import Tokenizer
    from cs336.tokenizer.train import BpeConfig

    config = BpeConfig(vocab_size=options.vocab_size, special_tokens=tuple(options.special or [END_OF_TEXT]))
    num_threads = _num_threads(options)
    _check_all_there(options.files)
    start = time.perf_counter()
    with creating(options.out) as folder:
        try:
            vocab, merges, num_bytes, sample = _learn(options.files, config, num_threads)
            tokenizer = Tokenizer(vocab, merges, config.special_tokens)
        except ValueError as error:
            raise UserError(str(error)) from None
        if not num_bytes:
            raise UserError(f"{', '.join(map(_name, options.files))}: no text to learn from")
        tokenizer.save(folder)
    seconds = time.perf_counter() - start
    num_tokens = sum(map(len, tokenizer.encode_batch(sample, num_threads=num_threads)))
    print(
        f"{options.out}: {tokenizer.vocab_size:,} entries, {len(merges):,} of them merges, from"
        f" {num_bytes / 1e6:,.1f} MB of text\n"
        f"  {seconds:,.1f} s on {num_threads} threads; peak memory {_peak_bytes() / 1e6:,.0f} MB\n"
        f"  {sum(len(piece.encode()) for piece in sample) / num_tokens:.2f} bytes per token, on the text's beginning"
    )
    if tokenizer.vocab_size < options.vocab_size:
        print(f"  fewer than the {options.vocab_size:,} asked for: no pair is left to merge; give more text for more")
    print("  longest tokens:")
    for token in sorted((left + right for left, right in merges), key=len, reverse=True)[:10]:
        print(f"    {len(token):>4} bytes  {_shown(token)}")
    print(f'  in transformers: AutoTokenizer.from_pretrained("{options.out}")')


def _learn(paths: list[Path], config: BpeConfig, num_threads: int) -> tuple[Vocab, Merges, int, list[str]]:
    """Vocabulary and merges, bytes of text, and pieces of the text's beginning."""
    from cs336.tokenizer.pretokenize import cut_stream
    from cs336.tokenizer.train import train_bpe, train_bpe_from_documents

    sample: list[str] = []
    num_bytes = num_sampled = 0

    def pieces(path: Path, *, watched: bool) -> Iterator[str]:
        """Of a text, to be counted one by one: what would be one pre-token is never torn."""
        nonlocal num_bytes, num_sampled
        for piece in cut_stream(_read(path, watched=watched), config.special_tokens):
            num_bytes += len(piece.encode())
            if num_sampled < _SAMPLE_CHARS:
                sample.append(piece)
                num_sampled += len(piece)
            yield piece

    if len(paths) == 1 and _is_plain(paths[0]):  # its threads read it themselves
        vocab, merges = train_bpe(
            paths[0], config.vocab_size, config.special_tokens, num_workers=num_threads, progress=_progress()
        )
        for _ in pieces(paths[0], watched=False):
            if num_sampled >= _SAMPLE_CHARS:
                break
        return vocab, merges, paths[0].stat().st_size, sample
    texts = (piece for path in paths for piece in pieces(path, watched=True))
    return *train_bpe_from_documents(texts, config, num_workers=num_threads, progress=_merges_only()), num_bytes, sample


def _merges_only() -> Progress:
    """Reading has a bar of its own, in bytes; here the merges are left to be shown."""
    from cs336.progress import silent

    shown = _progress()

    def wrap(items: Iterable[Any], *, total: int | None = None, unit: str = "items", label: str = "") -> Iterator[Any]:
        return (shown if label == "learn merges" else silent)(items, total=total, unit=unit, label=label)

    return wrap


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


# ---- encode, decode ---------------------------------------------------------------------------------


def _encode(options: argparse.Namespace) -> None:
    from cs336.tokenizer.pretokenize import cut_stream
    from cs336.tokens.shards import write_text

    tokenizer = _open(options.folder)
    _check_all_there([options.file])
    num_threads = _num_threads(options)
    if options.out is not None:
        if options.out.suffix != ".bin":
            raise UserError(f"{options.out}: name a file that ends with .bin; its index gets the same name and .jsonl")
        for path in (options.out, options.out.with_suffix(".jsonl")):
            if path.exists():
                raise UserError(f"{path}: is there already; name a new file, or delete it first")
        start = time.perf_counter()
        chunks = _read(options.file, watched=True)
        try:
            facts = write_text(options.out, chunks, tokenizer, name=_name(options.file), num_workers=num_threads)
        except ValueError as error:
            raise UserError(f"{options.folder}: {error}") from None
        num_documents, num_tokens, num_bytes = facts
        print(
            f"{options.out}: {num_tokens:,} tokens of {num_documents:,} documents, {num_bytes / 1e6:,.1f} MB,"
            f" {num_bytes / max(1, num_tokens):.2f} bytes per token, in {time.perf_counter() - start:.1f} s"
        )
        return
    num_tokens = num_bytes = 0
    pieces = ([piece] for piece in cut_stream(_read(options.file), tokenizer.special_tokens))
    try:
        for ids, _ in tokenizer.encode_batches(pieces, num_threads=num_threads):
            numbers = ids.tolist()
            num_tokens += len(numbers)
            num_bytes += sum(len(tokenizer.vocab[number]) for number in numbers)
            if options.pieces:
                lines = [f"{number}\t{_shown(tokenizer.vocab[number])}" for number in numbers]
            else:
                lines = [
                    " ".join(map(str, numbers[at : at + _IDS_PER_LINE])) for at in range(0, len(numbers), _IDS_PER_LINE)
                ]
            print("\n".join(lines))
    except ValueError as error:
        raise UserError(f"{options.folder}: {error}") from None
    print(f"[{num_tokens:,} tokens, {num_bytes / max(1, num_tokens):.2f} bytes each]", file=sys.stderr)


def _decode(options: argparse.Namespace) -> None:
    tokenizer = _open(options.folder)
    _check_all_there([options.file])
    for ids in _read_ids(options.file):
        try:
            sys.stdout.buffer.write(tokenizer.decode_bytes(ids))
        except ValueError as error:
            raise UserError(f"{_name(options.file)}: {error}; it was encoded with another tokenizer") from None
    sys.stdout.flush()


def _read_ids(path: Path) -> Iterator[list[int]]:
    if path.suffix == ".bin":
        from cs336.tokens.shards import open_tokens

        tokens = open_tokens(path)
        for start in range(0, len(tokens), _CHUNK_BYTES):
            yield tokens[start : start + _CHUNK_BYTES].tolist()
        return
    rest = ""
    for chunk in _read(path):
        words = (rest + chunk).split()
        rest = words.pop() if words and not chunk[-1:].isspace() else ""  # it may go on in the next chunk
        yield _numbers(words, path)
    yield _numbers(rest.split(), path)


def _numbers(words: list[str], path: Path) -> list[int]:
    for word in words:
        if not (word.isascii() and word.isdigit() and len(word) < 20):
            raise UserError(f"{_name(path)}: {word[:40]!r} is no token id; give numbers with white space between them")
    return [int(word) for word in words]


# ---- export -----------------------------------------------------------------------------------------


def _export(options: argparse.Namespace) -> None:
    from cs336.tokenizer.pretokenize import PATTERN

    tokenizer = _open(options.folder)
    out = options.out
    with creating(out) as folder:
        try:
            if options.format == "huggingface":
                tokenizer.save_hugging_face(folder)
            elif options.format == "gpt2":
                tokenizer.save_gpt2(folder)
            else:
                tokenizer.save_tiktoken(folder / RANKS_FILE)
                specials = {token: tokenizer.encode(token)[0] for token in tokenizer.special_tokens}
                write_json(folder / ENCODING_FILE, {"pat_str": PATTERN.pattern, "special_tokens": specials})
        except ValueError as error:
            raise UserError(f"{options.folder}: {error}") from None
    print(f"{out}: {tokenizer.vocab_size:,} entries; to open it:")
    if options.format == "huggingface":
        print(f'  tokenizer = transformers.AutoTokenizer.from_pretrained("{out}")')
    elif options.format == "gpt2":
        print(
            f'  Tokenizer.from_files("{out}/vocab.json", "{out}/merges.txt", {list(tokenizer.special_tokens)})'
            "  # cs336.tokenizer.bpe"
        )
    else:
        print(
            f"  import json, tiktoken, tiktoken.load\n"
            f'  ranks = tiktoken.load.load_tiktoken_bpe("{out}/{RANKS_FILE}")\n'
            f'  tiktoken.Encoding("mine", mergeable_ranks=ranks, **json.load(open("{out}/{ENCODING_FILE}")))'
        )


# ---- what they share --------------------------------------------------------------------------------


def _open(folder: Path) -> Tokenizer:
    """A tokenizer in any format that a folder may hold."""
    from cs336.files import read_json
    from cs336.tokenizer.bpe import Tokenizer
    from cs336.tokenizer.formats import HUGGING_FACE_FILE, OWN_FILE

    if (folder / OWN_FILE).is_file() or (folder / HUGGING_FACE_FILE).is_file():
        return Tokenizer.load(folder)
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        has_mark = END_OF_TEXT in read_json(folder / "vocab.json")
        return Tokenizer.from_files(folder / "vocab.json", folder / "merges.txt", [END_OF_TEXT] if has_mark else None)
    if (folder / RANKS_FILE).is_file():
        return Tokenizer.from_tiktoken(folder / RANKS_FILE, read_json(folder / ENCODING_FILE)["special_tokens"])
    raise UserError(f"{folder}: holds no tokenizer; `cs336 tokenizer train` makes one")


def _check_all_there(paths: list[Path]) -> None:
    for path in paths:
        if path != _STDIN and not path.is_file():
            raise UserError(f"{path}: {'is a folder; name its files' if path.is_dir() else 'not found'}")


def _is_plain(path: Path) -> bool:
    return path != _STDIN and path.suffix != ".gz"


def _num_threads(options: argparse.Namespace) -> int:
    if options.threads < 0:
        raise UserError(f"--threads is {options.threads}; give 1 or more")
    return options.threads or wanted_workers() or available_cores()


def _progress() -> Progress:
    from cs336.progress import bar, log_lines

    return bar if sys.stderr.isatty() else log_lines(lambda line: print(line, file=sys.stderr))


def _read(path: Path, *, watched: bool = False) -> Iterator[str]:
    """A text in pieces, line ends as they are.

    Raises:
        UserError: it is not UTF-8, or its gzip is torn.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    place = 0
    chunks = _read_bytes(path)
    if watched:
        total = -(-path.stat().st_size // _CHUNK_BYTES) if _is_plain(path) else None
        chunks = _progress()(chunks, total=total, unit="MiB", label=_name(path))
    for chunk in chunks:
        num_undecided = len(decoder.getstate()[0])
        try:
            yield decoder.decode(chunk)
        except UnicodeDecodeError as error:
            bad = place - num_undecided + error.start
            raise UserError(f"{_name(path)}: not UTF-8 at byte {bad:,}; convert the text to UTF-8 first") from None
        place += len(chunk)
    if decoder.getstate()[0]:
        raise UserError(f"{_name(path)}: ends within a character; the file is not whole, or not UTF-8")


def _read_bytes(path: Path) -> Iterator[bytes]:
    if path == _STDIN:
        while chunk := os.read(sys.stdin.fileno(), _CHUNK_BYTES):
            yield chunk
        return
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
        try:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UserError(f"{path}: not a whole gzip file ({error})") from None


def _name(path: Path) -> str:
    return "standard input" if path == _STDIN else str(path)


def _shown(token: bytes) -> str:
    """A token in quotes, with escapes; as bytes where it is not whole characters."""
    try:
        return repr(token.decode())
    except UnicodeDecodeError:
        return repr(token)
