"""Trains the cells of a grid on one device, or on all GPUs of a machine, and appends their rows to a file.

    python -m cs336.scaling.runner --grid h100 --tokens FOLDER --rows runs.jsonl --packed 3 --minutes 20

FOLDER holds train.bin and valid.bin, bare uint16 ids. What is in the rows file already is not trained again, so the
same command goes on where the last one stopped or was killed; runs that did not fit into memory are tried again.
While runs are left over, by the deadline or for lack of memory, the exit code is 3.

Several processes share a device (`--packed`). They take turns at it: while one loads, draws weights, validates or
writes, another computes. Each takes all cells of one shape at a time, the longest shapes first. With `--device all`
every GPU has as many.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import hashlib
import multiprocessing
import os
import queue
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from cs336.files import UserError, append_jsonl
from cs336.hardware import peak_flops_per_second, pick_device
from cs336.processes import die_with_parent
from cs336.scaling.cell import Cell
from cs336.scaling.grid import Grid, find_grid, problems
from cs336.scaling.plan import Rate, plan_lines, shapes
from cs336.scaling.recipe import config_hash, real_flops, tail_steps
from cs336.scaling.runs import FINISHED, Run, append_run, read_runs, require_not_packed, sessions_file, thinned_curve
from cs336.scaling.tables import run_line, session_line, table_lines
from cs336.scaling.trainer import Outcome, OutOfTime, Trainer
from cs336.scaling.windows import Text, WindowOrder

RUNS_LEFT = 3  # exit code; 2 is argparse's
OUT_OF_MEMORY = "out of memory"
DIVERGED = "diverged"
_LIBRARY = Path(__file__).parents[1]
# What a loss depends on, as files: the machine that trains may have no repository.
_CODE: tuple[str, ...] = (
    "scaling/recipe.py",
    "scaling/trainer.py",
    "scaling/windows.py",
    "model/*.py",
    "kernels/cross_entropy.py",
)
_CODE += ("train/loss.py", "train/optimizer.py", "train/schedule.py", "tokens/batches.py")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How cells are trained on this machine; nothing here changes a loss but by rounding.

    Attributes:
        rows: the file that gets a row for each run.
        device: "auto", "cpu", "cuda", "cuda:N", or "all" GPUs of this machine.
        packed: processes that share a device.
        deadline: as `time.time()` has it; no run begins that is not expected to end before.
        threads: of each process, on a CPU.
        save_seconds: between two states of a run that takes long.
        record: replay steps as CUDA graphs.
    """

    rows: Path
    device: str = "auto"
    packed: int = 1
    deadline: float = float("inf")
    threads: int = 1
    save_seconds: float = 600.0
    record: bool = True

    @property
    def checkpoints(self) -> Path:
        return self.rows.with_name(f".{self.rows.name}.checkpoints")

    @property
    def devices(self) -> list[str]:
        """Names of the devices to train on."""
        if self.device != "all":
            return [self.device]
        return [f"cuda:{number}" for number in range(torch.cuda.device_count())] or ["cuda"]  # which says what is amiss

    @property
    def sessions(self) -> Path:
        """What each call of `train_cells` came to, utilisation among it."""
        return sessions_file(self.rows)


Say = Callable[[str], None]


def train_cells(
    cells: Iterable[Cell], folders: Sequence[Path], settings: Settings, *, max_epochs: float, say: Say
) -> list[Cell]:
    """Train what is not trained yet; returns the cells that are left for another time.

    Args:
        folders: with train.bin and valid.bin, joined in this order.
        max_epochs: that a cell may read the text.
        say: takes a line of progress.

    Raises:
        UserError: text that is missing, too short, or of another vocabulary; packed rows; a process that died.
    """
    text = Text.open(folders)
    waiting = unfinished(cells, settings.rows, text.checksum)
    text.check(waiting, max_epochs=max_epochs)
    at_once = settings.packed * len(settings.devices)
    say(f"{len(waiting)} runs to train on {len(text.train):,} tokens, {at_once} at a time")
    if not waiting:
        return []
    require_not_packed(settings.rows)
    before, start = len(_rows(settings.rows)), time.perf_counter()
    tasks = sorted(shapes(waiting).values(), key=lambda each: -sum(map(Rate().seconds, each)))
    if at_once == 1:
        for task in tasks:
            train_shape(task, text, replace(settings, device=settings.devices[0]), say)
    else:
        _share(tasks, folders, settings, say)
    elapsed = time.perf_counter() - start
    new = _rows(settings.rows)[before:]
    append_jsonl(settings.sessions, session := _session(new, elapsed, settings))
    say("\n".join(table_lines(_rows(settings.rows))))
    say(session_line(session))
    return unfinished(cells, settings.rows, text.checksum)


def unfinished(cells: Iterable[Cell], rows: Path, data: str) -> list[Cell]:
    """Cells without a row of their configuration on this text; one that did not fit into memory counts as none."""
    done = {run.config_hash for run in _rows(rows) if not run.outcome.startswith(OUT_OF_MEMORY)}
    return [cell for cell in cells if config_hash(cell, data) not in done]


