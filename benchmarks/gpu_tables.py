"""The tables that want a GPU by one command: the tasks below, over all GPUs of this machine.

  python -m benchmarks.gpu_tables --list                          what there is, in the order in which it begins
  python -m benchmarks.gpu_tables scaling reasoning               two groups alone
  python -m benchmarks.gpu_tables kernels --minutes 25            stop then; the same line again goes on

A task is a command of this project with one GPU to itself, or several; the host it shares with the others. The first
that fits the GPUs that are free begins next, so those that want the most stand first. All go on where they were
stopped, and what is done is not done again; --again runs the commands once more, which leave what they find made as it
is. Each has a log in the folder; artifacts and rows go where its command puts them. Ctrl-C stops all. Group scaling
wants the text in grid/ (README: Train a scaling grid); the check of its prediction comes after that is committed, and
so is no task.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks.measure import at_least_one
from cs336.files import UserError, read_json, write_json
from cs336.model.sizes import SIZES
from cs336.preset_lookup import find_preset
from cs336.processes import die_with_parent
from cs336.revision import describe_commit
from cs336.scaling.runner import RUNS_LEFT

ROOT = Path(__file__).parents[1]
FOLDER = Path("profiles/gpu_tables")
_STATES = "states.json"
SEEDS = ("", "_seed_1", "_seed_2")
_NCCL = (("NCCL_NVLS_ENABLE", "0"),)  # as all tables here were measured
_SEGMENTS = (("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True"),)
_GRACE_SECONDS = 20.0  # between asking a task to stop and killing it
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Task:
    """A command of this project.

    Attributes:
        group: of tasks that are chosen together.
        name: of its log; unique.
        command: arguments of Python, from the project's root.
        gpus: that it has to itself; None for all of the machine.
        after: tasks that must be done before it.
        environment: variables besides those of this process.
        stopped_code: exit code by which it says that it has not done all, and goes on when begun again; it then counts
            as stopped.
    """

    group: str
    name: str
    command: str
    gpus: int | None = 1
    after: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    stopped_code: int | None = None


def all_tasks() -> list[Task]:
    """The tasks in the order in which they begin: those of all GPUs, of two, of one."""
    tasks = [*_scaling(), *_parallel(), *_kernels(), *_reasoning(), *_generation(), *_tests()]
    return sorted(tasks, key=lambda task: -(task.gpus or math.inf))


def _kernels() -> Iterator[Task]:
    course = "-m cs336 run --preset course --job kernels"
    sizes = [size for size in find_preset("course").profiling.sizes if size in SIZES]
    first, *others = (f"profiles-{size}" for size in reversed(sizes))
    yield Task("kernels", first, f"{course} --cells {sizes[-1]}")  # alone, since it makes what all of them need
    for name, size in zip(others, reversed(sizes[:-1]), strict=True):
        yield Task("kernels", name, f"{course} --cells {size}", after=(first,))
    yield Task("kernels", "profiles", course, after=tuple(f"profiles-{size}" for size in sizes))
    yield Task("kernels", "attention", "-m benchmarks attention --repeats 3")
    yield Task("kernels", "fused-kernels", "-m benchmarks kernels --repeats 3")
    for dtype in ("float32", "bfloat16"):
        for width in (128, 64, 32, 16):
            table = f"-m benchmarks attention --table {width} --dtypes {dtype} --contenders ours plain --repeats 1"
            yield Task("kernels", f"attention-table-{width}-{dtype}", table)


def _parallel() -> Iterator[Task]:
    study = "-m cs336 run --preset course --job parallel"
    yield Task("parallel", "parallel", study, gpus=2, environment=_NCCL)
    step = "-m benchmarks full_step --keep-attention --rep 12000 --warmup 4000"
    for name, options in {"full-step": "", "full-step-fp32-masters": " --fp32-masters"}.items():
        yield Task("parallel", name, step + options, gpus=2, environment=(*_NCCL, *_SEGMENTS))
    torchrun = "-m torch.distributed.run --standalone --nproc-per-node"
    for gpus in (1, 2):
        yield Task(
            "parallel", f"course-step-{gpus}", f"{torchrun} {gpus} -m benchmarks.course_step", gpus, environment=_NCCL
        )


def _scaling() -> Iterator[Task]:
    runner = "-m cs336.scaling.runner --tokens grid"
    grid = f"{runner} --grid h100 --rows cs336/scaling/measured/runs.jsonl --packed 3 --device all"
    yield Task("scaling", "grid", grid, gpus=None, stopped_code=RUNS_LEFT)
    before: tuple[str, ...] = ()
    ways = {"1": "--packed 1", "1-eager": "--packed 1 --eager", "3": "--packed 3", "3-eager": "--packed 3 --eager"}
    for name, options in ways.items():
        command = f"{runner} --grid h100 --only ^1e14.*b128-lr0.001$ --rows {FOLDER}/packing-{name}.jsonl {options}"
        yield Task("scaling", f"packing-{name}", command, after=before, stopped_code=RUNS_LEFT)
        before = (f"packing-{name}",)


def _reasoning() -> Iterator[Task]:
    chain = [f"reasoner{seed}" for seed in SEEDS]
    for preset in chain:
        yield Task("reasoning", preset, f"-m cs336 run --preset {preset} --job reasoning")
    for preset in chain:
        yield Task("reasoning", f"{preset}-instruct", f"-m cs336 run --preset {preset} --job instruct", after=(preset,))
    for preset in chain:
        variants = f"-m cs336 run --preset {preset} --job reasoning_experiments"
        config = find_preset(preset).reasoning
        cells = [*config.grpo_runs[1:], *config.expert_iteration_runs[1:]]
        for cell in cells:
            yield Task("reasoning", f"{preset}-{cell}", f"{variants} --cells {cell}", after=(preset,))
        yield Task("reasoning", f"{preset}-variants", variants, after=tuple(f"{preset}-{cell}" for cell in cells))


def _generation() -> Iterator[Task]:
    step = "-m benchmarks grpo_step --repeats 3"
    yield Task("generation", "grpo-step-reasoner", f"{step} --shape reasoner --micro-batch-size 128")
    yield Task("generation", "rollouts", "-m benchmarks generate --device cuda --cases rollouts --repeats 3")
    yield Task("generation", "grpo-step", f"{step} --generators ours vllm --hand-over")
    yield Task("generation", "grpo-step-fp32", f"{step} --generators ours vllm --hand-over --fp32-weights")


def _tests() -> Iterator[Task]:
    pytest = "-m pytest -q -p no:cacheprovider"
    of_two = "tests/parallel/test_nccl.py tests/profiling/test_nccl_studies.py tests/generate/test_continuous.py"
    of_two += " tests/scaling/test_trainer.py"
    yield Task("tests", "tests-parallel", f"{pytest} {of_two}", gpus=2)
    yield Task("tests", "tests-kernels", f"{pytest} tests/kernels tests/model tests/profiling/test_gpu.py")
    yield Task("tests", "tests-training", f"{pytest} tests/train")
    yield Task("tests", "tests-posttrain", f"{pytest} tests/posttrain tests/generate")


# ---- which runs when


@dataclass
class Running:
    """A task under way on some GPUs."""

    task: Task
    gpus: Sequence[str]
    process: subprocess.Popen[bytes]
    start: float = field(default_factory=time.monotonic)

    def signal(self, number: int) -> None:
        """Send a signal to the command and all that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


