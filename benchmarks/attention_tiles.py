"""Find the fastest tiles of our attention kernels on this GPU, and write them to cs336/kernels/attention_tiles.json.

Every kernel by itself, bf16, causal, 16 heads at --length, for heads of 64 and 128 features; the kernels for Hopper and
those for any GPU. A choice that does not fit the GPU's memory or registers is passed over. All choices are compiled
first, on all cores. Prints a line a choice, the fastest first.

    python -m benchmarks.attention_tiles
    python -m benchmarks.attention_tiles --kernels "hopper forward" --length 8192
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cs336.files import write_json
from cs336.hardware import pick_device

HEADS = 16
CHOICES: dict[str, list[tuple[int, ...]]] = {
    "hopper forward": list(itertools.product((64, 128), (2, 3, 4))),
    "hopper dq": list(itertools.product((64, 128), (2, 3, 4))),
    "hopper dk_dv": list(itertools.product((32, 64, 128), (2, 3, 4))),
    "forward": [(*t, *w) for t in ((64, 64), (128, 64), (128, 128)) for w in ((4, 2), (4, 3), (8, 2), (8, 3))],
    "dq": [(*t, *w) for t in ((64, 64), (128, 64), (128, 128)) for w in ((4, 2), (4, 3), (8, 2), (8, 3))],
    "dk_dv": [(*t, *w) for t in ((64, 64), (64, 128), (32, 128)) for w in ((4, 2), (4, 3), (8, 2), (8, 3))],
}
WIDTHS = (64, 128)


def main(arguments: list[str] | None = None) -> int:
    """Try all choices, and keep the best of each kernel."""
    options = _options(arguments)
    if options.jobs:
        for job in json.loads(options.jobs):
            print(json.dumps(_measured(job)), flush=True)
        return 0
    if pick_device("auto").type != "cuda":
        print("tiles are timed on a GPU, and this machine has none", file=sys.stderr)
        return 1
    jobs: list[dict[str, Any]] = [
        {"kernel": kernel, "width": width, "tiles": tiles, "length": options.length}
        for kernel in options.kernels
        for width in WIDTHS
        for tiles in CHOICES[kernel]
    ]
    parts = [jobs[start :: options.workers] for start in range(options.workers)]
    with ThreadPoolExecutor(options.workers) as pool:
        compiled = list(pool.map(lambda part: _answers(part, options.seconds), parts))
    ready = [row | {"time": True} for part in compiled for row in part if "failure" not in row]
    rows = _answers(ready, options.seconds)
    failures = [row for part in compiled for row in part if "failure" in row]
    failures += [row for row in rows if "failure" in row]
    best: dict[str, Any] = {}
    for row in sorted((row for row in rows if "failure" not in row), key=lambda row: row["milliseconds"]):
        print(f"{_name(row)} {row['milliseconds']:8.3f} ms")
        key = f"{row['kernel']} {row['width']}" + ("" if "hopper" in row["kernel"] else " bfloat16")
        best.setdefault(key, {name: row[name] for name in ("tiles", "milliseconds", "length", "torch", "triton")})
    for row in failures:
        print(f"{_name(row)}   {row['failure']}")
    if best:
        _keep(best, options.out)
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    from cs336.kernels.tuned import TILES_FILE

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", nargs="+", choices=CHOICES, default=list(CHOICES), help="(default: all)")
    parser.add_argument("--length", type=int, default=16_384, help="of the sequences (default %(default)s)")
    parser.add_argument("--workers", type=int, default=8, help="compilers at once (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=15.0, help="for one choice (default %(default)s)")
    parser.add_argument("--out", type=Path, default=TILES_FILE, help="where the best go (default %(default)s)")
    parser.add_argument("--jobs", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def _answers(jobs: list[dict[str, Any]], seconds: float) -> list[dict[str, Any]]:
    """What a process says of each job; where it dies, another goes on with the next one."""
    answers: list[dict[str, Any]] = []
    while len(answers) < len(jobs):
        left = jobs[len(answers) :]
        command = [sys.executable, "-m", "benchmarks.attention_tiles", "--jobs", json.dumps(left)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=60 + seconds * len(left), check=False
            )
            said, error = done.stdout, (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        except subprocess.TimeoutExpired as expired:
            said, error = (expired.stdout or b"").decode(), "no answer in time"
        rows = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
        answers += rows
        if len(rows) < len(left):
            answers.append({**left[len(rows)], "failure": error[:200]})
    return answers


def _measured(job: dict[str, Any]) -> dict[str, Any]:
    """Compile a choice, and time it if the job says so."""
    import torch
    import triton

    from cs336.kernels import flash_attention, hopper_tiles

    kernel, width, tiles = job["kernel"], job["width"], job["tiles"]
    name = kernel.removeprefix("hopper ")
    for module in (flash_attention, hopper_tiles):
        module.tuned_tiles = lambda *_: None
    flash_attention._takes_hopper_kernels = lambda _: kernel.startswith("hopper")
    if kernel.startswith("hopper"):
        hopper_tiles.STREAMED[name][width] = tuple(tiles)
    else:
        flash_attention._TILES[name][width] = flash_attention.Tiles(*tiles)
    length = job["length"] if job.get("time") else 256
    q, k, v, grad = (torch.randn(1, HEADS, length, width, device="cuda", dtype=torch.bfloat16) for _ in range(4))
    try:
        o, logsumexp = flash_attention._forward(q, k, v, True)

        def run() -> None:
            if name == "forward":
                flash_attention._forward(q, k, v, True)
            else:
                flash_attention._backward(q, k, v, o, grad, logsumexp, True)

        run()
        torch.cuda.synchronize()
    except triton.runtime.errors.OutOfResources as error:
        return job | {"failure": str(error)[:200]}
    if not job.get("time"):
        return job
    milliseconds = _kernel_milliseconds(run, "_forward_kernel" if name == "forward" else f"_backward_{name}_kernel")
    return job | {"milliseconds": milliseconds, "torch": torch.__version__, "triton": triton.__version__}


def _kernel_milliseconds(run: Any, kernel: str, repeats: int = 20) -> float:
    """Median time of one kernel of what `run` launches, by the profiler."""
    import torch

    for _ in range(5):
        run()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(repeats):
            run()
        torch.cuda.synchronize()
    times = sorted(event.device_time for event in profiler.events() if kernel in event.name)
    return times[len(times) // 2] / 1e3 if times else math.nan


def _keep(best: dict[str, Any], path: Path) -> None:
    import torch

    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    of_this = known.setdefault(torch.cuda.get_device_name(), {})
    of_this |= best
    write_json(path, known)
    print(f"{path}: {len(best)} kernels for {torch.cuda.get_device_name()}")


def _name(row: dict[str, Any]) -> str:
    return f"{row['kernel']:<15} d {row['width']:<4} {'x'.join(map(str, row['tiles'])):<14}"


if __name__ == "__main__":
    sys.exit(main())