def train_shape(cells: Sequence[Cell], text: Text, settings: Settings, say: Say) -> None:
    """Train cells of one shape, batch size and precision, one after the other; each appends its row when it ends.

    A loss that stops being a number and a lack of memory are rows, too. Cells that would not end before the deadline
    are left out; one that does not is stopped.
    """
    with _threads(settings):
        device = pick_device(settings.device)
        # How much slower than the plan's rate: by the last run, before the first one as if the others had their shares.
        rate, slower = Rate(), float(settings.packed) if device.type == "cuda" else 0.0
        trainer: Trainer | None = None
        for cell in cells:
            if time.time() + slower * rate.seconds(cell) > settings.deadline:
                continue
            key = config_hash(cell, text.checksum)
            start = time.perf_counter()
            try:
                trainer = trainer or Trainer(cell, text, device, record=settings.record)
                outcome = trainer.run(
                    cell,
                    checkpoint=settings.checkpoints / f"{key}.pt",
                    save_seconds=settings.save_seconds,
                    deadline=settings.deadline,
                )
                failure = f"{DIVERGED}: {outcome.diverged}" if outcome.diverged else FINISHED
            except OutOfTime:
                say(f"{cell.name}: stopped at the deadline, to go on next time")
                continue
            except torch.OutOfMemoryError as error:
                outcome, failure = Outcome(), f"{OUT_OF_MEMORY}: {str(error).splitlines()[0]}"
                trainer = None
            outcome.seconds = outcome.seconds or time.perf_counter() - start
            run = _row(cell, outcome, failure, key, text, device, settings)
            append_run(settings.rows, run)
            if run.finished and cell.steps:
                slower = outcome.seconds / rate.seconds(cell)
            say(run_line(cell, run))
        del trainer
        gc.collect()  # an unrecorded trainer refers to itself
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _row(
    cell: Cell, outcome: Outcome, failure: str, key: str, text: Text, device: torch.device, settings: Settings
) -> Run:
    flops = float(real_flops(cell))
    peak = peak_flops_per_second(device, cell.precision)
    steps = len(outcome.losses) if cell.steps else 0
    order = WindowOrder(len(text.train), cell.context_length, cell.seed)
    return Run(
        parameters=cell.parameters,
        compute_budget=cell.compute_budget,
        train_flops=cell.compute_budget,
        final_loss=outcome.final_loss(cell) if failure == FINISHED else float("nan"),
        valid_loss=outcome.valid_loss,
        d_model=cell.d_model,
        num_layers=cell.num_layers,
        num_heads=cell.num_heads,
        batch_size=cell.batch_size,
        learning_rate=cell.learning_rate,
        seed=cell.seed,
        steps=steps,
        tokens=steps * cell.tokens_per_step,
        epochs=round(order.epochs(steps * cell.batch_size), 6),
        tail_steps=tail_steps(cell),
        real_flops=flops,
        wall_seconds=round(outcome.seconds, 4),
        utilisation=round(flops / outcome.seconds / peak, 4) if peak and failure == FINISHED else None,
        packed=settings.packed,
        loss_curve=thinned_curve(outcome.losses),
        outcome=failure,
        config_hash=key,
        code=code_revision(),
        data=text.checksum,
        hardware=hardware(device),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        vocab_size=cell.vocab_size,
        context_length=cell.context_length,
    )


def code_revision() -> str:
    """Hash of the files whose code a loss depends on."""
    total = hashlib.sha256()
    for pattern in _CODE:
        for path in sorted(_LIBRARY.glob(pattern)):
            total.update(path.read_bytes())
    return total.hexdigest()[:16]


def hardware(device: torch.device) -> str:
    """Device and software in words."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, PyTorch {torch.__version__}, CUDA {torch.version.cuda}"
    return f"{device.type}, PyTorch {torch.__version__}"


# ---- several processes


def _share(tasks: Sequence[Sequence[Cell]], folders: Sequence[Path], settings: Settings, say: Say) -> None:
    """Let processes take shapes from one list until none is left.

    Raises:
        UserError: a process died; what the others trained is kept.
    """
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    waiting, lines = context.Queue(), context.Queue()
    places = [replace(settings, device=device) for device in settings.devices * settings.packed]
    workers = [
        context.Process(target=_work, args=(waiting, lines, list(folders), place), daemon=True)
        for place, _ in zip(places, tasks, strict=False)
    ]
    for worker in workers:
        worker.start()
    for task in [*tasks, *[None] * len(workers)]:
        waiting.put(task)
    try:
        while any(worker.is_alive() for worker in workers) or not lines.empty():
            with contextlib.suppress(queue.Empty):
                say(lines.get(timeout=0.2))
    finally:
        for worker in workers:
            if worker.is_alive():
                worker.terminate()
            worker.join()
        waiting.cancel_join_thread()  # of shapes that nobody will take
    if any(worker.exitcode for worker in workers):
        codes = ", ".join(str(worker.exitcode) for worker in workers)
        raise UserError(f"{settings.rows}: a process died (exit codes {codes}); what is trained is kept, run again")


def _work(waiting: Any, lines: Any, folders: list[Path], settings: Settings) -> None:
    die_with_parent()
    text = Text.open(folders)
    while (task := waiting.get()) is not None:
        train_shape(task, text, settings, lines.put)


@contextlib.contextmanager
def _threads(settings: Settings) -> Iterator[None]:
    """A CPU's sums depend on the number of threads, so it is the same however many processes there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _session(runs: Sequence[Run], elapsed: float, settings: Settings) -> dict[str, Any]:
    """Runs, FLOPs and utilisation of one call, of all its devices, start-up and validation included."""
    devices = settings.devices
    device = pick_device(devices[0])
    done = [run for run in runs if run.finished]
    flops = sum(run.real_flops for run in done)
    peak = (peak_flops_per_second(device, "bfloat16") or 0) * len(devices)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware(device),
        "packed": settings.packed,
        "num_devices": len(devices),
        "recorded": settings.record and device.type == "cuda",
        "num_runs": len(done),
        "elapsed_seconds": round(elapsed, 2),
        "training_seconds": round(sum(run.wall_seconds for run in done), 2),  # of each process; packed ones overlap
        "tokens": sum(run.tokens for run in done),
        "real_flops": flops,
        "utilisation": round(flops / elapsed / peak, 4) if peak else None,
    }


