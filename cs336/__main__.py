"""`python -m cs336` is `cs336`."""

import sys

from cs336.cli import main

sys.exit(main())
