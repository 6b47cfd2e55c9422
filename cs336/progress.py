"""Progress of long work: one callable that wraps an iterable, silent unless a caller asks.

Library functions take `progress: Progress = silent` and loop over
`progress(items, total=n, unit="pages", label="extract")`; who watches is the caller's affair.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Protocol, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    """Wraps an iterable and yields its items unchanged."""

    def __call__(
        self, items: Iterable[T], *, total: int | None = None, unit: str = "items", label: str = ""
    ) -> Iterator[T]: ...


def silent(items: Iterable[T], *, total: int | None = None, unit: str = "items", label: str = "") -> Iterator[T]:
    """Show nothing."""
    yield from items


def bar(items: Iterable[T], *, total: int | None = None, unit: str = "items", label: str = "") -> Iterator[T]:
    """A terminal bar on standard error, with rate and time left."""
    from tqdm import tqdm

    yield from tqdm(
        items,
        total=_total(items, total),
        unit=f" {unit}",
        desc=label or None,
        file=sys.stderr,
        leave=True,
        mininterval=0.5,
    )


def log_lines(write: Callable[[str], None], *, every_seconds: float = 10.0) -> Progress:
    """One line every few seconds, for logs that are read later.

    Args:
        write: takes a finished line, such as a logger's `info`.
        every_seconds: the least time between two lines.
    """

    def wrap(items: Iterable[T], *, total: int | None = None, unit: str = "items", label: str = "") -> Iterator[T]:
        total = _total(items, total)
        start = last = time.monotonic()
        for count, item in enumerate(items, 1):
            yield item
            now = time.monotonic()
            if now - last >= every_seconds:
                last = now
                rate = count / (now - start)
                left = f", {(total - count) / rate:,.0f} s left" if total else ""
                of = f" of {total:,}" if total else ""
                write(f"{label}: {count:,}{of} {unit}, {rate:,.0f}/s{left}")

    return wrap


def both(first: Progress, second: Progress) -> Progress:
    """Two watchers at once, such as a bar and the event log."""

    def wrap(items: Iterable[T], *, total: int | None = None, unit: str = "items", label: str = "") -> Iterator[T]:
        total = _total(items, total)
        inner = first(items, total=total, unit=unit, label=label)
        yield from second(inner, total=total, unit=unit, label=label)

    return wrap


def _total(items: Iterable[object], total: int | None) -> int | None:
    return len(items) if total is None and isinstance(items, Sized) else total
