"""BPE: learning a vocabulary and encoding with it, beside HF tokenizers and tiktoken, on one thread.

Cases:
  train    learn --vocab-size entries from the input; the peer's vocabulary must have the same size
           (its entries may differ where pairs are equally frequent)
  encode   ids of every document, nothing remembered from an earlier run by ours; the peers' ids must be
           ours, or they are left out
  stream   the same through encode_iterable, a stream of lines in bounded memory, which no peer has:
           theirs encode the documents as in "encode"

Encoding uses GPT-2's vocabulary if the folder that the environment variable CS336_DATA names has
tokenizer/gpt2_vocab.json.gz and tokenizer/gpt2_merges.txt.gz, else the one that ours has just learnt.

Example: python -m benchmarks tokenizer --input corpus.txt --repeats 5
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.measure import OURS, Case, Contender, Unavailable
from cs336.files import UserError
from cs336.tokenizer.bpe import END_OF_TEXT, Tokenizer
from cs336.tokenizer.formats import printable
from cs336.tokenizer.pretokenize import PATTERN
from cs336.tokenizer.train import train_bpe

CASES = ("train", "encode", "stream")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --input, --megabytes, --vocab-size and --cases."""
    parser.add_argument(
        "--input", type=Path, help="a UTF-8 text file, <|endoftext|> between documents (default: a generated text)"
    )
    parser.add_argument(
        "--megabytes", type=float, default=5.0, help="length of the generated text (default 5; without --input only)"
    )
    parser.add_argument("--vocab-size", type=int, default=4_096, help="entries to learn (default 4,096, as at tiny)")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES, help="which to measure (default: all)")


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """The chosen cases over one input."""
    _use_one_thread()
    text = generated_text(int(options.megabytes * 1e6)) if options.input is None else _read(options.input)
    encoded = text.encode()
    description = {
        "name": "generated" if options.input is None else options.input.name,
        "bytes": len(encoded),
        "sha256": hashlib.sha256(encoded).hexdigest(),
    }
    documents = [document for document in text.split(END_OF_TEXT) if document]
    megabytes = len(encoded) / 1e6
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "input.txt"
        path.write_bytes(encoded)
        if "train" in options.cases:
            yield Case(
                name="train",
                amount=megabytes,
                unit="MB/s",
                contenders=[
                    Contender(name=OURS, prepare=lambda: lambda: _train_ours(path, options.vocab_size), packages=_OURS),
                    Contender(
                        name="HF tokenizers",
                        prepare=lambda: _train_hugging_face(documents, options.vocab_size),
                        packages=("tokenizers",),
                    ),
                ],
                difference=_different_size,
                input=description | {"vocab_size": options.vocab_size},
            )
        tokenizer, origin = _vocabulary(path, options.vocab_size)
    for name in ("encode", "stream"):
        if name in options.cases:
            yield Case(
                name=name,
                amount=megabytes,
                unit="MB/s",
                contenders=_encoders(tokenizer, documents, stream=name == "stream"),
                difference=_different_ids,
                input=description | {"vocabulary": origin, "vocab_size": tokenizer.vocab_size},
            )


_OURS = ("regex",)


def generated_text(num_bytes: int, *, seed: int = 0) -> str:
    """Documents of made-up words, as frequent as Zipf's law has it, with numbers, signs and accents.

    Needs no data and is the same everywhere; real text is a better measure.
    """
    generator = random.Random(seed)
    letters, weights = "etaoinshrdlucmfwypvbgkjqxzéüñ", [30 - place for place in range(29)]
    words = ["".join(generator.choices(letters, weights, k=generator.randint(2, 10))) for _ in range(20_000)]
    frequencies = list(itertools.accumulate(1 / place for place in range(1, len(words) + 1)))
    ends = [".", ".", ".", "!", "?", ":", "...", ".\n", ".\n\n", " (1,024)", "'s", " — 42 %", " 中文"]
    parts: list[str] = []
    size = 0
    while size < num_bytes:
        sentence = " ".join(generator.choices(words, cum_weights=frequencies, k=generator.randint(4, 20))).capitalize()
        part = sentence + generator.choice(ends) + (END_OF_TEXT if generator.random() < 0.05 else " ")
        parts.append(part)
        size += len(part.encode())
    return "".join(parts)


