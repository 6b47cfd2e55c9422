"""One voice for a job that fails: of all its processes, one says why, and the others end without a word.

`torchrun` ends all processes of a job once it sees one of them gone, so whoever has something to say must say it
before it goes, and whoever has nothing to add waits to be ended.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import torch.distributed as dist

from cs336.files import UserError
from cs336.parallel.process_group import Rank

_GRACE_SECONDS = 5.0  # in which another rank has spoken, and torchrun ends this one
_SPEECH_SECONDS = 600.0  # the same where rank 0 may first have to finish writing a file
_LAST_WORDS_SECONDS = 1.0  # for a main thread that may be about to speak
_KEY = "spoken"


@contextlib.contextmanager
def one_voice(place: Rank | None, *, shared: type[Exception] | tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Around a job's work: lets the error of one rank through; the others exit with code 1 and no message.

    The first rank that fails speaks. What a broken connection says to the others is left out: it follows from that.
    Only if its peer went without a word, as after `kill -9`, does one of them say so.

    Args:
        place: None before there is a group: then rank 0 speaks of what all ranks meet.
        shared: errors that all ranks raise at the same point: rank 0 speaks.

    Raises:
        UserError: another process of the job ended without a word.
        SystemExit: another rank speaks.
    """
    rank = place.rank if place is not None else int(os.environ.get("RANK", "0"))
    try:
        yield
    except KeyboardInterrupt:
        if rank:  # who pressed Ctrl-C needs no second line
            raise SystemExit(130) from None
        raise
    except Exception as error:
        if place is None or isinstance(error, shared):
            if rank:
                time.sleep(_GRACE_SECONDS if place is None else _SPEECH_SECONDS)
                raise SystemExit(1) from None
            if place is not None:
                _claim(place)
            raise
        if not _claim(place):
            time.sleep(_GRACE_SECONDS)
            raise SystemExit(1) from None
        if _peer_is_gone(error):
            raise UserError(
                f"another process of this job ended without a word (killed? out of memory?), as rank {rank} of"
                f" {place.world_size} noticed; start the job again"
            ) from error
        raise


def speak_when_ended(place: Rank, say: Callable[[str], None]) -> None:
    """When SIGTERM comes before any rank has spoken, say so and end: NCCL lets no rank notice that another is gone.

    A thread waits for the signal, since Python's own handlers do not run while the main thread is inside a collective.

    Args:
        say: is given the line.
    """
    heard, told = os.pipe()
    os.set_blocking(told, False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)

    def wait() -> None:
        while os.read(heard, 1)[0] != signal.SIGTERM:
            pass
        threading.Timer(_GRACE_SECONDS, os._exit, (1,)).start()  # should the store not answer
        if _claim(place):
            say("another process of this job was killed (out of memory?), or the job was stopped; start it again")
        else:
            time.sleep(_LAST_WORDS_SECONDS)
        os._exit(1)

    threading.Thread(target=wait, daemon=True, name="end").start()


def _claim(place: Rank) -> bool:
    """Whether this is the first rank of the job that wants to say why it failed."""
    try:
        return place.store.add(_KEY, 1) == 1
    except Exception:  # the store is gone with whoever kept it: nobody else can speak
        return True


def _peer_is_gone(error: Exception) -> bool:
    """Whether it is what a collective says when a process of its group has ended."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())
