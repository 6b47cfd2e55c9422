"""Several machines share artifacts through an object store: a real S3 server, and a folder."""

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from cs336.files import UserError
from cs336.shared_storage import SharedStorage
from cs336.store import MANIFEST, Store, Version
from tests.assets.conftest import BUCKET


@pytest.fixture(params=["s3", "folder"])
def storage(request, tmp_path, monkeypatch):
    if request.param == "folder":
        return SharedStorage(str(tmp_path / "shared"))
    for name, value in request.getfixturevalue("s3").items():
        monkeypatch.setenv(name, value)
    return SharedStorage(f"s3://{BUCKET}/{request.node.name.replace('[', '-').replace(']', '')}")


def store_at(folder, storage):
    store = Store("tiny", folder)
    store._shared = storage
    return store


def make(store, text, part=None, asset="thing", code="1"):
    with store.staging(asset, part, Version(code=code, config="c")) as (folder, _):
        (folder / "below").mkdir()
        (folder / "text.txt").write_text(text)
        (folder / "below" / "more.txt").write_text(text * 2)
    store.share(asset, part)


def test_what_one_machine_makes_another_has(storage, tmp_path):
    make(store_at(tmp_path / "a", storage), "first")
    for part in ("x", "y"):
        make(store_at(tmp_path / "a", storage), part, part, "parts")
    other = store_at(tmp_path / "b", storage)
    version = Version(code="1", config="c")
    assert other.is_current("thing", None, version) and not other.path("thing").exists()
    assert not other.is_current("thing", None, Version(code="2", config="c"))
    assert (other.local("thing") / "below" / "more.txt").read_text() == "firstfirst"
    assert [(other.local("parts", part) / "text.txt").read_text() for part in ("x", "y")] == ["x", "y"]
    assert json.loads((other.path("thing") / MANIFEST).read_text()) == other.manifest("thing")
    assert other.manifest("thing", "none") is None and other.manifest("absent") is None


def test_steps_side_by_side_that_need_the_same_artifact_fetch_it_once(storage, tmp_path, monkeypatch):
    make(store_at(tmp_path / "a", storage), "first")
    downloads = []
    download = storage.download

    def slowly(*arguments):
        downloads.append(arguments)
        time.sleep(0.3)
        download(*arguments)

    monkeypatch.setattr(storage, "download", slowly)
    with ThreadPoolExecutor(4) as threads:
        folders = list(threads.map(lambda _: store_at(tmp_path / "b", storage).local("thing"), range(4)))
    assert [(folder / "text.txt").read_text() for folder in folders] == ["first"] * 4 and len(downloads) == 1


def test_a_newer_artifact_takes_the_place_of_the_older_here_and_there(storage, tmp_path):
    one, other = store_at(tmp_path / "a", storage), store_at(tmp_path / "b", storage)
    make(one, "old")
    other.local("thing")
    make(store_at(tmp_path / "a", storage), "new", code="2")
    again = store_at(tmp_path / "b", storage)
    assert (again.local("thing") / "text.txt").read_text() == "new"


def test_what_was_made_before_there_was_a_storage_is_copied(storage, tmp_path):
    make(Store("tiny", tmp_path / "a"), "text")
    store_at(tmp_path / "a", storage).share("thing")
    assert (store_at(tmp_path / "b", storage).local("thing") / "text.txt").read_text() == "text"


def test_an_upload_that_is_cut_off_is_no_artifact(storage, tmp_path, monkeypatch):
    make(store_at(tmp_path / "a", storage), "old")

    def broken(*arguments, **options):
        raise ConnectionError("the line is dead")

    with monkeypatch.context() as patch:
        patch.setattr(storage._files, "put_file", broken)
        with pytest.raises(UserError, match="thing: ConnectionError: the line is dead"):
            make(store_at(tmp_path / "a", storage), "new", code="2")
    assert store_at(tmp_path / "b", storage).manifest("thing") is None
    store_at(tmp_path / "a", storage).share("thing")
    assert (store_at(tmp_path / "b", storage).local("thing") / "text.txt").read_text() == "new"


