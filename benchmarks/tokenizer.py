"""BPE: learning a vocabulary, encoding, starting, memory, beside gigatoken, tiktoken, HF tokenizers and rustbpe.

Every run is a fresh process, so that caches and peaks of memory (the process's greatest resident size) are each
contender's own. Before anything is timed all contenders work on a piece of the input: their ids must be ours,
their vocabularies as large as ours and, but for 5 %, the same (ties, of which a short text has many, are broken
otherwise, and each changes what comes after it). The ids of timed
runs are compared, too.

Cases:
  train    learn --vocab-size entries from a file, on all cores, reading it and (ours) loading the compiled code
           included
  encode   ids of all documents, held in memory as strings, on one thread: first pass (the process has encoded
           nothing yet), second pass (contenders that remember words have seen all of them)
  stream   ids one by one from a stream of short pieces, in bounded memory (peak: beyond the start), compared with those
           of the whole file; no peer does that
  folder   16 files of documents to arrays of 16-bit ids, on all cores, reading included
  startup  a whole process: start Python, import, read a vocabulary, encode a sentence; and ours once with an
           empty cache of compiled code
  memory   peak memory of learning a vocabulary from the greatest text

Texts: with the environment variable CS336_DATA, books and film reviews (text/books, text/imdb: 128 MB), else
made-up words; a longer text goes on with pieces of it and coined words, so that distinct pre-tokens keep growing
by Heaps' law (benchmarks/corpus.py). Vocabularies: GPT-2's, if CS336_DATA has it, and the one that ours learns.

Examples:
  python -m benchmarks tokenizer                       a small table, in a minute or two
  python -m benchmarks tokenizer --cases encode --sizes 20 --contenders tiktoken
  CS336_DATA=... python -m benchmarks tokenizer --full   125 MB, 1.25 GB and 2 GB: about 25 minutes on 2 cores
"""

from __future__ import annotations

import argparse
import functools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import corpus
from benchmarks.measure import OURS, Case, Contender, Observation, Unavailable, in_fresh_process
from benchmarks.tokenizer_work import GIGATOKEN, HUGGING_FACE, RANKS_FILE, RUSTBPE, TIKTOKEN, TIKTOKEN_LISTS
from cs336.files import UserError
from cs336.tokenizer.bpe import END_OF_TEXT, Tokenizer
from cs336.tokenizer.train import num_distinct_pretokens, train_bpe

