"""`torchrun` that dies with its parent: after `kill -9` nothing goes on writing into the artifact.

A worker that failed has left its reason in the run's folder; torchrun's own report of it is not shown.
"""

import logging
import os
import signal
import sys
from pathlib import Path

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

from cs336.processes import die_with_parent

if __name__ == "__main__":
    die_with_parent(int(os.environ["CS336_TRAIN_PARENT"]))
    logging.disable(logging.ERROR)
    try:
        main()
    except (KeyboardInterrupt, SignalException):
        sys.exit(130)
    except ChildFailedError as error:
        reason = Path(os.environ["CS336_TRAIN_FAILURE"])
        ended_here = (0, 1, -signal.SIGTERM)  # by itself, or by torchrun, once another had gone
        killed = [(rank, each) for rank, each in error.failures.items() if each.exitcode not in ended_here]
        if killed or not reason.exists():  # what the others say of a rank that was killed follows from that
            rank, failure = killed[0] if killed else error.get_first_failure()
            which = f"the training worker{f' of rank {rank}' if rank else ''}"
            how = " (killed; out of memory?)" if failure.exitcode == -9 else ""
            reason.write_text(f"{which} ended with exit code {failure.exitcode}{how}\n", encoding="utf-8")
        sys.exit(1)