def _use_one_thread() -> None:
    """Read by HF tokenizers' thread pool when it starts, so it must be set before any use."""
    os.environ["RAYON_NUM_THREADS"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except FileNotFoundError:
        raise UserError(f"{path}: not found; give an existing text file with --input") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason}); give a UTF-8 text file") from None


def _vocabulary(path: Path, vocab_size: int) -> tuple[Tokenizer, str]:
    folder = Path(os.environ.get("CS336_DATA", "")) / "tokenizer"
    vocab, merges = folder / "gpt2_vocab.json.gz", folder / "gpt2_merges.txt.gz"
    if os.environ.get("CS336_DATA") and vocab.exists() and merges.exists():
        return Tokenizer.from_files(vocab, merges, [END_OF_TEXT]), "GPT-2"
    return Tokenizer(*train_bpe(path, vocab_size, [END_OF_TEXT]), [END_OF_TEXT]), "learnt from the input"


def _train_ours(path: Path, vocab_size: int) -> set[bytes]:
    vocab, _ = train_bpe(path, vocab_size, [END_OF_TEXT])
    return set(vocab.values())


def _train_hugging_face(documents: list[str], vocab_size: int) -> Callable[[], Any]:
    try:
        from tokenizers import Tokenizer as HuggingFace
        from tokenizers import models, pre_tokenizers, trainers
    except ImportError:
        raise Unavailable("not installed (pip install tokenizers)") from None

    def run() -> set[str]:
        peer = HuggingFace(models.BPE())
        peer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=1,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        peer.train_from_iterator(documents, trainer)
        return set(peer.get_vocab())

    return run


def _different_size(ours: set[bytes], theirs: set[str]) -> str | None:
    return None if len(ours) == len(theirs) else f"{len(theirs)} entries, ours {len(ours)}"


def _different_ids(ours: list[list[int]], theirs: list[list[int]]) -> str | None:
    for number, (left, right) in enumerate(zip(ours, theirs, strict=True)):
        if left != right:
            return f"document {number} has {len(right)} ids, ours {len(left)}, or some differ"
    return None


def _encoders(tokenizer: Tokenizer, documents: list[str], *, stream: bool) -> list[Contender]:
    end = tokenizer.end_of_text_id

    def encode() -> list[list[int]]:
        tokenizer.clear_cache()
        return [tokenizer.encode(document) for document in documents]

    lines = [line for document in documents for line in [*document.splitlines(keepends=True), END_OF_TEXT]]

    def encode_stream() -> list[list[int]]:
        encoded: list[list[int]] = [[]]
        for number in tokenizer.encode_iterable(lines):
            if number == end:
                encoded.append([])
            else:
                encoded[-1].append(number)
        return encoded[:-1]

    ours = encode_stream if stream else encode
    return [
        Contender(name=OURS, prepare=lambda: ours, packages=_OURS),
        Contender(name="tiktoken", prepare=lambda: _tiktoken(tokenizer, documents), packages=("tiktoken",)),
        Contender(name="HF tokenizers", prepare=lambda: _hugging_face(tokenizer, documents), packages=("tokenizers",)),
    ]


def _tiktoken(tokenizer: Tokenizer, documents: list[str]) -> Callable[[], list[list[int]]]:
    try:
        import tiktoken
    except ImportError:
        raise Unavailable("not installed (pip install tiktoken)") from None
    special = {token: tokenizer.encode(token)[0] for token in tokenizer.special_tokens}
    encoding = tiktoken.Encoding(
        "benchmark",
        pat_str=PATTERN.pattern,
        mergeable_ranks={token: number for number, token in tokenizer.vocab.items() if number not in special.values()},
        special_tokens=special,
    )
    return lambda: [encoding.encode_ordinary(document) for document in documents]


def _hugging_face(tokenizer: Tokenizer, documents: list[str]) -> Callable[[], list[list[int]]]:
    try:
        from tokenizers import Tokenizer as HuggingFace
        from tokenizers import models, pre_tokenizers
    except ImportError:
        raise Unavailable("not installed (pip install tokenizers)") from None
    vocab = {printable(token): number for number, token in tokenizer.vocab.items()}
    merges = [(printable(left), printable(right)) for left, right in tokenizer.merges]
    peer = HuggingFace(models.BPE(vocab=vocab, merges=merges))
    peer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    return lambda: [encoding.ids for encoding in peer.encode_batch_fast(documents)]
