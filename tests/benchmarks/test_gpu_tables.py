"""All tables by one command: tasks get GPUs of their own, wait for each other, and go on where they were stopped."""

import importlib
import itertools
import os
import re
import shlex
import signal
import threading
import time
from pathlib import Path

import pytest

from benchmarks import gpu_tables
from benchmarks.__main__ import main as benchmark
from benchmarks.gpu_tables import Task, all_tasks, chosen_tasks, main, run_tasks
from cs336.cli import main as cs336
from cs336.files import UserError, read_json
from cs336.preset_lookup import find_preset
from cs336.scaling.runner import RUNS_LEFT
from cs336_assets.flow import STAGES
from cs336_assets.selections import SWEEPS

SHOW = "import os, time; print(os.environ['CUDA_VISIBLE_DEVICES']); time.sleep({}); open({!r}, 'a').write('x')"


def task(name, code="", **rest):
    return Task("some", name, f"-c {shlex.quote(code)}", **rest)


def marking(tmp_path, name, seconds=0.0, **rest):
    """A task that says which GPUs it sees, and leaves an x in a file of its name."""
    return task(name, SHOW.format(seconds, str(tmp_path / f"{name}.ran")), **rest)


def run(tasks, folder, **rest):
    lines = []
    states = run_tasks(tasks, folder, say=lines.append, **{"gpus": ["0", "1"]} | rest)
    return states, lines


def test_each_task_has_gpus_of_its_own_and_runs_once(tmp_path):
    tasks = [
        marking(tmp_path, "all", gpus=None),
        marking(tmp_path, "one", 0.3),
        marking(tmp_path, "other", 0.3),
        marking(tmp_path, "last", after=("one", "other")),
        task("wrong", "raise SystemExit(3)"),
        marking(tmp_path, "behind", after=("wrong",)),
        marking(tmp_path, "large", gpus=3),
    ]
    states, lines = run(tasks, tmp_path)
    assert states == {
        **dict.fromkeys(("all", "one", "other", "last"), "done"),
        "wrong": "failed (3)",
        "behind": "waiting",
        "large": "left out, since it takes 3 GPUs",
    }
    seen = {name: (tmp_path / f"{name}.log").read_text().strip() for name in ("all", "one", "other")}
    assert seen["all"] == "0,1" and {seen["one"], seen["other"]} == {"0", "1"}
    begins = [line.split()[1] for line in lines if line.startswith("begins")]
    assert begins[:3] == ["all", "one", "other"] and set(begins[3:]) == {"last", "wrong"}
    assert lines.index(next(line for line in lines if line.startswith("begins     last"))) > max(
        lines.index(line) for line in lines if line.startswith(("done       one", "done       other"))
    )
    states, lines = run([*tasks[:4], marking(tmp_path, "behind")], tmp_path)
    assert set(states.values()) == {"done"} and [line.split()[1] for line in lines] == ["behind", "behind"]
    assert all((tmp_path / f"{name}.ran").read_text() == "x" for name in states)


def test_at_the_deadline_tasks_are_asked_to_stop_then_killed_and_go_on_next_time(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_tables, "_GRACE_SECONDS", 1.0)
    deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"
    tasks = [task("deaf", deaf), task("polite", "import time; time.sleep(60)"), marking(tmp_path, "next")]
    start = time.monotonic()
    states, _ = run(tasks, tmp_path, deadline=start + 1.0)
    assert time.monotonic() - start < 10
    assert states == {"deaf": "stopped", "polite": "stopped", "next": "waiting"}
    assert "KeyboardInterrupt" in (tmp_path / "polite.log").read_text()
    assert read_json(tmp_path / "states.json")["polite"] == "stopped"
    states, _ = run([marking(tmp_path, "polite"), tasks[2]], tmp_path)
    assert set(states.values()) == {"done"}


def test_a_task_that_says_something_is_left_counts_as_stopped_and_goes_on_next_time(tmp_path):
    left = task("left", "raise SystemExit(3)", stopped_code=3)
    tasks = [left, task("wrong", "raise SystemExit(2)", stopped_code=3), marking(tmp_path, "behind", after=("left",))]
    states, lines = run(tasks, tmp_path)
    assert states == {"left": "stopped", "wrong": "failed (2)", "behind": "waiting"}
    assert sum(line.startswith("begins     left") for line in lines) == 1, "once a call"
    states, _ = run([task("left", stopped_code=3), tasks[2]], tmp_path)
    assert states == {"left": "done", "behind": "done"}
    runners = [each for each in all_tasks() if "cs336.scaling.runner" in each.command]
    assert len(runners) == 5 and all(each.stopped_code == RUNS_LEFT for each in runners)