def run_tasks(
    tasks: Sequence[Task],
    folder: Path,
    *,
    gpus: Sequence[str],
    deadline: float = float("inf"),
    say: Callable[[str], None] = print,
) -> dict[str, str]:
    """Run what is not done yet; returns each task's state: done, stopped, waiting, left out, or failed (exit code).

    Args:
        folder: gets the logs, and `states.json`, which says what is done.
        gpus: to use, as `CUDA_VISIBLE_DEVICES` names them.
        deadline: by `time.monotonic()`; what runs then is stopped.
    """
    known = _states(folder)
    states = {task.name: "done" if known.get(task.name) == "done" else "waiting" for task in tasks}
    chosen = set(states)
    running: list[Running] = []
    for task in tasks:
        if (task.gpus or 1) > len(gpus) and states[task.name] == "waiting":
            states[task.name] = f"left out, since it takes {task.gpus} GPUs"

    def settle(each: Running, state: str) -> None:
        states[each.task.name] = state
        write_json(folder / _STATES, known | states)
        say(f"{state:<10} {each.task.name} ({time.monotonic() - each.start:.0f} s)")

    def may_begin(task: Task, free: int) -> bool:
        ready = all(states[name] == "done" for name in task.after if name in chosen)
        return states[task.name] == "waiting" and (task.gpus or len(gpus)) <= free and ready

    try:
        while time.monotonic() < deadline:
            for each in [each for each in running if each.process.poll() is not None]:
                running.remove(each)
                each.signal(signal.SIGKILL)  # to what it has left behind on its GPUs
                settle(each, _state_at_end(each.task, each.process.returncode))
            free = [gpu for gpu in gpus if not any(gpu in each.gpus for each in running)]
            following = next((task for task in tasks if may_begin(task, len(free))), None)
            if following is not None:
                running.append(_begin(following, free[: following.gpus], folder))
                states[following.name] = "running"
                say(f"{'begins':<10} {following.name} on {_names(running[-1].gpus)}: {_line(following)}")
            elif not running:
                break
            else:
                time.sleep(_POLL_SECONDS)
    finally:
        _stop(running)
        for each in running:
            settle(each, "stopped")
    return states


