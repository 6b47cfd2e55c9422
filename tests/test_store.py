"""Artifacts appear whole or not at all, and are current only while nothing they came from changed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cs336.files import UserError
from cs336.store import MANIFEST, Store, Version, verify

VERSION = Version(code="c", config="s", inputs={"a": "1"})


@pytest.fixture
def store(tmp_path):
    return Store("tiny", tmp_path)


def _make(store, version=VERSION, text="content", part=None):
    with store.staging("thing", part, version) as (folder, metadata):
        (folder / "file.txt").write_text(text)
        metadata["n"] = 1


def test_a_finished_artifact_has_its_files_and_a_manifest(store):
    _make(store)
    manifest = store.manifest("thing")
    assert (store.path("thing") / "file.txt").read_text() == "content"
    assert manifest["files"]["file.txt"]["bytes"] == 7 and manifest["metadata"] == {"n": 1}
    assert store.is_current("thing", None, VERSION)
    assert not verify(store.path("thing"))


def test_a_failed_making_leaves_the_old_artifact_alone(store):
    _make(store)
    with pytest.raises(RuntimeError), store.staging("thing", None, Version("new", "s")) as (folder, _):
        (folder / "file.txt").write_text("half")
        raise RuntimeError
    assert (store.path("thing") / "file.txt").read_text() == "content"
    assert not [path for path in (store.folder / ".work").iterdir() if path.is_dir()]


@pytest.mark.parametrize(
    "other", [Version("x", "s", {"a": "1"}), Version("c", "x", {"a": "1"}), Version("c", "s", {"a": "2"})]
)
def test_code_settings_and_inputs_each_make_an_artifact_outdated(store, other):
    _make(store)
    assert not store.is_current("thing", None, other)


def test_a_lost_or_cut_file_makes_an_artifact_outdated(store):
    _make(store)
    (store.path("thing") / "file.txt").write_text("con")
    assert not store.is_current("thing", None, VERSION)
    assert "content differs" in verify(store.path("thing"))[0]


def test_a_resumable_attempt_finds_what_the_last_one_left(store):
    for attempt in range(2):
        try:
            with store.staging("thing", None, VERSION, resumable=True) as (folder, _):
                mark = folder / "mark"
                assert mark.exists() == bool(attempt)
                mark.touch()
                if not attempt:
                    raise RuntimeError
        except RuntimeError:
            pass
    assert (store.path("thing") / "mark").exists()


def test_what_a_killed_write_left_never_becomes_part_of_a_resumed_artifact(store):
    with pytest.raises(RuntimeError), store.staging("thing", None, VERSION, resumable=True) as (folder, _):
        (folder / "inner").mkdir()
        for name in ("whole", ".half.123.partial", "inner/.half.123.partial"):
            (folder / name).touch()
        raise RuntimeError
    with store.staging("thing", None, VERSION, resumable=True):
        pass
    assert [path.name for path in sorted(store.path("thing").iterdir())] == ["inner", "manifest.json", "whole"]
    assert not list((store.path("thing") / "inner").iterdir())


def test_a_resumable_attempt_that_left_nothing_leaves_no_folder(store):
    with pytest.raises(RuntimeError), store.staging("thing", None, VERSION, resumable=True) as (folder, _):
        raise RuntimeError
    assert not folder.exists()


def test_killed_while_making_nothing_counts_as_made(store, tmp_path):
    code = (
        "import os, signal; from pathlib import Path; from cs336.store import Store, Version\n"
        f"with Store('tiny', Path({str(tmp_path)!r})).staging('thing', None, Version('c', 's')) as (folder, _):\n"
        "    (folder / 'file.txt').write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == -9
    assert not store.path("thing").exists() and store.manifest("thing") is None
    _make(store)
    assert [path.name for path in (store.folder / ".work").iterdir()] == ["thing.lock"]


def test_two_makers_of_one_artifact_do_not_mix(store):
    with store.staging("thing", None, VERSION) as (folder, _), pytest.raises(UserError, match="another run"):
        (folder / "file.txt").write_text("first")
        _make(store)
    assert (store.path("thing") / "file.txt").read_text() == "first"


def test_a_missing_input_is_named_with_the_remedy(store):
    with pytest.raises(UserError, match=r"thing: not there yet; materialize tiny/thing first"):
        store.fingerprint("thing")


def test_a_full_disk_ends_in_one_line_and_leaves_no_half_artifact(small_disk):
    store = Store("tiny", small_disk("64k"))
    with pytest.raises(UserError, match=r"the disk is full; free some space, or set CS336_ARTIFACTS") as caught:
        _make(store, text="x" * 200_000)
    assert "\n" not in str(caught.value)
    assert not store.path("thing").exists()
    _make(store, text="small")  # the room that the failed attempt took is free again
    assert store.is_current("thing", None, VERSION)


def test_manifests_hold_no_absolute_path(store):
    _make(store)
    text = (store.path("thing") / MANIFEST).read_text()
    assert str(store.root) not in text and os.sep + "home" not in text
    assert json.loads(text)["versions"]["python"]


def _with_numpy(path):
    import numpy as np

    with path.open("wb") as file:
        np.save(file, np.zeros(100_000))


def _with_torch(path):
    import torch

    with path.open("wb") as file:
        torch.save(torch.zeros(100_000), file)


def _with_safetensors(path):
    import torch
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(100_000)}, str(path))


def _with_polars(path):
    import numpy as np
    import polars as pl

    with path.open("wb") as file:
        pl.DataFrame({"x": np.random.default_rng(0).random(100_000)}).write_parquet(file)


@pytest.mark.parametrize("write", [_with_numpy, _with_torch, _with_safetensors, _with_polars])
def test_a_full_disk_is_recognised_whatever_library_meets_it(small_disk, write):
    store = Store("tiny", small_disk("64k"))
    with pytest.raises(UserError, match="the disk is full"), store.staging("thing", None, VERSION) as (folder, _):
        write(folder / "file")
    assert not store.path("thing").exists()
