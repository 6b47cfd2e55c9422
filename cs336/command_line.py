"""What commands of every stage share, so that each is listed in a line and explains itself."""

from __future__ import annotations

import argparse


def add_action(
    actions: argparse._SubParsersAction, name: str, description: str, brief: str = ""
) -> argparse.ArgumentParser:
    """A command whose `--help` shows the description as it is written.

    Args:
        brief: beside its name in the list of commands; the description's first line by default.
    """
    return actions.add_parser(
        name,
        help=brief or description.partition("\n")[0].rstrip("."),
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