def test_a_manifest_appears_whole_or_not_at_all(storage, tmp_path, monkeypatch):
    path, seen = f"{storage._root}/tiny/thing/{MANIFEST}", []

    def in_halves(source, target, **options):
        if source.endswith(MANIFEST):
            with open(source, "rb") as whole, storage._files.open(target, "wb") as file:
                file.write(whole.read(50))
            seen.append(storage._files.exists(path))
        put_file(source, target, **options)

    put_file = storage._files.put_file
    monkeypatch.setattr(storage._files, "put_file", in_halves)
    make(store_at(tmp_path / "a", storage), "text")
    assert seen == [False]
    assert (store_at(tmp_path / "b", storage).local("thing") / "text.txt").read_text() == "text"
    assert storage._files.exists(path) and not storage._files.exists(f"{path}.partial")


def test_a_manifest_that_is_cut_off_costs_its_part_alone(storage, tmp_path):
    for part in ("x", "y"):
        make(store_at(tmp_path / "a", storage), part, part, "parts")
    with storage._files.open(f"{storage._root}/tiny/parts/x/{MANIFEST}", "wb") as file:
        file.write(b'{"fingerprint": "1')
    other = store_at(tmp_path / "b", storage)
    assert other.manifest("parts", "x") is None
    assert (other.local("parts", "y") / "text.txt").read_text() == "y"
    store_at(tmp_path / "a", storage).share("parts", "x")
    assert (store_at(tmp_path / "b", storage).local("parts", "x") / "text.txt").read_text() == "x"


def test_a_file_that_is_not_what_the_manifest_says_is_refused(storage, tmp_path):
    make(store_at(tmp_path / "a", storage), "text")
    with storage._files.open(f"{storage._root}/tiny/thing/text.txt", "wb") as file:
        file.write(b"TEXT")
    other = store_at(tmp_path / "b", storage)
    with pytest.raises(UserError, match=r"text\.txt: differs from its manifest"):
        other.local("thing")
    assert not other.path("thing").exists()


def test_an_address_that_is_none_is_one_line(monkeypatch):
    with pytest.raises(UserError, match="CS336_STORAGE=nowhere://x"):
        SharedStorage("nowhere://x")
    pytest.importorskip("s3fs")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    with pytest.raises(UserError, match=r"^s3://closed/x/thing: \w+: [^\n]*$"):
        SharedStorage("s3://closed/x").manifests("thing")


@pytest.mark.slow
def test_a_second_machine_makes_only_what_is_missing(finished, s3, tmp_path):
    variables = s3 | {"CS336_STORAGE": f"s3://{BUCKET}/graph"}
    first = finished.copy(tmp_path / "first", **variables)
    assert "micro_all: 0 artifacts made" in first.run()  # and copied, as the storage lacked them
    second = finished.copy(tmp_path / "second", **variables)
    shutil.rmtree(second.folder / "artifacts")
    made = [line.partition(":")[0] for line in second.run().splitlines() if ": made in" in line]
    assert made == ["micro/inspection_sheets", "micro/tokenizer_study", "micro/leaderboard"]  # of what a machine has
    fetched = [path.relative_to(second.artifacts) for path in second.artifacts.glob("token_shards/*/*.bin")]
    assert fetched  # by the checks
    assert all((second.artifacts / path).read_bytes() == (first.artifacts / path).read_bytes() for path in fetched)
    for machine in (first, second):
        shutil.rmtree(machine.artifacts / "perplexity")
    subprocess.run([sys.executable, "-c", DELETE, f"{BUCKET}/graph/micro/perplexity"], check=True, env=os.environ | s3)
    printed = second.run("evals")
    made = [line.partition(":")[0] for line in printed.splitlines() if ": made in" in line]
    assert made == ["micro/perplexity", "micro/leaderboard"]
    printed = first.run("evals")
    assert "micro/perplexity: unchanged" in printed
    files = [machine.artifacts / "perplexity" / "scores.json" for machine in (first, second)]
    assert files[0].read_bytes() == files[1].read_bytes()


DELETE = "import s3fs, sys; s3fs.S3FileSystem().rm(sys.argv[1], recursive=True)"
