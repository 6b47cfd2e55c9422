"""Console commands that follow a document or a token through the artifacts: why, trace, what-if."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from cs336.cli import add_preset_option
from cs336.files import UserError

_WHY = """What became of a page, and why: its whole story in one screen.

  cs336 why https://example.org/page.html       the story of this page
  cs336 why example.org                         a part of an address: the pages that have it

From the WARC record (file, byte offset, status, type) to the text, to what each filter measured beside
its bounds (all of them, not only the first that failed), the lines removed, the near-duplicates, and the
place of its tokens; or the rule that dropped it. Nothing is run: it reads what `cs336 run` stored."""

_TRACE = """Where a token was read, or all text of a training batch.

  cs336 trace docs-00000 4321                   token 4,321 of that shard's train.bin
  cs336 trace docs-00000 17 --split valid       of its held-out text
  cs336 trace --batch 100                       what step 100 of the base model's training saw

A token leads to its document, that to its address and its place in the WARC file. Positions count tokens
from 0, steps from 1 as in base_model/metrics.jsonl. The batch of a step depends on seed and step alone,
so it is the one that training saw (as long as the token shards are the same; it says when not)."""

_WHAT_IF = """The filter ledger with other thresholds, side by side with the preset's, in seconds.

  cs336 what-if min_language_confidence=0.8 gopher.min_words=30
  cs336 what-if languages=en,de max_eval_hits=none

SETTING=VALUE as in a preset's `filters = {...}`; a wrong name lists them all. Decides again on the stored
measurements, so no filter runs and nothing is written."""


def register(commands: argparse._SubParsersAction) -> None:
    """Add the commands to `cs336`'s parser."""
    plain = argparse.RawDescriptionHelpFormatter
    command = commands.add_parser(
        "why", help="what became of a page, and which rule dropped it", description=_WHY, formatter_class=plain
    )
    command.add_argument("url", metavar="URL", help="an address, or a part of one")
    command.add_argument("--at", metavar="OFFSET", type=_count, help="of several records the one at this byte")
    add_preset_option(command)
    command.set_defaults(run=_why)

    command = commands.add_parser(
        "trace", help="from a token or a training batch to its pages", description=_TRACE, formatter_class=plain
    )
    command.add_argument("shard", metavar="SHARD", nargs="?", help="such as docs-00000")
    command.add_argument("position", metavar="POSITION", nargs="?", type=_count, help="of the token, from 0")
    command.add_argument("--split", choices=("train", "valid"), default="train", help="default: %(default)s")
    command.add_argument("--batch", metavar="STEP", type=_count, help="the batch of this training step, from 1")
    command.add_argument("-n", type=_count, default=8, help="of a batch, so many stretches; 0 is all (%(default)s)")
    add_preset_option(command)
    command.set_defaults(run=_trace)

    command = commands.add_parser(
        "what-if", help="the filter ledger with other thresholds", description=_WHAT_IF, formatter_class=plain
    )
    command.add_argument("changes", metavar="SETTING=VALUE", nargs="+", help="such as gopher.min_words=30")
    add_preset_option(command)
    command.set_defaults(run=_what_if)


def _count(text: str) -> int:
    """A whole number, with or without commas."""
    value = int(text.replace(",", ""))
    if value < 0:
        raise ValueError(text)
    return value


_count.__name__ = "whole number"  # as argparse calls it: "invalid whole number value"


def _why(options: argparse.Namespace) -> None:
    from cs336.preset_lookup import find_preset
    from cs336.store import Store
    from cs336_assets.why import MAX_LISTED, fate, find_records, tell

    preset, store = find_preset(options.preset), Store(options.preset)
    found = find_records(store, options.url)
    if options.at is not None:
        found = [each for each in found if each.record["offset"] == options.at]
    place = "" if options.at is None else f" at byte {options.at:,}"
    if not found:
        raise UserError(f"{options.preset}: no record's address has {options.url!r} in it{place}; try a shorter part")
    if len(found) == 1:
        _print(tell(store, preset, found[0]))
        return
    print(f"{len(found):,} records" + (f", the first {MAX_LISTED} of them:" if len(found) > MAX_LISTED else ":"))
    _print(f"  {fate(store, each):<37} {each.record['url']} ({each.place})" for each in found[:MAX_LISTED])
    print("give one whole address for its story, or of several records of one address --at OFFSET")


def _trace(options: argparse.Namespace) -> None:
    from cs336.preset_lookup import find_preset
    from cs336.store import Store
    from cs336_assets.trace import trace_batch, trace_token

    preset, store = find_preset(options.preset), Store(options.preset)
    if (options.batch is None) == (options.position is None):
        raise UserError("give SHARD and POSITION of a token, or --batch STEP; `cs336 trace --help` shows both")
    lines = (
        trace_token(store, options.shard, options.split, options.position)
        if options.batch is None
        else trace_batch(store, preset, options.batch, num_shown=options.n)
    )
    _print(lines)


def _print(lines: Iterable[str]) -> None:
    """What holds addresses and texts of pages."""
    from cs336.sheets import without_controls

    for line in lines:
        print(without_controls(line))


def _what_if(options: argparse.Namespace) -> None:
    from cs336.preset_lookup import find_preset
    from cs336.store import Store
    from cs336_assets.what_if import what_if

    for line in what_if(Store(options.preset), find_preset(options.preset), options.changes):
        print(line)