CASES = ("train", "encode", "stream", "folder", "startup", "memory")
PEERS = {
    "train": (GIGATOKEN, RUSTBPE, HUGGING_FACE),
    "encode": (GIGATOKEN, TIKTOKEN, TIKTOKEN_LISTS, HUGGING_FACE),
    "stream": (),
    "folder": (GIGATOKEN, TIKTOKEN, HUGGING_FACE),
    "startup": (GIGATOKEN, TIKTOKEN, HUGGING_FACE),
    "memory": (GIGATOKEN,),
}
PACKAGES = {
    OURS: ("numba", "numpy", "regex"),
    GIGATOKEN: ("gigatoken",),
    RUSTBPE: ("rustbpe",),
    HUGGING_FACE: ("tokenizers",),
    TIKTOKEN: ("tiktoken",),
    TIKTOKEN_LISTS: ("tiktoken",),
}
NUM_FILES = 16
CHECK_MEGABYTES = 4.0  # of the piece on which results are compared first
LARGE_MEGABYTES = 400.0  # from here on: one pass of what remembers nothing, at most 3 repeats, no lists of ids
SLOWEST_SECONDS = 170.0  # a contender that a smaller text lets expect more is left out
BUDGET_SECONDS = 25.0  # of timed runs of one contender in one case; always at least one
FULL_SIZES, FULL_MEMORY_SIZE, FULL_VOCAB_SIZE = (12.8, 128.2, 1250.0), 2000.0, 32_000
# What the project promises of itself: a start, the one-off compilation, memory for 2 GB.
STARTUP_SECONDS, COMPILE_SECONDS, TRAIN_PEAK_BYTES = 3.0, 30.0, 2e9


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --input, --sizes, --vocab-size, --cases, --contenders, --cache and --full."""
    parser.add_argument(
        "--input", type=Path, help="a UTF-8 text file, <|endoftext|> between documents, as the only text"
    )
    parser.add_argument(
        "--sizes", type=float, nargs="+", metavar="MB", help="lengths of the texts, in MB of 10**6 bytes (default: 5)"
    )
    parser.add_argument("--vocab-size", type=int, help="entries to learn (default 4,096; with --full 32,000)")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES, help="which to measure (default: all)")
    parser.add_argument(
        "--contenders",
        nargs="+",
        choices=sorted(PACKAGES.keys() - {OURS}),
        default=sorted(PACKAGES.keys() - {OURS}),
        metavar="PEER",
        help=f"of {', '.join(sorted(PACKAGES.keys() - {OURS}))} (default: all)",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path(tempfile.gettempdir()) / "cs336-benchmark-texts",
        metavar="FOLDER",
        help="where long texts are kept for the next time (default %(default)s)",
    )
    parser.add_argument("--full", action="store_true", help="the table of the README: 12.8, 128 and 1,250 MB, 2 GB")


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """The chosen cases, sizes in growing order."""
    sizes = sorted(options.sizes or (FULL_SIZES if options.full else [5.0]))
    vocab_size = options.vocab_size or (FULL_VOCAB_SIZE if options.full else 4_096)
    texts = _Texts(options.cache, options.input)
    inputs = [texts.of_size(size) for size in (sizes if options.input is None else [0.0])]
    with tempfile.TemporaryDirectory() as folder:
        bench = _Bench(Path(folder), options.repeats, frozenset(options.contenders), vocab_size)
        vocabularies = bench.vocabularies(inputs[min(len(inputs) - 1, 1)])
        for text in inputs:
            if "train" in options.cases:
                yield bench.train(text)
        for text in inputs:
            for vocabulary in vocabularies:
                # The second vocabulary at one size only: it says how little the figures depend on it.
                if "encode" in options.cases and (vocabulary is vocabularies[0] or text is inputs[len(inputs) // 2]):
                    yield bench.encode(text, vocabulary)
        for text in inputs[:2]:
            if "stream" in options.cases:
                yield bench.stream(text, vocabularies[0])
        for text in inputs:
            if "folder" in options.cases:
                yield bench.folder(text, vocabularies[0])
        if "startup" in options.cases:
            yield bench.startup(vocabularies[0])
            yield bench.compilation(vocabularies[0])
        if "memory" in options.cases:
            yield bench.memory(texts.of_size(FULL_MEMORY_SIZE) if options.full else inputs[-1])


def finish(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Draw how figures and memory grow with the size of the text, if there were several sizes."""
    from benchmarks import tokenizer_plots

    for path in tokenizer_plots.draw(rows, options.results):
        print(f"\nplot: {path}")


@dataclass(frozen=True, kw_only=True)
class _Text:
    path: Path
    name: str
    sha256: str

    @property
    def megabytes(self) -> float:
        return self.path.stat().st_size / 1e6

    @property
    def label(self) -> str:
        return f"{self.megabytes:.3g}MB" if self.megabytes < 999.5 else f"{self.megabytes / 1e3:.3g}GB"

    def description(self) -> dict[str, Any]:
        return {"name": self.name, "bytes": self.path.stat().st_size, "sha256": self.sha256}


