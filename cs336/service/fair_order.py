"""In which order waiting jobs get workers: nobody's long queue holds up another's first job."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import NamedTuple


class Waiting(NamedTuple):
    """A job in the queue.

    Attributes:
        queued_at: when it came.
        number: its identity; breaks ties.
        user: whose it is.
    """

    queued_at: datetime
    number: int
    user: int


def fair_order(waiting: Iterable[Waiting], num_running: Mapping[int, int]) -> list[Waiting]:
    """Jobs in the order in which workers take them.

    Sorted by the user's running jobs plus the job's place in the user's own queue, then by the time it came, then
    by number.

    Args:
        num_running: jobs that run already, by user.

    Source: CS336 Spring 2026, scaling handout.
    """
    places: Counter[int] = Counter(num_running)
    keyed = []
    for job in sorted(waiting):
        keyed.append((places[job.user], job))
        places[job.user] += 1
    return [job for _, job in sorted(keyed)]