def _rows(path: Path) -> list[Run]:
    return read_runs(path) if path.exists() else []


# ---- command line


def chosen_cells(grid: Grid, *, only: str = "", up_to: float = float("inf")) -> list[Cell]:
    """Cells of a grid whose name a pattern is found in, up to a budget.

    Raises:
        UserError: there are none, or the pattern is none.
    """
    try:
        cells = [cell for name, cell in grid.cells().items() if re.search(only, name)]
    except re.error as error:
        raise UserError(f"--only {only}: no regular expression ({error})") from None
    cells = [cell for cell in cells if cell.compute_budget <= up_to * (1 + 1e-9)]
    if not cells:
        raise UserError(f"grid {grid.name}: no such cells; `cs336 scaling plan {grid.name} --cells` lists all")
    return cells


def add_options(command: argparse.ArgumentParser) -> None:
    """Options of the command that trains a grid."""
    command.add_argument("--grid", required=True, help="h100, check, full, final, tiny, or a .toml file")
    command.add_argument("--tokens", required=True, type=Path, nargs="+", metavar="FOLDER", help="train.bin, valid.bin")
    command.add_argument("--rows", required=True, type=Path, help="file that gets the rows; need not be there yet")
    command.add_argument("--packed", type=int, default=3, help="processes that share a device (default: %(default)s)")
    command.add_argument("--minutes", type=float, default=float("inf"), help="no run begins that would end later")
    command.add_argument("--up-to", type=float, default=float("inf"), metavar="FLOPS", help="no larger budgets")
    command.add_argument("--only", default="", metavar="PATTERN", help="cells with this in their name")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N, or all GPUs (default: %(default)s)")
    command.add_argument("--threads", type=int, default=1, help="of each process, on a CPU (default: %(default)s)")
    command.add_argument("--eager", action="store_true", help="no CUDA graphs, to compare")


def run_command(options: argparse.Namespace) -> int:
    """Train what the options choose; 1 where a grid has problems, RUNS_LEFT where the same command has more to do.

    Raises:
        UserError: as of `find_grid`, `chosen_cells` and `train_cells`.
    """
    start = time.time()
    grid = find_grid(options.grid)
    if wrong := problems(grid):
        for line in wrong:
            print(line, file=sys.stderr)
        return 1
    cells = chosen_cells(grid, only=options.only, up_to=options.up_to)
    if options.packed < 1 or options.threads < 1:
        raise UserError(f"--packed and --threads are 1 or more, got {options.packed} and {options.threads}")
    settings = Settings(
        rows=options.rows,
        device=options.device,
        packed=options.packed,
        deadline=start + 60 * options.minutes,
        threads=options.threads,
        record=not options.eager,
    )

    def say(line: str) -> None:
        print(f"[{time.time() - start:6.0f} s] {line}", flush=True)

    say("\n".join(plan_lines(grid, packed=options.packed)))
    left = train_cells(cells, options.tokens, settings, max_epochs=grid.max_epochs, say=say)
    if left:
        say(f"{len(left)} of {len(cells)} runs left; the same command goes on with them (exit code {RUNS_LEFT})")
    return RUNS_LEFT if left else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; a mistake ends with one line and exit code 1, runs left for another time with RUNS_LEFT."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    parser = argparse.ArgumentParser(
        prog="python -m cs336.scaling.runner",
        description="Train a scaling grid.",
        epilog=f"Exit codes: 0 all are trained; 1 a mistake, in one line; {RUNS_LEFT} runs are left, by the deadline or"
        " for lack of memory, and the same command goes on with them.",
    )
    add_options(parser)
    try:
        return run_command(parser.parse_args(arguments))
    except UserError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
