"""`cs336 scaling plan, predict, check, report`: what a grid takes, what its rows predict, whether it came true."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from cs336.command_line import add_action
from cs336.files import UserError, read_json, write_json

_PLAN = """What a scaling grid will take: runs, sizes, tokens, nominal and real FLOPs, and time on one H100 or H200.

  cs336 scaling plan h100            a line for each budget
  cs336 scaling plan full --cells    a line for each run
  cs336 scaling plan mine.toml

Below stands what is wrong with the grid, a line each: profiles with too few sizes or none beyond the expected minimum,
runs that read the text too often or take too many steps, shapes off the ladder. The exit code is then 1."""


_PREDICT = """Predict the best size and its loss at a larger budget from the rows of a grid, and write that down once.

  cs336 scaling predict runs.jsonl --target 1e16 --max-budget 1e15 --out prediction.json

Fitted are the rows up to --max-budget, as IsoFLOP profiles: at each budget the best recipe (batch size and learning
rate, or rate over the width) of five sizes or more, by the mean of a shape's seeds. The prediction is by parabolas,
else by the lowest runs, else by the best sizes among those that read the text no more often than GRID allows; what else
has an answer stands beside it. Intervals are of bootstrap draws. Of the shapes that the grid GRID trains at
the target, the one nearest to the predicted size is named. Runs of few steps are near the loss of an untrained model,
which no law knows of: --min-budget leaves their budgets out; go by the error at the largest budget, left out, which
is printed. Commit the file, put the shape into the grid, train it, then `cs336 scaling check`."""

_CHECK = """Compare a prediction with the rows that were trained at its target after it was made.

  cs336 scaling check prediction.json check.jsonl --out checked.json

Refused are rows older than the prediction, and rows on other text. Those of another batch size or learning rate than
the prediction names are left out. The best size is that of lowest mean loss over its
seeds; "vertex" is that of a parabola through them, where they bracket it."""


_REPORT = """The report of a scaling study, from rows alone: one HTML file that loads nothing, and its Markdown.

  cs336 scaling report runs.jsonl check.jsonl --prediction prediction.json --out report
  cs336 scaling report --out report        of the measured runs that come with cs336

