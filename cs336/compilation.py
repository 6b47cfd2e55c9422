"""What all compiled kernels share: a notice when a first call takes a while."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator

_NOTICE_SECONDS = 3.0  # loading from Numba's cache takes less


@contextlib.contextmanager
def announced(what: str) -> Iterator[None]:
    """For first calls of kernels: says what is compiled when it takes a while; loading from the cache is silent."""
    notice = threading.Timer(_NOTICE_SECONDS, _say_compiling, [what])
    notice.daemon = True
    notice.start()
    try:
        yield
    finally:
        notice.cancel()


def _say_compiling(what: str) -> None:
    print(f"compiling {what}: once, half a minute at most", file=sys.stderr, flush=True)