@dataclass(frozen=True)
class _Texts:
    """Texts of any length, written once into a folder."""

    cache: Path
    given: Path | None

    def of_size(self, megabytes: float) -> _Text:
        """A text of about this length: the beginning of the base text, or what it grows to."""
        if self.given is not None:
            if not self.given.exists():
                raise UserError(f"{self.given}: not found; give an existing text file with --input")
            return self._text(self.given, self.given.name)
        num_bytes = int(megabytes * 1e6)
        base, name = self._base(num_bytes)
        size = base.stat().st_size
        if abs(size - num_bytes) < 0.01 * size:
            return self._text(base, name)
        path = self.cache / f"{base.stem}-{num_bytes}.txt"
        if not path.exists() and num_bytes < size:
            corpus.write_beginning(path, base, num_bytes)
        elif not path.exists():
            print(f"writing {path} ({num_bytes / 1e6:,.0f} MB)", flush=True)
            corpus.write_grown(path, base, num_bytes)
        return self._text(path, name if num_bytes < size else f"{name}, grown by Heaps' law")

    def _base(self, num_bytes: int) -> tuple[Path, str]:
        data = os.environ.get("CS336_DATA")
        if data:
            path, name = self.cache / "books-imdb.txt", "books + IMDb"
            if not path.exists():
                corpus.write_books_and_imdb(path, Path(data))
            return path, name
        size = min(num_bytes, 20_000_000)  # plain Python makes it: a longer one grows from this
        path = self.cache / f"generated-{size // 1000}k.txt"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(corpus.generated_text(size), encoding="utf-8", newline="")
        return path, "made-up words"

    def _text(self, path: Path, name: str) -> _Text:
        return _Text(path=path, name=name, sha256=corpus.sha256_of(path))


@dataclass(frozen=True)
class _Vocabulary:
    name: str
    folder: Path
    size: int


