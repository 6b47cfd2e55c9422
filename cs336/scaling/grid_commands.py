"""`cs336 scaling plan`: what a grid will take, and what is wrong with it."""

from __future__ import annotations

import argparse
import sys

_PLAN = """What a scaling grid will take: runs, sizes, tokens, nominal and real FLOPs, and time on one H100 or H200.

  cs336 scaling plan h100            a line for each budget
  cs336 scaling plan full --cells    a line for each run
  cs336 scaling plan mine.toml

Below stands what is wrong with the grid, a line each: profiles with too few sizes or none beyond the expected minimum,
runs that read the text too often or take too many steps, shapes off the ladder. The exit code is then 1."""


def register(actions: argparse._SubParsersAction) -> None:
    """Add the commands to those of `cs336 scaling`."""
    action = actions.add_parser(
        "plan",
        help="runs, tokens, FLOPs and time of a grid, and what is wrong with it",
        description=_PLAN,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    action.add_argument("grid", metavar="GRID", help="h100, check, full, final, tiny, or a .toml file")
    action.add_argument("--cells", action="store_true", help="a line for each run")
    action.add_argument("--packed", type=int, default=3, help="processes that share the GPU (default: %(default)s)")
    action.set_defaults(run=_plan)


def _plan(options: argparse.Namespace) -> int:
    from cs336.scaling.grid import find_grid, problems
    from cs336.scaling.plan import plan_lines

    grid = find_grid(options.grid)
    print("\n".join(plan_lines(grid, packed=options.packed, cells=options.cells)))
    wrong = problems(grid)
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0
