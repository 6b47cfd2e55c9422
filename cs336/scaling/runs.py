"""`Run`, one row of the grid: what was trained and what came of it; rows are appended to a file and never lost."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cs336.files import UserError, name_full_disk, read_jsonl

MEASURED_RUNS = Path(__file__).parent / "measured" / "runs.jsonl"  # of our own grid; not there before it was trained
MEASURED_CHECK = MEASURED_RUNS.with_name("check.jsonl")  # of the grid `check`, after the prediction
MEASURED_PACKING = MEASURED_RUNS.with_name("packing.jsonl.gz")  # some of the same again, packed and not, to compare
MEASURED_PREDICTION = MEASURED_RUNS.with_name("prediction.json")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One trained model of the grid.

    Attributes:
        parameters: non-embedding, `12 * num_layers * d_model**2`.
        compute_budget: nominal FLOPs asked for; steps follow from it.
        train_flops: the same number, under the name that the API gives it.
        final_loss: training loss in nats per token with dropout on: the mean over the last `tail_steps` steps; of a
            budget below one step, the loss at initialisation. NaN where `outcome` says why there is none.
        valid_loss: nats per token of held-out text at the end, without dropout; NaN likewise.
        tail_steps: steps in the mean that `final_loss` is; 0 at initialisation.
        steps, tokens: trained on; tokens are steps * batch_size * context_length.
        epochs: tokens over the distinct ones in the training text: above 1, text was repeated.
        real_flops: of all matrix products, forward and backward, with head and attention.
        wall_seconds: of the training steps; packed runs share the device meanwhile.
        utilisation: real_flops over what the device could have done in wall_seconds; None where its peak is not known.
        packed: runs that shared the device.
        loss_curve: (step, training loss) pairs, thinned.
        outcome: "finished", or what happened instead: "diverged: ..." or "out of memory: ...".
        config_hash: of everything that the losses depend on but code and hardware; see `recipe.config_hash`.
        code: revision of what trained it.
        data: checksum of the training tokens.
        hardware: device and software.
        date: when it ended, UTC, ISO 8601.
    """

    parameters: int
    compute_budget: float
    train_flops: float
    final_loss: float
    valid_loss: float
    d_model: int
    num_layers: int
    num_heads: int
    batch_size: int
    learning_rate: float
    seed: int
    steps: int
    tokens: int
    epochs: float
    tail_steps: int
    real_flops: float
    wall_seconds: float
    utilisation: float | None
    packed: int
    loss_curve: tuple[tuple[int, float], ...]
    outcome: str
    config_hash: str
    code: str
    data: str
    hardware: str
    date: str
    vocab_size: int = 32_000
    context_length: int = 512

    @property
    def finished(self) -> bool:
        """Whether there are losses."""
        return self.outcome == FINISHED


FINISHED = "finished"


def require_not_packed(path: Path) -> None:
    """Raises a UserError where rows cannot be added: a line after gzip's end would be cut off, and more with it."""
    if path.suffix == ".gz":
        raise UserError(f"{path}: packed rows are read and not added to; `gunzip {path}` first, or name another file")


