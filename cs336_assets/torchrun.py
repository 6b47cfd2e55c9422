"""`torchrun` that dies with its parent: after `kill -9` nothing goes on writing into the artifact.

A worker that failed has left its reason in the run's folder; torchrun's own report of it is not shown.
"""

import logging
import os
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
        if not reason.exists():
            code = error.get_first_failure()[1].exitcode
            killed = " (killed; out of memory?)" if code == -9 else ""
            reason.write_text(f"the training worker ended with exit code {code}{killed}\n", encoding="utf-8")
        sys.exit(1)
