"""Drop every line that the corpus holds more than once, all its copies.

Two passes: hash all lines and keep the hashes seen twice, then rewrite without those lines. With
64-bit hashes, 1.3e9 lines have about 0.05 expected collisions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cs336.files import replacing


@dataclass(frozen=True, kw_only=True)
class LineConfig:
    """How lines are dropped.

    Attributes:
        enabled: without it no line is taken for repeated; `min_words` stays.
        exempt_blank: keep blank lines. Without it all but a lone one repeat, so paragraph gaps vanish.
        min_words: documents left with fewer words are dropped; 50 is Gopher's floor (the public
            reference run applies it again after this step). 0 drops none but those left empty.
    """

    enabled: bool = True
    exempt_blank: bool = False
    min_words: int = 50


def exact_line_deduplication(paths: Sequence[Path | str], output_dir: Path | str) -> None:
    """Rewrite each file into `output_dir`, under its own name, with only the lines the corpus holds once.

    Order and bytes of what is kept do not change, a file left without lines is written empty, and
    blank lines are lines. A line's terminator ("\\n" or "\\r\\n") does not count.

    Raises:
        ValueError: two inputs have one base name, or an output would overwrite its input.
    """
    sources = [Path(path) for path in paths]
    targets = output_targets(sources, Path(output_dir))
    repeated = repeated_hashes(_hashes(_content(line) for line in _lines(path.read_bytes())) for path in sources)
    for source, target in zip(sources, targets, strict=True):
        kept = _kept_lines(source.read_bytes(), repeated, exempt_blank=False)
        with replacing(target) as file:
            file.write(kept)


def output_targets(sources: Sequence[Path], output_dir: Path) -> list[Path]:
    """Where each file goes: its base name in the output folder, which is created.

    Raises:
        ValueError: two inputs have one base name, or an output would overwrite its input.
    """
    twice = [name for name, count in Counter(path.name for path in sources).items() if count > 1]
    if twice:
        raise ValueError(f"two inputs are called {twice[0]!r}, and would overwrite each other; rename one")
    output_dir.mkdir(parents=True, exist_ok=True)
    if any(path.parent.resolve() == output_dir.resolve() for path in sources):
        raise ValueError(f"{output_dir} holds inputs; write into another folder")
    return [output_dir / path.name for path in sources]


def line_hashes(text: str) -> NDArray[np.uint64]:
    """64-bit hash of every line, in order; the same on every machine and in every run.

    Source: BLAKE2b with an 8-byte digest.
    """
    return _hashes(_content(line) for line in _lines(text.encode("utf-8", "surrogatepass")))


def repeated_hashes(arrays: Iterable[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    """Sorted distinct hashes that occur at least twice in all the arrays together.

    Holds all hashes in memory: 16 bytes a line at the peak.
    """
    hashes = np.concatenate([np.zeros(0, dtype=np.uint64), *arrays])
    hashes.sort()
    return np.unique(hashes[1:][hashes[1:] == hashes[:-1]])


def drop_repeated_lines(text: str, repeated: NDArray[np.uint64], *, exempt_blank: bool = False) -> str:
    """The text without the lines whose hash is in `repeated` (sorted); the rest byte for byte.

    Args:
        exempt_blank: keep lines of white space alone, whatever their count.
    """
    kept = _kept_lines(text.encode("utf-8", "surrogatepass"), repeated, exempt_blank=exempt_blank)
    return kept.decode("utf-8", "surrogatepass")


def deduplicate_lines(text: str, repeated: NDArray[np.uint64], config: LineConfig) -> str | None:
    """`drop_repeated_lines`; None when too few words are left, and the document is to be dropped."""
    kept = drop_repeated_lines(text, repeated, exempt_blank=config.exempt_blank)
    return kept if len(kept.split()) >= max(1, config.min_words) else None


def _lines(data: bytes) -> list[bytes]:
    """Lines with their terminators; nothing after a final one."""
    lines = data.split(b"\n")
    last = lines.pop()
    return [line + b"\n" for line in lines] + ([last] if last else [])


def _content(line: bytes) -> bytes:
    """The line without its terminator, so that a last line without one equals its twins."""
    return line[:-1].removesuffix(b"\r") if line.endswith(b"\n") else line


def _hashes(lines: Iterable[bytes]) -> NDArray[np.uint64]:
    digests = b"".join([blake2b(line, digest_size=8).digest() for line in lines])
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64, copy=False)


def _kept_lines(data: bytes, repeated: NDArray[np.uint64], *, exempt_blank: bool) -> bytes:
    if not data or not len(repeated):
        return data
    lines = _lines(data)
    hashes = _hashes(map(_content, lines))
    places = np.minimum(np.searchsorted(repeated, hashes), len(repeated) - 1)
    drop = (repeated[places] == hashes).tolist()
    return b"".join(
        line for line, gone in zip(lines, drop, strict=True) if not gone or (exempt_blank and _is_blank(line))
    )


def _is_blank(line: bytes) -> bool:
    return not line.decode("utf-8", "replace").strip()