def append_run(path: Path, run: Run) -> None:
    """Add a row so that it is on disk, whole, when this returns; several processes may do so at once.

    What a writer that was killed left of a row is cut off first.

    Raises:
        UserError: the disk is full, or the file is packed.
    """
    require_not_packed(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    row = json.dumps(_plain(run), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    line = f"{row}\n".encode()
    with name_full_disk(path), path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            _cut_torn_line(file)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)


def read_runs(path: Path) -> list[Run]:
    """All rows in the order they were written; the last line counts only once it is whole.

    Raises:
        UserError: the file is missing, or a row lacks a field, has one too many or one of another kind; the line is
            named.
    """
    if not path.exists():
        raise UserError(f"{path}: not found; `python -m cs336.scaling.runner` writes it")
    runs = []
    for number, row in enumerate(_whole_rows(path), 1):
        if wrong := _wrong_with(row):
            raise UserError(f"{path}:{number}: not a run ({wrong}); take the line out, or train that cell again")
        values: dict[str, Any] = {
            name: math.nan if name in _LOSSES and value is None else value for name, value in row.items()
        }
        values["loss_curve"] = tuple((int(step), float(loss)) for step, loss in row["loss_curve"])
        runs.append(Run(**values))
    return runs


def measured_run(config_hash: str) -> Run | None:
    """The row of a configuration on its text among those that come with this package; None if there is none."""
    return next((run for run in measured_runs() if run.config_hash == config_hash), None)


def measured_runs() -> Iterator[Run]:
    """The rows that come with this package: of the grid, and of its prediction's check; none before they are there."""
    for path in (MEASURED_RUNS, MEASURED_CHECK):
        if path.exists():
            yield from read_runs(path)


def sessions_file(rows: Path) -> Path:
    """What each call of the runner that wrote to a file of rows came to, utilisation among it, as JSON Lines."""
    return rows.with_name(rows.name.removesuffix(".gz")).with_suffix(".sessions.jsonl")


def finished_runs(runs: Iterable[Run]) -> list[Run]:
    """Those that have losses."""
    return [run for run in runs if run.finished]


def thinned_curve(losses: Sequence[float], *, points: int = 100) -> tuple[tuple[int, float], ...]:
    """(step, loss) at no more than `points` steps, from 1, spread evenly over the logarithm of the step."""
    last = len(losses)
    if not last:
        return ()
    steps = {round(last ** (place / max(1, points - 1))) for place in range(points)} | {last}
    kept = [step for step in sorted(steps) if math.isfinite(losses[step - 1])]
    return tuple((step, round(float(losses[step - 1]), 5)) for step in kept)


_LOSSES = ("final_loss", "valid_loss")


_KINDS: dict[str, tuple[type, ...]] = {  # of JSON, by a field's annotation
    "int": (int,),
    "float": (int, float),
    "float | None": (int, float, type(None)),
    "str": (str,),
}


def _wrong_with(row: Any) -> str:
    """What keeps a row from being a run: names of its fields; "" where nothing does."""
    if not isinstance(row, dict):
        return "no object"
    fields = {field.name: field for field in dataclasses.fields(Run)}
    needed = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
    if strange := (needed - row.keys()) | (row.keys() - fields.keys()):
        return ", ".join(sorted(strange))
    lost = row["outcome"] != FINISHED
    damaged = [
        name
        for name, value in row.items()
        if not (
            _is_curve(value)
            if name == "loss_curve"
            else (lost and name in _LOSSES and value is None) or _is_a(value, _KINDS[str(fields[name].type)])
        )
    ]
    return ", ".join(f"{name} {row[name]!r:.40}" for name in damaged)


def _is_a(value: Any, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


def _is_curve(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(each, list) and len(each) == 2 and all(_is_a(number, (int, float)) for number in each)
        for each in value
    )


def _plain(run: Run) -> dict[str, Any]:
    """As JSON has it, which knows no NaN."""
    values = dataclasses.asdict(run)
    return values | {name: values[name] if math.isfinite(values[name]) else None for name in _LOSSES}


def _cut_torn_line(file: Any) -> None:
    size = file.seek(0, os.SEEK_END)
    if not size:
        return
    file.seek(size - 1)
    if file.read(1) == b"\n":
        return
    file.seek(0)
    file.truncate(file.read().rfind(b"\n") + 1)
    file.seek(0, os.SEEK_END)


def _whole_rows(path: Path) -> list[Any]:
    if path.suffix == ".gz":  # packed once it was whole
        return list(read_jsonl(path))
    content = path.read_bytes()
    if content.endswith(b"\n") or not content:
        return list(read_jsonl(path))
    rows = []
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{number}: not valid JSON ({error.msg})") from None
    return rows