def test_an_interrupted_call_leaves_nothing_behind(tmp_path):
    pid = tmp_path / "pid"
    waits = task("waits", f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)")

    def interrupt():
        while not (pid.exists() and pid.read_text()):
            time.sleep(0.01)
        signal.raise_signal(signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        run([waits], tmp_path)
    assert read_json(tmp_path / "states.json") == {"waits": "stopped"}
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_what_a_task_leaves_behind_ends_with_it(tmp_path):
    pid = tmp_path / "pid"
    code = "import subprocess; child = subprocess.Popen(['sleep', '60']); "
    states, _ = run([task("parent", code + f"open({str(pid)!r}, 'w').write(str(child.pid))")], tmp_path)
    assert states == {"parent": "done"}
    status = Path(f"/proc/{pid.read_text()}/stat")
    end = time.monotonic() + 10
    while status.exists() and status.read_text().split()[2] != "Z" and time.monotonic() < end:
        time.sleep(0.01)
    assert time.monotonic() < end


def test_again_forgets_the_named_tasks_alone(tmp_path):
    tasks = [marking(tmp_path, "one"), marking(tmp_path, "other")]
    run(tasks, tmp_path)
    gpu_tables.forget(tasks[:1], tmp_path)
    run(tasks, tmp_path)
    assert [(tmp_path / f"{name}.ran").read_text() for name in ("one", "other")] == ["xx", "x"]


def test_the_most_gpus_come_first_and_kernels_have_one_profile_before_the_others():
    tasks = all_tasks()
    wanted = [each.gpus or 1_000 for each in tasks]
    assert wanted == sorted(wanted, reverse=True) and wanted[0] == 1_000 and 2 in wanted
    first, *others = [each for each in tasks if each.name.startswith("profiles-")]
    assert not first.after and len(others) == 5 and {each.after for each in others} == {(first.name,)}


def test_names_are_of_groups_or_tasks(capsys, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [each.name for each in chosen_tasks(["reasoner", "grid"])] == ["reasoner", "grid"]
    assert [each.name for each in chosen_tasks(["packing-1", "scaling"])][:2] == ["packing-1", "grid"]
    assert {each.group for each in chosen_tasks(["scaling"])} == {"scaling"}
    assert chosen_tasks([]) == all_tasks()
    with pytest.raises(UserError, match="no group or task 'gird'"):
        chosen_tasks(["gird"])
    assert main(["gird"]) == 1 and "--list" in capsys.readouterr().err
    assert main(["--list", "scaling"]) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("scaling    all GPUs  grid ")
    monkeypatch.setattr(gpu_tables.torch.cuda, "device_count", lambda: 2)
    assert gpu_tables.visible_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6,3")
    assert gpu_tables.visible_gpus() == ["6", "3"]
    monkeypatch.setattr(gpu_tables.torch.cuda, "device_count", lambda: 0)
    assert main([]) == 1 and "no GPU" in capsys.readouterr().err


def test_tasks_are_commands_that_there_are(capsys):
    tasks = all_tasks()
    names = [each.name for each in tasks]
    assert len(set(names)) == len(names)
    for each in tasks:
        assert all(names.index(name) < names.index(each.name) for name in each.after)
        kind, module, *arguments = shlex.split(each.command)
        assert kind == "-m"
        if module == "torch.distributed.run":
            module, arguments = arguments[4], arguments[5:]
        if module == "pytest":
            assert all((gpu_tables.ROOT / word).exists() for word in arguments if word.startswith("tests/"))
            continue
        mains = {"cs336": cs336, "benchmarks": benchmark}
        command = mains.get(module) or importlib.import_module(module).main
        with pytest.raises(SystemExit) as end:
            command([*arguments, "--help"])
        options = {word for word in arguments if word.startswith("--")}
        assert end.value.code == 0 and options <= set(re.findall(r"--[\w-]+", capsys.readouterr().out)), each.command
        if "--cells" in arguments:
            values = dict(itertools.pairwise(arguments))
            preset, wanted = find_preset(values["--preset"]), values["--cells"]
            of_assets = [STAGES[asset].cells for asset in SWEEPS[values["--job"]]]
            assert any(wanted in list(cells(preset)) for cells in of_assets if cells), each.command
