"""Kill the whole graph at random moments with SIGKILL; the next run must end as an undisturbed one does.

    python -m tests.kill_graph                         # preset tiny, 10 kills: about 20 minutes
    python -m tests.kill_graph --preset micro --kills 3

After each kill: every artifact is whole (its files equal its manifest), nothing else lies beside
them, and no child process lives on. At the end all files are compared with those of a run that was
left alone; only manifests and the wall-clock columns of the metrics may differ.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cs336.store import MANIFEST, verify
from cs336.train.metrics import WALL_CLOCK

ROOT = Path(__file__).parents[1]


def main() -> int:
    """Run the experiment and print a line per kill."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        problems = kill_and_compare(Path(folder), preset=options.preset, kills=options.kills, seed=options.seed)
    print("\n".join(problems) or f"{options.kills} kills: no half-made artifact, and the same bytes as undisturbed")
    return bool(problems)


def kill_and_compare(folder: Path, *, preset: str, kills: int, seed: int) -> list[str]:
    """Returns one line per problem; none is what should be."""
    start = time.monotonic()
    _wait(_start(folder / "undisturbed", preset))
    duration = time.monotonic() - start
    dice = random.Random(seed)
    moments = [duration * (kill + dice.random()) / kills for kill in range(kills)]  # one in each part of the run
    print(f"undisturbed: {duration:.0f} s; kills at {', '.join(f'{moment:.0f}' for moment in moments)} s", flush=True)
    problems: list[str] = []
    killed = 0
    # Each run goes on where the last one was killed, so the moments spread over the whole graph.
    for number, (before, moment) in enumerate(zip([0.0, *moments], moments, strict=False), 1):
        process = _start(folder / "killed", preset)
        startup = 0.0 if number == 1 else 6.0  # imports, and skipping what is there
        time.sleep(moment - before + startup)
        if process.poll() is not None:
            print(f"kill {number} after {moment:.0f} s: the run had ended already", flush=True)
            continue
        killed += 1
        process.send_signal(signal.SIGKILL)
        process.wait()
        time.sleep(1.0)
        found = _half_made(folder / "killed" / "artifacts" / preset) + _survivors(folder / "killed")
        done = len(_manifests(folder / "killed" / "artifacts" / preset))
        print(f"kill {number} after {moment:.0f} s: {done} artifacts whole, {len(found)} problems", flush=True)
        problems += [f"kill {number}: {problem}" for problem in found]
    _wait(_start(folder / "killed", preset))
    if killed < (kills + 1) // 2:
        problems.append(f"only {killed} of {kills} kills met a run")
    left = [path.name for path in (folder / "killed" / "artifacts" / preset / ".work").iterdir()]
    problems += [f".work/{name}: left over" for name in left if not name.endswith(".lock")]
    return problems + compare(folder / "undisturbed" / "artifacts" / preset, folder / "killed" / "artifacts" / preset)


def compare(expected: Path, actual: Path) -> list[str]:
    """Files that differ between two artifact folders, manifests and wall-clock columns aside."""
    names = [
        {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file() and ".work" not in path.parts}
        for root in (expected, actual)
    ]
    problems = [f"{name}: only in one of the two" for name in sorted(names[0] ^ names[1])]
    for name in sorted(names[0] & names[1]):
        if Path(name).name != MANIFEST and _content(expected / name) != _content(actual / name):
            problems.append(f"{name}: differs")
    return problems


def _content(path: Path) -> object:
    if path.name == "metrics.jsonl":
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return [{key: value for key, value in row.items() if key not in WALL_CLOCK} for row in rows]
    return path.read_bytes()


def _start(folder: Path, preset: str) -> subprocess.Popen[str]:
    home = folder / "dagster_home"
    home.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "dagster_home" / "dagster.yaml", home)
    return subprocess.Popen(
        [sys.executable, "-m", "cs336", "run", "--preset", preset],
        cwd=ROOT,
        env={**os.environ, "DAGSTER_HOME": str(home), "CS336_ARTIFACTS": str(folder / "artifacts")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _wait(process: subprocess.Popen[str]) -> None:
    printed, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the graph failed:\n{printed}")


def _manifests(artifacts: Path) -> list[Path]:
    return [path for path in artifacts.rglob(MANIFEST) if ".work" not in path.parts]


def _half_made(artifacts: Path) -> list[str]:
    manifests = _manifests(artifacts)
    problems = [problem for path in manifests for problem in verify(path.parent)]
    whole = {path.parent for path in manifests}
    for path in artifacts.rglob("*"):
        if path.is_file() and ".work" not in path.parts and not whole & set(path.parents):
            problems.append(f"{path}: belongs to no finished artifact")
    return problems


def _survivors(folder: Path) -> list[str]:
    """Processes that still work on the folder; Linux only."""
    mark = f"CS336_ARTIFACTS={folder / 'artifacts'}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if int(process.name) != os.getpid() and mark in (process / "environ").read_bytes().split(b"\0"):
                found.append(f"process {process.name} lives on: {(process / 'cmdline').read_bytes()[:200]!r}")
        except OSError:
            continue
    return found


if __name__ == "__main__":
    sys.exit(main())