Which runs and why, what they cost, learning rates, batch sizes and shapes, profiles with their minima, laws with
intervals, residuals, the surrogate's error on runs held out, utilisation with and without packing, the prediction and
its check, what to train with 1e19 FLOPs, and the handout's exercise. Of a configuration in several files the first row
counts. A file beside ROWS that ends in .sessions.jsonl, as the runner writes it, adds the sessions."""


def register(actions: argparse._SubParsersAction) -> None:
    """Add the commands to those of `cs336 scaling`."""
    action = add_action(actions, "plan", _PLAN, "runs, tokens, FLOPs and time of a grid, and what is wrong with it")
    action.add_argument("grid", metavar="GRID", help="h100, check, full, final, tiny, or a .toml file")
    action.add_argument("--cells", action="store_true", help="a line for each run")
    action.add_argument("--packed", type=int, default=3, help="processes that share the GPU (default: %(default)s)")
    action.set_defaults(run=_plan)

    action = add_action(actions, "predict", _PREDICT, "best size and loss at a larger budget, written down once")
    action.add_argument("rows", type=Path, metavar="ROWS", help="runs.jsonl of the runner")
    action.add_argument("--target", type=_flops, required=True, metavar="FLOPS", help="budget to predict for")
    action.add_argument(
        "--max-budget", type=_flops, required=True, metavar="FLOPS", help="largest budget to predict from"
    )
    action.add_argument(
        "--min-budget", type=_flops, default=0.0, metavar="FLOPS", help="smallest one to predict from (default: all)"
    )
    action.add_argument("--grid", default="check", metavar="GRID", help="that trains the target (default: %(default)s)")
    action.add_argument(
        "--rate-per-width",
        type=float,
        default=0.0,
        metavar="X",
        help="the check's learning rate is X over its width (default: by the profile of the largest budget)",
    )
    action.add_argument("--out", type=Path, required=True, metavar="FILE", help="new JSON file")
    action.set_defaults(run=_predict)

    action = add_action(actions, "check", _CHECK, "a prediction beside what was trained after it")
    action.add_argument("prediction", type=Path, metavar="PREDICTION", help="JSON file of `predict`")
    action.add_argument("rows", type=Path, metavar="ROWS", help="with the runs at its target")
    action.add_argument("--out", type=Path, metavar="FILE", help="JSON file for all figures")
    action.set_defaults(run=_check)

    action = add_action(actions, "report", _REPORT, "all figures of a study, from its rows")
    action.add_argument("rows", type=Path, nargs="*", metavar="ROWS", help="runs.jsonl of the runner")
    action.add_argument("--prediction", type=Path, metavar="FILE", help="JSON file of `predict`")
    action.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="new folder")
    action.add_argument("--draws", type=int, default=1_000, metavar="N", help="of the bootstrap (default: %(default)s)")
    action.set_defaults(run=_report)


def _flops(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no number of FLOPs; give one above 0, such as 1e16")
    return value


def _plan(options: argparse.Namespace) -> int:
    from cs336.scaling.grid import find_grid, problems
    from cs336.scaling.plan import plan_lines

    if options.packed < 1:
        raise UserError(f"--packed is {options.packed}; give 1 or more")
    grid = find_grid(options.grid)
    print("\n".join(plan_lines(grid, packed=options.packed, cells=options.cells)))
    wrong = problems(grid)
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


def _predict(options: argparse.Namespace) -> None:
    from cs336.scaling.grid import find_grid, shapes_at
    from cs336.scaling.predict import predict, write_prediction
    from cs336.scaling.runs import read_runs

    grid = find_grid(options.grid)
    shapes = shapes_at(grid, options.target)
    if not shapes:
        raise UserError(f"grid {grid.name} trains nothing at {options.target:.0e}; name one that does with --grid")
    prediction = predict(
        read_runs(options.rows),
        target=options.target,
        max_budget=options.max_budget,
        min_budget=options.min_budget,
        shapes=shapes,
        unique_tokens=grid.unique_tokens,
        max_epochs=grid.max_epochs,
        rate_per_width=options.rate_per_width,
    )
    write_prediction(options.out, prediction)
    print(_prediction_text(prediction))
    print(f"written: {options.out}")


def _check(options: argparse.Namespace) -> None:
    from cs336.scaling.predict import check
    from cs336.scaling.runs import read_runs

    checked = check(_read_prediction(options.prediction), read_runs(options.rows))
    if options.out:
        write_json(options.out, checked)
    print(_check_text(checked))


def _read_prediction(path: Path) -> dict[str, Any]:
    prediction = read_json(path)
    if not isinstance(prediction, dict) or "target_budget" not in prediction:
        raise UserError(f"{path}: no prediction; `cs336 scaling predict` writes one")
    return prediction


def _report(options: argparse.Namespace) -> None:
    from cs336.files import creating, read_jsonl
    from cs336.scaling import runs as measured
    from cs336.scaling.report import HTML_FILE, write_report
    from cs336.scaling.runs import read_runs, sessions_file

    files, prediction = options.rows, options.prediction
    if not files:
        known = measured.MEASURED_RUNS, measured.MEASURED_CHECK, measured.MEASURED_PACKING
        files = [path for path in known if path.exists()]
        if prediction is None and measured.MEASURED_PREDICTION.exists():
            prediction = measured.MEASURED_PREDICTION
    if not files:
        raise UserError(
            f"{measured.MEASURED_RUNS}: not found, so no measured runs come with this version; train a grid"
            " (`python -m cs336.scaling.runner`) and name its rows: cs336 scaling report runs.jsonl --out report"
        )
    if options.draws < 1:
        raise UserError(f"--draws is {options.draws}; give 1 or more")
    rows = [run for path in files for run in read_runs(path)]
    sessions = [each for path in map(sessions_file, files) if path.exists() for each in read_jsonl(path)]
    made = _read_prediction(prediction) if prediction else None
    with creating(options.out) as folder:
        write_report(folder, rows, prediction=made, sessions=sessions, num_draws=options.draws)
    print(f"{len(rows)} rows: {options.out / HTML_FILE}")


def _prediction_text(prediction: dict[str, Any]) -> str:
    lines = [
        f"{prediction['target_budget']:.3g} FLOPs, from {prediction['num_rows']} runs of {prediction['min_budget']:.3g}"
        f" to {prediction['max_budget']:.3g}, {prediction['num_points']} sizes and budgets (rows {prediction['rows']},"
        f" commit {prediction['commit'][:12]})"
    ]
    lines += [f"  {name:<12} {_estimates(each)}" for name, each in prediction["predictions"].items()]
    for name, error in prediction["held_out_loss_errors"].items():
        if error is not None:
            lines.append(f"  {name:<12} was off by {error:+.4f} nats at the largest of these budgets, left out")
    lines += [f"  {name:<12} none: {reason}" for name, reason in prediction["left_out"].items()]
    named = prediction["check"]
    lines.append(
        f"to check: {named['shape']}, batch {named['batch_size']}, learning rate {named['learning_rate']:g},"
        f" the text read {named['epochs']:.2f} times"
    )
    return "\n".join(lines)


def _check_text(checked: dict[str, Any]) -> str:
    from cs336.scaling.predict import edge_of
    from cs336.scaling.summary import count, percent

    seeds = checked["num_seeds"]
    lines = [
        f"{checked['target_budget']:.3g} FLOPs, predicted {checked['prediction_made']}",
        f"  predicted    {_estimates(checked['predicted'])}",
        f"  measured     N {count(checked['best_parameters'])}, L {checked['best_loss']:.4f}"
        + (f": the {edge} size trained" if (edge := edge_of(checked)) else ""),
    ]
    if checked["vertex"]:
        lines.append(f"  vertex       N {count(checked['vertex']['parameters'])}, L {checked['vertex']['loss']:.4f}")
    lines += [
        f"  off by       N {percent(checked['parameters_error'])}, L {checked['loss_error']:+.4f} nats",
        f"  in interval  N {_yes(checked['parameters_within'])}, L {_yes(checked['loss_within'])}",
    ]
    for size, loss in checked["losses"].items():
        lines.append(f"{count(float(size)):>10}  {loss:.4f}  {seeds[size]} seed{'s' if seeds[size] > 1 else ''}")
    if checked["seed_spread"] is not None:
        lines.append(f"standard deviation between seeds of the predicted shape: {checked['seed_spread']:.4f}")
    return "\n".join(lines)


def _estimates(predicted: dict[str, dict[str, float]]) -> str:
    from cs336.scaling.summary import count

    size, loss = predicted["parameters"], predicted["loss"]
    return (
        f"N {count(size['estimate'])} ({count(size['low'])} to {count(size['high'])}),"
        f" L {loss['estimate']:.4f} ({loss['low']:.4f} to {loss['high']:.4f})"
    )


def _yes(value: bool) -> str:
    return "yes" if value else "no"