@dataclass
class _Bench:
    """Builds the cases.

    Attributes:
        folder: for what is needed during the run only.
        pace: (work, contender) to seconds for a byte, as measured on the text before.
    """

    scratch: Path
    repeats: int
    peers: frozenset[str]
    vocab_size: int
    pace: dict[tuple[str, str], float] = field(default_factory=dict)

    def vocabularies(self, text: _Text) -> list[_Vocabulary]:
        """GPT-2's, if it is there, and the one learnt from a text; in files for all contenders."""
        found = []
        data = Path(os.environ.get("CS336_DATA", "")) / "tokenizer"
        if os.environ.get("CS336_DATA") and (data / "gpt2_vocab.json.gz").exists():
            gpt2 = Tokenizer.from_files(data / "gpt2_vocab.json.gz", data / "gpt2_merges.txt.gz", [END_OF_TEXT])
            found.append(self._saved("gpt2", gpt2))
        _, merges = train_bpe(text.path, self.vocab_size, [END_OF_TEXT], num_workers=_num_cores())
        tokens = [bytes([byte]) for byte in range(256)] + [left + right for left, right in merges]
        tokens = list(dict.fromkeys(tokens))  # the end of text last, as in GPT-2's: ranks are then ids
        found.append(self._saved("learnt", Tokenizer(dict(enumerate(tokens)), merges, [END_OF_TEXT])))
        return found

    def _saved(self, name: str, tokenizer: Tokenizer) -> _Vocabulary:
        folder = self.scratch / name
        tokenizer.save(folder)
        tokenizer.save_tiktoken(folder / RANKS_FILE)
        (folder / "special.json").write_text(str(tokenizer.end_of_text_id))
        return _Vocabulary(name, folder, tokenizer.vocab_size)

    def train(self, text: _Text, *, name: str = "train") -> Case:
        piece = self._piece(text)
        jobs = {
            contender: {"path": str(text.path), "vocab_size": self.vocab_size, "threads": _num_cores()}
            for contender in self._contenders(name)
        }
        checks = {
            contender: job | {"path": str(piece), "vocab_size": min(self.vocab_size, 2_000)}
            for contender, job in jobs.items()
        }
        case = self._case("train", f"{name}-{text.label}", text, jobs, checks, _different_entries)
        distinct = num_distinct_pretokens(text.path, [END_OF_TEXT], num_workers=_num_cores())
        return self._with_input(case, vocab_size=self.vocab_size, cores=_num_cores(), num_distinct=distinct)

    def memory(self, text: _Text) -> Case:
        """Learning from the greatest text; ours must keep within its limit there."""
        case = self.train(text, name="memory")
        return _changed(case, repeats=1, limits={"peak_bytes": TRAIN_PEAK_BYTES})

    def encode(self, text: _Text, vocabulary: _Vocabulary) -> Case:
        is_large = text.megabytes >= LARGE_MEGABYTES
        jobs = {
            contender: {
                "path": str(text.path),
                "vocabulary": str(vocabulary.folder),
                "passes": 1 if is_large and contender in (TIKTOKEN, HUGGING_FACE) else 2,
            }
            for contender in self._contenders("encode")
            if not (is_large and contender == TIKTOKEN_LISTS)
        }
        checks = {
            contender: job | {"limit_bytes": int(CHECK_MEGABYTES * 1e6), "passes": 2} for contender, job in jobs.items()
        }
        case = self._case("encode", f"encode-{text.label}-{vocabulary.name}", text, jobs, checks, _different, threads=1)
        return self._with_input(
            _changed(case, parts=("first", "second")), vocabulary=vocabulary.name, vocab_size=vocabulary.size, cores=1
        )

    def stream(self, text: _Text, vocabulary: _Vocabulary) -> Case:
        job = {"path": str(text.path), "vocabulary": str(vocabulary.folder)}
        check = job | {"path": str(self._piece(text))}
        case = self._case("stream", f"stream-{text.label}", text, {OURS: job}, {OURS: check}, _different, threads=1)
        return self._with_input(case, vocabulary=vocabulary.name, vocab_size=vocabulary.size, cores=1)

    def folder(self, text: _Text, vocabulary: _Vocabulary) -> Case:
        folder = self.scratch / f"shards-{text.sha256[:12]}"
        if not folder.exists():
            corpus.write_shards(folder, text.path, NUM_FILES)
        job = {"folder": str(folder), "vocabulary": str(vocabulary.folder), "threads": _num_cores()}
        jobs = dict.fromkeys(self._contenders("folder"), job)
        limit = max(1, int(CHECK_MEGABYTES / text.megabytes * NUM_FILES))
        checks = dict.fromkeys(jobs, job | {"limit_files": limit})
        case = self._case("folder", f"folder-{text.label}", text, jobs, checks, _different)
        return self._with_input(
            case, vocabulary=vocabulary.name, vocab_size=vocabulary.size, files=NUM_FILES, cores=_num_cores()
        )

    def startup(self, vocabulary: _Vocabulary) -> Case:
        jobs = {contender: {"vocabulary": str(vocabulary.folder)} for contender in self._contenders("startup")}
        case = Case(
            name="startup",
            amount=1.0,
            unit="starts/s",
            contenders=[
                self._contender("startup", name, functools.partial(self._start, name, job, {}), None)
                for name, job in jobs.items()
            ],
            difference=_different,
            input={"vocabulary": vocabulary.name, "vocab_size": vocabulary.size},
            limits={"seconds": STARTUP_SECONDS},
        )
        return case

    def compilation(self, vocabulary: _Vocabulary) -> Case:
        """The first start on a machine; it must say that it compiles."""

        def compile_anew() -> Observation:
            with tempfile.TemporaryDirectory() as empty:
                observed = self._start(OURS, {"vocabulary": str(vocabulary.folder)}, {"NUMBA_CACHE_DIR": empty})
            if "compiling" not in observed.details.pop("said"):
                raise RuntimeError("did not say that it compiles")
            return observed

        return Case(
            name="compilation",
            amount=1.0,
            unit="starts/s",
            contenders=[self._contender("startup", OURS, compile_anew, lambda: None)],
            difference=_different,
            input={"vocabulary": vocabulary.name, "vocab_size": vocabulary.size},
            repeats=1,
            limits={"seconds": COMPILE_SECONDS},
        )

    def _start(self, contender: str, job: dict[str, Any], environment: dict[str, str]) -> Observation:
        start = time.perf_counter()
        answer, said = self._answer("startup", contender, job, threads=1, environment=environment)
        seconds = time.perf_counter() - start
        return Observation(
            seconds={"": seconds},
            peak_bytes=answer["peak_bytes"],
            result=answer["result"],
            details={"said": said} if environment else {},
        )

    # ---- what all cases share

    def _contenders(self, work: str) -> list[str]:
        return [OURS, *(peer for peer in PEERS[work] if peer in self.peers)]

    def _piece(self, text: _Text) -> Path:
        path = self.scratch / f"piece-{text.sha256[:12]}.txt"
        if not path.exists():
            corpus.write_beginning(path, text.path, int(CHECK_MEGABYTES * 1e6))
        return path

    def _case(
        self,
        work: str,
        name: str,
        text: _Text,
        jobs: dict[str, dict[str, Any]],
        checks: dict[str, dict[str, Any]],
        difference: Callable[[Any, Any], str | None],
        *,
        threads: int | None = None,
    ) -> Case:
        num_bytes = text.megabytes * 1e6

        def run(contender: str) -> Observation:
            start = time.perf_counter()
            answer, _ = self._answer(work, contender, jobs[contender], threads=threads)
            passes = jobs[contender].get("passes", 1)
            self.pace[work, contender] = (time.perf_counter() - start) / passes / num_bytes
            return Observation(**answer)

        def check(contender: str) -> Any:
            expected = self.pace.get((work, contender), 0.0) * num_bytes * jobs[contender].get("passes", 1)
            if expected > SLOWEST_SECONDS:
                raise Unavailable(f"left out: about {expected:.0f} s expected for one run")
            return self._answer(work, contender, checks[contender], threads=threads)[0]["result"]

        return Case(
            name=name,
            amount=text.megabytes,
            unit="MB/s",
            contenders=[
                self._contender(work, each, functools.partial(run, each), functools.partial(check, each))
                for each in jobs
            ],
            difference=difference,
            input=text.description(),
            repeats=min(3, self.repeats) if text.megabytes >= LARGE_MEGABYTES else self.repeats,
            budget_seconds=BUDGET_SECONDS,
        )

    def _contender(
        self, work: str, name: str, run: Callable[[], Observation], check: Callable[[], Any] | None
    ) -> Contender:
        if check is None:  # the whole work is short enough
            return Contender(name=name, prepare=lambda: run, packages=PACKAGES[name], check=lambda: run().result)
        return Contender(name=name, prepare=lambda: run, packages=PACKAGES[name], check=check)

    def _with_input(self, case: Case, **more: Any) -> Case:
        return _changed(case, input=case.input | more)

    def _answer(
        self,
        work: str,
        contender: str,
        job: dict[str, Any],
        *,
        threads: int | None,
        environment: dict[str, str] | None = None,
    ) -> tuple[dict[str, Any], str]:
        job = job | {"work": work, "contender": contender}
        if work == "train":
            job["entries"] = str(self.scratch / f"{contender}.entries")
        number = str(threads or _num_cores())  # thread pools of Rust read it when they start
        surroundings = {"RAYON_NUM_THREADS": number, "TOKENIZERS_PARALLELISM": "false" if threads == 1 else "true"}
        return in_fresh_process("benchmarks.tokenizer_work", job, environment=surroundings | (environment or {}))


def _changed(case: Case, **changes: Any) -> Case:
    return Case(**(vars(case) | changes))


def _different(ours: Any, theirs: Any) -> str | None:
    return None if ours == theirs else f"{theirs[0]:,} ids, ours {ours[0]:,}, or some of them differ"


def _different_entries(ours: str, theirs: str) -> str | None:
    mine, other = (set(Path(path).read_text().splitlines()) for path in (ours, theirs))
    shared = len(mine & other) / len(mine)
    if len(mine) == len(other) and shared > 0.95:
        return None
    return f"{len(other):,} entries, ours {len(mine):,}, {shared:.2%} in both"


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
