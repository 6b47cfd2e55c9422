"""`cs336 scaling ...`: fit scaling laws to measured losses and predict."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from cs336.command_line import add_action
from cs336.files import UserError, creating
from cs336.scaling import grid_commands

if TYPE_CHECKING:
    from cs336.scaling.measurements import Measurements
    from cs336.scaling.parametric import ParametricLaw

_FIT = """Fit scaling laws to measured losses and predict the best model for other budgets.

  cs336 scaling fit isoflops.json --out fits
  cs336 scaling fit isoflops.json --out fits --at 1e23 --at 1e24

FILE is a JSON array, or JSON Lines, of objects {"parameters": ..., "compute_budget": ..., "final_loss": ...}; other
keys are not read. Of several runs of one size and budget the lowest counts. Printed, and written to OUT with plots,
are Chinchilla's approach 1 (envelope, where sizes have several budgets), approach 2 by the lowest run and by parabolas,
and approach 3 (parametric), with bootstrap intervals and the error at the largest budget when it is left out."""

_EXERCISE = """The course's exercise: 72 runs drawn from a known law, fitted, beside the exact answer.

  cs336 scaling exercise --out exercise

OUT gets the runs in the handout's format, isoflops.json, for `cs336 scaling fit`, and what `fit` writes."""

_PUBLISHED = "Published scaling laws computed again from their published figures: what agrees, what does not."


def register(commands: argparse._SubParsersAction) -> None:
    """Add the commands to `cs336`'s parser."""
    command = commands.add_parser("scaling", help="plan a grid of small models, fit laws to it, predict larger budgets")
    actions = command.add_subparsers(required=True, metavar="ACTION")

    action = add_action(actions, "fit", _FIT)
    action.add_argument("file", type=Path, metavar="FILE", help="the runs")
    _add_fit_options(action)
    action.set_defaults(run=_fit)

    action = add_action(actions, "exercise", _EXERCISE)
    _add_fit_options(action)
    action.set_defaults(run=_exercise)

    action = add_action(actions, "published", _PUBLISHED)
    action.set_defaults(run=_published)
    grid_commands.register(actions)


def _add_fit_options(action: argparse.ArgumentParser) -> None:
    action.add_argument("--out", type=Path, required=True, help="new folder for numbers, page and plots")
    action.add_argument(
        "--at",
        type=_positive,
        action="append",
        metavar="FLOPS",
        help="budget to predict for; may be given several times (default: 1e23 and 1e24)",
    )
    action.add_argument(
        "--draws", type=int, default=1_000, metavar="N", help="of the bootstrap; 0 for none (default: %(default)s)"
    )
    action.add_argument(
        "--level", type=_share, default=0.95, help="share of the draws in an interval (default: %(default)s)"
    )
    action.add_argument("--seed", type=int, default=0, help="of the draws (default: %(default)s)")


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no number of FLOPs; give one above 0, such as 1e23")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is no share of the draws; give one between 0 and 1, such as 0.95")
    return value


def _fit(options: argparse.Namespace) -> None:
    from cs336.scaling.measurements import best_of_equals, read_measurements

    everything = read_measurements(options.file)
    runs = best_of_equals(everything)
    if len(runs.losses) < len(everything.losses):
        beaten = len(everything.losses) - len(runs.losses)
        print(f"{beaten} of {len(everything.losses)} runs left out: another of the same size and budget is lower\n")
    _report(options, str(options.file), runs)


def _exercise(options: argparse.Namespace) -> None:
    from cs336.scaling.exercise import LAW, exercise_runs

    _report(options, "exercise", exercise_runs(), LAW)


def _report(options: argparse.Namespace, name: str, runs: Measurements, truth: ParametricLaw | None = None) -> None:
    from cs336.scaling.fits import fit_all
    from cs336.scaling.summary import TARGETS, page, write_fits

    if options.draws < 0:
        raise UserError(f"--draws is {options.draws}; give 0 or more")
    with creating(options.out) as folder:
        fits = fit_all(runs, num_draws=options.draws, seed=options.seed)
        if not fits.fits:
            reasons = "; ".join(f"{approach}: {reason}" for approach, reason in fits.left_out.items())
            raise UserError(f"{name}: no approach can be fitted to its {len(runs.losses)} runs ({reasons})")
        summary = write_fits(fits, folder, options.at or TARGETS, level=options.level, truth=truth)
    print(page(summary))
    print(f"numbers, page and plots: {options.out}")


def _published(options: argparse.Namespace) -> None:
    from cs336.scaling.published import page

    print(page(), end="")
