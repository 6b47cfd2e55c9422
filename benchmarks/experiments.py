"""Rows of finished training runs: `python -m benchmarks.experiments ARTIFACTS [--runs FOLDER]`.

ARTIFACTS is a preset's artifact folder, such as artifacts/prose, here or copied from another machine. Each model and
each run of an experiment becomes a row of benchmarks/results/experiments.jsonl.gz: settings, loss, its curve, hardware,
commit; rows of the same preset that stand there are replaced. The table of all rows is printed as Markdown.

--runs copies what `cs336 adopt` needs of each run, without weights and step-by-step metrics, below a folder such as
benchmarks/results/runs.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cs336.files import UserError, read_json, read_jsonl, replacing, write_jsonl
from cs336.store import MANIFEST
from cs336.train.metrics import METRICS_FILE, read_rows

RESULTS = Path(__file__).parent / "results" / "experiments.jsonl.gz"
LEFT_BEHIND = (METRICS_FILE, "*.safetensors", "checkpoints", "tokenizer.json")
TAKEN = ("run.json", "study.json", "scores.json", "samples.jsonl", "log.jsonl", "limit.json")  # folders with one
CELL_PICTURE = "curve.png"  # of one run of many: the study's picture has them all
SHOWN = ("case", "learning_rate", "batch_size", "num_tokens", "seconds", "tokens_per_second", "valid_loss", "diverged")


def main(arguments: list[str] | None = None) -> int:
    """Write the rows, copy the runs, print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.experiments",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("artifacts", type=Path, help="a preset's artifact folder")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of rows (default %(default)s)")
    parser.add_argument("--runs", type=Path, metavar="FOLDER", help="also copy the runs below this folder")
    options = parser.parse_args(arguments)
    try:
        rows = list(rows_of(options.artifacts))
        if not rows:
            raise UserError(f"{options.artifacts}: holds no training run; give a preset's artifact folder")
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    others = list(read_jsonl(options.results)) if options.results.exists() else []
    _write(options.results, [*(row for row in others if row["preset"] != rows[0]["preset"]), *rows])
    if options.runs:
        copy_runs(options.artifacts, options.runs / rows[0]["preset"])
    print(table(rows))
    return 0


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    """JSON Lines, whole or not at all; gzipped, equal rows give equal bytes."""
    if path.suffix != ".gz":
        write_jsonl(path, rows)
        return
    with replacing(path) as file, gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
        for row in rows:
            packed.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


def rows_of(artifacts: Path) -> Iterator[dict[str, Any]]:
    """A row for each folder below that holds a manifest and the metrics of a training."""
    for path in sorted(artifacts.rglob(METRICS_FILE)):
        folder = path.parent
        if not (folder / MANIFEST).exists():
            continue
        manifest, run, metrics = read_json(folder / MANIFEST), read_json(folder / "run.json"), list(read_rows(path))
        outcome = read_json(folder / "outcome.json") if (folder / "outcome.json").exists() else {}
        preset, _, asset = manifest["asset"].partition("/")
        last = metrics[-1]
        yield {
            "subject": "experiments",
            "preset": preset,
            "case": f"{asset}/{manifest['part']}" if manifest["part"] else asset,
            "contender": "ours",
            "figure": outcome.get("valid_loss", last.get("valid_loss")),
            "unit": "nats per token",
            "learning_rate": run["train"]["learning_rate"],
            "batch_size": run["train"]["batch_size"],
            "num_tokens": last["num_tokens"],
            "seconds": last["seconds"],
            "tokens_per_second": round(last["num_tokens"] / last["seconds"]),  # compilation and validations included
            "num_steps": last["step"],
            "mfu": last.get("mfu"),
            "valid_loss": outcome.get("valid_loss", last.get("valid_loss")),
            "diverged": outcome.get("diverged", ""),
            "curve": [[row["num_tokens"], row["seconds"], row["valid_loss"]] for row in metrics if "valid_loss" in row],
            "run": run,
            "fingerprint": manifest["fingerprint"],
            "hardware": manifest["machine"],
            "commit": manifest["commit"],
            "versions": manifest["versions"],
            "date": manifest["finished"],
        }


def copy_runs(artifacts: Path, target: Path) -> None:
    """What `cs336 adopt` takes of every training run, study and score."""
    for path in sorted(artifacts.rglob(MANIFEST)):
        folder = path.parent
        if not any((folder / name).exists() for name in TAKEN):
            continue
        ignored = (*LEFT_BEHIND, CELL_PICTURE) if read_json(path)["part"] else LEFT_BEHIND
        place = target / folder.relative_to(artifacts)
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(folder, place, ignore=shutil.ignore_patterns(*ignored))


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as a Markdown table."""
    lines = [f"| {' | '.join(SHOWN)} |", "|---" * len(SHOWN) + "|"]
    for row in rows:
        cells = [row[name] for name in SHOWN]
        lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if value < 1 else f"{value:.4f}".rstrip("0").rstrip(".")
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    sys.exit(main())
