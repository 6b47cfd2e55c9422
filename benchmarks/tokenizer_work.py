"""What each contender does in a process of its own: `python -m benchmarks.tokenizer_work` with a job on standard input.

A job is a JSON object: the work (a function below), the contender, paths. The answer, the last line of
standard output, has the seconds of each part, the peak memory of the process, and what is to be compared: a
checksum of all ids, or the file that the learnt entries were written to.

Not timed: Python's start, importing the contender's package, reading a vocabulary, and (in `encode`) reading
the documents. Timed for ours nevertheless: loading the compiled code in `train`, reported apart too.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.corpus import documents_of
from benchmarks.measure import OURS, resident_bytes, with_peak_memory
from cs336.tokenizer.bpe import END_OF_TEXT, Tokenizer
from cs336.tokenizer.formats import from_printable
from cs336.tokenizer.pretokenize import PATTERN

GIGATOKEN, RUSTBPE, HUGGING_FACE = "gigatoken", "rustbpe", "HF tokenizers"
TIKTOKEN, TIKTOKEN_LISTS = "tiktoken", "tiktoken lists"
RANKS_FILE = "ranks.tiktoken"
_HUGGING_FACE_DOCUMENTS = 1_000  # in one call: what it returns for each token is large
_STREAM_CHARS = 8_192  # of a piece
_STREAM_BLOCK = 4_096  # ids of a stream that the checksum takes at a time


def main() -> None:
    """Do one job."""
    job = json.load(sys.stdin)
    works: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
        "train": train,
        "encode": encode,
        "stream": stream,
        "folder": folder,
        "startup": startup,
    }
    try:
        answer = works[job["work"]](job)
    except ImportError as error:
        answer = {"unavailable": f"not installed: {error}"}
    print(json.dumps(answer))


# ---- learning a vocabulary from a file --------------------------------------------------------------


def train(job: dict[str, Any]) -> dict[str, Any]:
    """Learn `vocab_size` entries from `path` on `threads` cores; the entries go to `entries`, a line each, in hex."""
    path, vocab_size = Path(job["path"]), job["vocab_size"]
    details: dict[str, Any] = {}
    if job["contender"] == OURS:
        from cs336.tokenizer.train import train_bpe

        start = time.perf_counter()
        from cs336.tokenizer import compiled

        compiled.warm_up()
        compiled.classes()
        details["loading_seconds"] = time.perf_counter() - start
        learnt: Iterable[bytes] = train_bpe(path, vocab_size, [END_OF_TEXT], num_workers=job["threads"])[0].values()
    elif job["contender"] == GIGATOKEN:
        import gigatoken

        start = time.perf_counter()
        source = gigatoken.TextFileSource([str(path)], separator=END_OF_TEXT)
        learnt = gigatoken.gigatoken_rs.train_bpe(source, vocab_size, [END_OF_TEXT], tie_breaking="huggingface")[
            0
        ].values()
    elif job["contender"] == RUSTBPE:
        import rustbpe

        start = time.perf_counter()
        peer = rustbpe.Tokenizer()
        peer.train_from_iterator(documents_of(path), vocab_size - 1, pattern=PATTERN.pattern)
        learnt = [bytes(token) for token, _ in peer.get_mergeable_ranks()] + [END_OF_TEXT.encode()]
    else:
        from tokenizers import Tokenizer as HuggingFace
        from tokenizers import models, pre_tokenizers, trainers

        start = time.perf_counter()
        peer = HuggingFace(models.BPE())
        peer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        peer.train_from_iterator(documents_of(path), trainer)
        learnt = [token.encode() if token == END_OF_TEXT else from_printable(token) for token in peer.get_vocab(True)]
    seconds = time.perf_counter() - start
    Path(job["entries"]).write_text("".join(f"{token.hex()}\n" for token in learnt))
    return {"seconds": {"": seconds}, "peak_bytes": resident_bytes(), "result": job["entries"], "details": details}


# ---- encoding ---------------------------------------------------------------------------------------


def encode(job: dict[str, Any]) -> dict[str, Any]:
    """Ids of the documents of `path`, held in memory as strings, on one thread, `passes` times over.

    The first pass is a fresh process's: nothing is remembered but what reading the vocabulary brings.
    """
    documents = list(documents_of(Path(job["path"]), limit_bytes=job.get("limit_bytes")))
    run, finish = _encoder(job["contender"], Path(job["vocabulary"]))
    seconds = {}
    encoded: Any = None
    for number in range(job["passes"]):
        del encoded
        start = time.perf_counter()
        encoded = run(documents)
        seconds[("first", "second")[number]] = time.perf_counter() - start
    peak = resident_bytes()
    return {"seconds": seconds, "peak_bytes": peak, "result": _digest(finish(encoded))}


def stream(job: dict[str, Any]) -> dict[str, Any]:
    """Ids of `path` from a stream of short pieces; peak memory is what is held beyond the start.

    The ids must be those of `encode`, else there is no figure.
    """
    tokenizer = Tokenizer.load(Path(job["vocabulary"]))
    tokenizer.prepare()

    def run() -> list[Any]:
        digest, num_ids = hashlib.sha256(), 0
        with open(job["path"], encoding="utf-8", newline="") as file:
            # Not lines: some texts have lines of many megabytes, and that memory would be the reader's.
            ids = tokenizer.encode_iterable(iter(functools.partial(file.read, _STREAM_CHARS), ""))
            while block := np.fromiter(itertools.islice(ids, _STREAM_BLOCK), np.uint32).tobytes():
                digest.update(block)
                num_ids += len(block) // 4
        return [num_ids, digest.hexdigest()]

    start = time.perf_counter()
    result, peak = with_peak_memory(run)
    seconds = time.perf_counter() - start
    ids = next(tokenizer.encode_files([Path(job["path"])]))
    expected = [len(ids), hashlib.sha256(ids).hexdigest()]
    if result != expected:
        raise AssertionError(f"{result[0]:,} ids from the stream, {expected[0]:,} at once, or some of them differ")
    return {"seconds": {"": seconds}, "peak_bytes": peak, "result": result}


def folder(job: dict[str, Any]) -> dict[str, Any]:
    """Files of documents to arrays of 16-bit ids in memory, on `threads` cores, reading included."""
    paths = sorted(Path(job["folder"]).glob("*.txt"))
    paths = paths[: job.get("limit_files")]
    threads, contender = job["threads"], job["contender"]
    vocabulary = Path(job["vocabulary"])
    if contender == OURS:
        tokenizer = Tokenizer.load(vocabulary)
        tokenizer.prepare()
        start = time.perf_counter()
        arrays = [ids.astype(np.uint16) for ids in tokenizer.encode_files(paths, num_threads=threads)]
    elif contender == GIGATOKEN:
        import awkward
        import gigatoken

        giga = _gigatoken(vocabulary)
        start = time.perf_counter()
        source = gigatoken.TextFileSource([str(path) for path in paths], separator=END_OF_TEXT)
        rows = giga.encode_files(source, parallel=True)
        arrays = [np.asarray(awkward.flatten(rows, axis=None)).astype(np.uint16)]
    elif contender == TIKTOKEN:
        encoding = _tiktoken(vocabulary)
        start = time.perf_counter()
        arrays = []
        for path in paths:
            lists = encoding.encode_ordinary_batch(list(documents_of(path)), num_threads=threads)
            arrays += [np.array(ids, np.uint16) for ids in lists]
    else:
        peer = _hugging_face(vocabulary)
        start = time.perf_counter()
        arrays = []
        for path in paths:
            for encoding in peer.encode_batch_fast(list(documents_of(path)), add_special_tokens=False):
                arrays.append(np.array(encoding.ids, np.uint16))
    seconds = time.perf_counter() - start
    peak = resident_bytes()
    ids = np.concatenate(arrays)
    if contender == OURS:  # has the end of each document, too
        ids = ids[ids != Tokenizer.load(vocabulary).end_of_text_id]
    return {"seconds": {"": seconds}, "peak_bytes": peak, "result": [len(ids), hashlib.sha256(ids).hexdigest()]}


def startup(job: dict[str, Any]) -> dict[str, Any]:
    """Import, read a vocabulary, give the ids of one sentence; the caller times the process."""
    run, finish = _encoder(job["contender"], Path(job["vocabulary"]))
    encoded = run(["The quick brown fox jumps over the lazy dog."])
    return {"seconds": {}, "peak_bytes": resident_bytes(), "result": _digest(finish(encoded))}


Encode = Callable[[list[str]], Any]
Finish = Callable[[Any], Iterable[Any]]


def _encoder(contender: str, vocabulary: Path) -> tuple[Encode, Finish]:
    """How a contender encodes documents, and how its result becomes an array or list for each."""
    if contender == OURS:
        tokenizer = Tokenizer.load(vocabulary)
        tokenizer.prepare()
        return tokenizer.encode_batch, iter
    if contender == GIGATOKEN:
        import awkward

        def rows(encoded: Any) -> Iterable[Any]:
            flat = np.asarray(awkward.flatten(encoded, axis=None))
            return np.split(flat, np.cumsum(np.asarray(awkward.num(encoded)))[:-1])

        return functools.partial(_gigatoken(vocabulary).encode_batch, parallel=False), rows
    if contender == TIKTOKEN:
        encoding = _tiktoken(vocabulary)
        to_array = functools.partial(encoding.encode_to_numpy, disallowed_special=())
        return lambda documents: [to_array(document) for document in documents], iter
    if contender == TIKTOKEN_LISTS:
        to_list = _tiktoken(vocabulary).encode_ordinary
        return lambda documents: [to_list(document) for document in documents], iter
    peer = _hugging_face(vocabulary)

    def run(documents: list[str]) -> list[list[int]]:
        ids = []
        for start in range(0, len(documents), _HUGGING_FACE_DOCUMENTS):
            batch = documents[start : start + _HUGGING_FACE_DOCUMENTS]
            ids += [encoding.ids for encoding in peer.encode_batch_fast(batch, add_special_tokens=False)]
        return ids

    return run, iter


def _gigatoken(vocabulary: Path) -> Any:
    import gigatoken

    special = {END_OF_TEXT: json.loads((vocabulary / "special.json").read_text())}
    return gigatoken.Tokenizer.from_tiktoken(vocabulary / RANKS_FILE, pretokenizer="gpt2", special_tokens=special)


def _tiktoken(vocabulary: Path) -> Any:
    import tiktoken
    from tiktoken.load import load_tiktoken_bpe

    return tiktoken.Encoding(
        "benchmark",
        pat_str=PATTERN.pattern,
        mergeable_ranks=load_tiktoken_bpe(str(vocabulary / RANKS_FILE)),
        special_tokens={END_OF_TEXT: json.loads((vocabulary / "special.json").read_text())},
    )


def _hugging_face(vocabulary: Path) -> Any:
    from tokenizers import Tokenizer as HuggingFace

    return HuggingFace.from_file(str(vocabulary / "tokenizer.json"))


def _digest(rows: Iterable[Any]) -> list[Any]:
    """Number of ids, and a checksum of them and of where each document ends."""
    digest, lengths = hashlib.sha256(), []
    for row in rows:
        ids = np.asarray(row, np.uint32)
        lengths.append(len(ids))
        digest.update(ids)
    digest.update(np.array(lengths, np.int64))
    return [sum(lengths), digest.hexdigest()]


if __name__ == "__main__":
    main()
