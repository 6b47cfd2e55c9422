"""`torchrun` that dies with its parent: after `kill -9` nothing goes on writing into the artifact."""

import os

from torch.distributed.run import main

from cs336.processes import die_with_parent

if __name__ == "__main__":
    die_with_parent(int(os.environ["CS336_TRAIN_PARENT"]))
    main()