def _state_at_end(task: Task, code: int) -> str:
    if code == 0:
        return "done"
    return "stopped" if code == task.stopped_code else f"failed ({code})"


def forget(tasks: Sequence[Task], folder: Path) -> None:
    """Tasks count as not done."""
    states = _states(folder)
    write_json(folder / _STATES, {name: state for name, state in states.items() if name not in {t.name for t in tasks}})


def _states(folder: Path) -> dict[str, str]:
    return read_json(folder / _STATES) if (folder / _STATES).exists() else {}


def _begin(task: Task, gpus: Sequence[str], folder: Path) -> Running:
    # Dagster lets one run at a time use the device of a name; so that names may be the same, each has its own Dagster.
    home = (folder / f"dagster-{_names(gpus)}").resolve()
    home.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "dagster_home" / "dagster.yaml", home)
    environment = {
        **os.environ,
        **dict(task.environment),
        "CUDA_VISIBLE_DEVICES": ",".join(gpus),
        "DAGSTER_HOME": str(home),
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    with (folder / f"{task.name}.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, *shlex.split(task.command)],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=0,
            preexec_fn=die_with_parent,
        )
    return Running(task, gpus, process)


def _stop(running: Sequence[Running]) -> None:
    """Ask all to stop, which they do as if by Ctrl-C, and kill what has not after a while."""
    for each in running:
        each.signal(signal.SIGINT)
    end = time.monotonic() + _GRACE_SECONDS
    for each in running:
        with contextlib.suppress(subprocess.TimeoutExpired):
            each.process.wait(max(0.0, end - time.monotonic()))
        each.signal(signal.SIGKILL)  # also to what it has left behind
        each.process.wait()


def _names(gpus: Sequence[str]) -> str:
    return "gpu-" + "-".join(gpus)


def _wanted(task: Task) -> str:
    return "all GPUs" if task.gpus is None else f"{task.gpus} GPU{'s' * (task.gpus > 1)}"


def _line(task: Task) -> str:
    return f"python {task.command}"


def visible_gpus() -> list[str]:
    """Names of the GPUs that this process may use: by `CUDA_VISIBLE_DEVICES`, or numbers."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    count = torch.cuda.device_count()
    return (named.split(",") if named else [str(number) for number in range(count)])[:count]


# ---- command line


def chosen_tasks(words: Sequence[str]) -> list[Task]:
    """Tasks of the groups, or with the names, that are given, in this order; all if none is.

    Raises:
        UserError: there is no such group or task.
    """
    tasks = all_tasks()
    known = {task.group for task in tasks} | {task.name for task in tasks}
    for word in words:
        if word not in known:
            groups = ", ".join(dict.fromkeys(task.group for task in tasks))
            raise UserError(f"no group or task {word!r}; groups are {groups}, and --list names the tasks")
    return list(dict.fromkeys(task for word in words for task in tasks if word in (task.group, task.name))) or tasks


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 1 if a task has failed, or the line is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_tables",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", nargs="*", metavar="GROUP|TASK", help="default: all")
    parser.add_argument("--list", action="store_true", help="print the tasks with their commands, and run none")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop what runs after so many")
    parser.add_argument("--gpus", type=at_least_one, help="default: all of this machine")
    parser.add_argument("--again", action="store_true", help="also what is done before")
    parser.add_argument("--folder", type=Path, default=ROOT / FOLDER, help="for logs (default: profiles/gpu_tables)")
    options = parser.parse_args(arguments)
    start = time.monotonic()
    try:
        tasks = chosen_tasks(options.what)
        if options.list:
            for task in tasks:
                print(f"{task.group:<11}{_wanted(task):<10}{task.name:<30} {_line(task)}")
            return 0
        gpus = visible_gpus()[: options.gpus]
        if not gpus:
            raise UserError("there is no GPU here; --list prints the commands")
        options.folder.mkdir(parents=True, exist_ok=True)
        if options.again:
            forget(tasks, options.folder)

        def say(line: str) -> None:
            print(f"[{time.monotonic() - start:6.0f} s] {line}", flush=True)

        say(f"{len(tasks)} tasks on {len(gpus)} GPUs, code {describe_commit()}; logs: {options.folder}")
        states = run_tasks(tasks, options.folder, gpus=gpus, deadline=start + 60 * options.minutes, say=say)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    for name, state in states.items():
        if state != "done":
            say(f"{state:<10} {name}")
    return int(any(state.startswith("failed") for state in states.values()))


if __name__ == "__main__":
    sys.exit(main())
