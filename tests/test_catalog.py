import gzip
import hashlib
import json
import lzma
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cs336 import catalog, catalog_entries
from cs336.files import UserError

sys.path.insert(0, str(Path(__file__).parent))
from file_server import Fault, FileServer

GSM8K_TRAIN, GSM8K_TEST = b'{"question": "1+1?", "answer": "#### 2"}\n', b'{"question": "2+2?", "answer": "#### 4"}\n'


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch) -> Path:
    """A machine with nothing on it."""
    monkeypatch.delenv("CS336_DATA", raising=False)
    monkeypatch.setenv("CS336_DOWNLOADS", str(tmp_path / "downloads"))
    monkeypatch.setenv("CS336_CATALOG_LOCK", str(tmp_path / "lock.json"))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return tmp_path


@pytest.fixture
def mirror(machine, monkeypatch) -> Path:
    monkeypatch.setenv("CS336_DATA", str(machine / "mirror"))
    return machine / "mirror"


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer() as running:
        yield running


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def serve(server: FileServer, monkeypatch, name: str, bodies: list[bytes], *, pinned: bool) -> None:
    """Let an HTTPS entry's files come from loopback, with or without the checksums of these bodies."""
    entry = catalog.ENTRIES[name]
    files = []
    for file, body in zip(entry.files, bodies, strict=True):
        server.files[f"/{file.name}"] = body
        sha256 = hashlib.sha256(body).hexdigest() if pinned else None
        files.append(replace(file, url=server.url(f"/{file.name}"), sha256=sha256, num_bytes=None))
    monkeypatch.setitem(catalog_entries.ENTRIES, name, replace(entry, files=tuple(files)))


# ---- declarations ------------------------------------------------------------------------------


def test_every_data_set_and_model_of_the_course_is_declared_with_origin_licence_and_loader():
    assert set(catalog.ENTRIES) >= {
        "tinystories",
        "owt-sample",
        "math",
        "math-sft",
        "gsm8k",
        "mmlu",
        "alpaca-eval",
        "simple-safety-tests",
        "hh-rlhf",
        "ultrachat-safety",
        "lid176",
        "lid176-full",
        "dolma-nsfw",
        "dolma-toxic",
        "wikipedia-urls",
        "web-gold",
        "paloma-c4-100",
        "slimpajama",
        "dclm",
        "gpt2-vocab",
        "icl-tasks",
        "qwen2.5-math-1.5b",
        "llama-3.1-8b",
        "llama-3.3-70b-instruct",
    }
    for name, entry in catalog.ENTRIES.items():
        assert entry.name == name
        assert entry.origin and entry.licence and entry.loader and entry.what
        assert bool(entry.files) != bool(entry.patterns)
        assert not entry.patterns or entry.hub
        assert entry.mirror or all(file.mirror for file in entry.files), f"{name}: no place in a mirror"
        assert len({file.name for file in entry.files}) == len(entry.files)
        for file in entry.files:
            assert not (file.url and entry.hub)
            assert all(sha is None or len(sha) == 64 for sha in (file.sha256, file.mirror_sha256))
        for other in entry.differs_from:
            assert name in catalog.ENTRIES[other].differs_from


def test_importing_the_catalogue_loads_nothing_heavy():
    code = "import sys, cs336.catalog; print(sorted(set(sys.modules) & set(sys.argv[1:])))"
    heavy = ["torch", "polars", "dagster", "huggingface_hub", "requests", "numpy"]
    done = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_committed_lock_is_a_json_object():
    path = Path(catalog.__file__).with_name("catalog_lock.json")
    lock = json.loads(path.read_text())
    assert set(lock) <= set(catalog.ENTRIES)


def test_the_mirrors_bytes_and_their_unpacked_content_have_the_declared_checksums(shared_data, monkeypatch):
    monkeypatch.setenv("CS336_DATA", str(shared_data))
    num_checked = 0
    for entry in catalog.ENTRIES.values():
        for file in entry.files:
            path = shared_data / file.mirror
            if file.mirror_sha256 is None:
                continue
            stored = path.read_bytes()
            assert hashlib.sha256(stored).hexdigest() == file.mirror_sha256, path
            original = stored if file.name.endswith(path.suffix) else gzip.decompress(stored)
            assert file.sha256 in (None, hashlib.sha256(original).hexdigest()), path
            assert file.num_bytes in (None, len(original)), path
            num_checked += 1
    assert num_checked >= 20


# ---- what is here ------------------------------------------------------------------------------


def test_an_unknown_name_is_a_callers_mistake_that_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"no 'gsm9k'; it has .*gsm8k"):
        catalog.find("gsm9k")


def test_what_is_missing_is_none_and_required_it_is_one_line_with_the_remedy():
    for name in catalog.ENTRIES:
        assert catalog.find(name) is None
        assert catalog.checksum(name) is None
        with pytest.raises(UserError, match=f"^{name} .* is not on this machine: .*CS336_DATA/") as caught:
            catalog.require(name)
        assert "\n" not in str(caught.value)
    with pytest.raises(
        UserError, match=r"run `cs336 data fetch lid176`, or put it at \$CS336_DATA/weights/lid\.176\.ftz"
    ):
        catalog.require("lid176")
    with pytest.raises(
        UserError, match=r"after accepting its licence on its hub page \(meta-llama/Llama-3\.1-8B\).*HF_TOKEN"
    ):
        catalog.require("llama-3.1-8b")
    with pytest.raises(UserError) as caught:
        catalog.require("wikipedia-urls")
    assert "data fetch" not in str(caught.value)  # nothing to fetch it from


def test_one_file_is_found_as_a_file_and_several_as_their_folder(mirror):
    lid = write(mirror / "weights" / "lid.176.ftz", b"model")
    assert catalog.find("lid176") == lid
    train = write(mirror / "eval" / "gsm8k" / "train.jsonl.gz", gzip.compress(GSM8K_TRAIN))
    assert catalog.find("gsm8k") is None  # half of it is not it
    test = write(mirror / "eval" / "gsm8k" / "test.jsonl", GSM8K_TEST)  # not compressed, as it happens
    assert catalog.find("gsm8k") == mirror / "eval" / "gsm8k"
    assert catalog.find_file("gsm8k", "train.jsonl") == train
    assert catalog.find_file("gsm8k", "test.jsonl") == test
    assert catalog.find_file("gsm8k", "validation.jsonl") is None
    assert [row["answer"] for row in catalog.read_gsm8k(catalog.require("gsm8k"), "test")] == ["#### 4"]


def test_a_model_folder_in_a_mirror_stands_for_the_whole_entry(mirror):
    weights = write(mirror / "weights" / "Qwen2.5-Math-1.5B" / "model.safetensors", b"weights")
    assert catalog.find("qwen2.5-math-1.5b") == weights.parent
    assert catalog.find_file("qwen2.5-math-1.5b", "model.safetensors") == weights


def test_the_mirror_wins_over_the_download_folder(machine, mirror):
    downloaded = write(machine / "downloads" / "lid176" / "lid.176.ftz", b"downloaded")
    assert catalog.find("lid176") == downloaded
    mirrored = write(mirror / "weights" / "lid.176.ftz", b"mirrored")
    assert catalog.find("lid176") == mirrored
    assert catalog.fetch("lid176") == mirrored


def test_a_checksum_is_that_of_the_file_or_changes_with_any_of_several(mirror):
    write(mirror / "weights" / "lid.176.ftz", b"model")
    assert catalog.checksum("lid176") == hashlib.sha256(b"model").hexdigest()
    write(mirror / "eval" / "gsm8k" / "train.jsonl", GSM8K_TRAIN)
    write(mirror / "eval" / "gsm8k" / "test.jsonl", GSM8K_TEST)
    write(mirror / "eval" / "gsm8k" / "unrelated.txt", b"not part of it")
    lines = sorted(
        f"{name} {hashlib.sha256(body).hexdigest()}\n"
        for name, body in (("train.jsonl", GSM8K_TRAIN), ("test.jsonl", GSM8K_TEST))
    )
    assert catalog.checksum("gsm8k") == hashlib.sha256("".join(lines).encode()).hexdigest()
    before = catalog.checksum("gsm8k")
    write(mirror / "eval" / "gsm8k" / "test.jsonl", GSM8K_TRAIN)
    assert catalog.checksum("gsm8k") != before


def test_a_checksum_does_not_depend_on_where_the_files_lie(machine, mirror, monkeypatch):
    for root in (mirror / "eval" / "gsm8k", machine / "downloads" / "gsm8k"):
        write(root / "train.jsonl", GSM8K_TRAIN)
        write(root / "test.jsonl", GSM8K_TEST)
    in_mirror = catalog.checksum("gsm8k")
    monkeypatch.delenv("CS336_DATA")
    assert catalog.checksum("gsm8k") == in_mirror


def test_the_table_has_a_row_per_entry_and_says_what_is_pinned_and_found(mirror):
    lid = write(mirror / "weights" / "lid.176.ftz", b"model")
    rows = {row["name"]: row for row in catalog.status_table()}
    assert set(rows) == set(catalog.ENTRIES)
    assert rows["lid176"]["pinned"] == "pinned" and rows["lid176"]["found"] == str(lid)
    assert rows["lid176-full"]["pinned"] == "unpinned" and rows["lid176-full"]["found"] == ""
    assert rows["llama-3.1-8b"]["access"] == "gated"


def test_text_is_read_plain_gzipped_and_xz(tmp_path):
    text = "Höhe\r\nzwei\n"
    write(tmp_path / "a.txt", text.encode())
    write(tmp_path / "a.txt.gz", gzip.compress(text.encode()))
    write(tmp_path / "a.txt.xz", lzma.compress(text.encode()))
    for name in ("a.txt", "a.txt.gz", "a.txt.xz"):
        with catalog.open_text(tmp_path / name) as file:
            assert file.read() == text
        with pytest.raises(UserError, match="not found"):
            catalog.open_text(tmp_path / "none" / name)


# ---- HTTPS -------------------------------------------------------------------------------------


def test_a_pinned_entry_is_fetched_and_writes_no_lock(machine, server, monkeypatch):
    serve(server, monkeypatch, "gsm8k", [GSM8K_TRAIN, GSM8K_TEST], pinned=True)
    server.faults["/train.jsonl"] = [Fault(status=503)]
    folder = catalog.fetch("gsm8k")
    assert folder == machine / "downloads" / "gsm8k"
    assert sorted(os.listdir(folder)) == ["test.jsonl", "train.jsonl"]
    assert not (machine / "lock.json").exists()
    server.requests.clear()
    assert catalog.fetch("gsm8k") == folder
    assert server.requests == []


def test_other_bytes_than_the_pinned_ones_are_refused(server, monkeypatch):
    serve(server, monkeypatch, "gsm8k", [GSM8K_TRAIN, GSM8K_TEST], pinned=True)
    server.files["/test.jsonl"] = GSM8K_TRAIN
    with pytest.raises(UserError, match="wrong checksum"):
        catalog.fetch("gsm8k")
    assert catalog.find("gsm8k") is None


def test_the_first_download_of_an_unpinned_entry_pins_it_for_all_later_ones(machine, server, monkeypatch):
    serve(server, monkeypatch, "lid176-full", [b"first"], pinned=False)
    path = catalog.fetch("lid176-full")
    sha256 = hashlib.sha256(b"first").hexdigest()
    pin = {"revision": None, "files": {"lid.176.bin": {"sha256": sha256, "bytes": 5}}}
    assert json.loads((machine / "lock.json").read_text()) == {"lid176-full": pin}
    assert {row["name"]: row for row in catalog.status_table()}["lid176-full"]["pinned"] == "pinned"
    path.unlink()
    server.files["/lid.176.bin"] = b"other"  # of the same size
    with pytest.raises(UserError, match=f"expected sha256 {sha256}"):
        catalog.fetch("lid176-full")


def test_pins_of_several_entries_live_side_by_side(machine, server, monkeypatch):
    serve(server, monkeypatch, "lid176-full", [b"one"], pinned=False)
    serve(server, monkeypatch, "math-sft", [b"two"], pinned=False)
    catalog.fetch("lid176-full")
    catalog.fetch("math-sft")
    assert set(json.loads((machine / "lock.json").read_text())) == {"lid176-full", "math-sft"}


def test_an_entry_without_public_address_says_where_to_put_it():
    for name in ("wikipedia-urls", "ultrachat-safety", "tinystories-sample"):
        with pytest.raises(UserError, match=r"put it at \$CS336_DATA/.*\(origin: "):
            catalog.fetch(name)


def test_two_classifiers_served_as_one_file_are_found_out(machine, server, monkeypatch):
    serve(server, monkeypatch, "dolma-nsfw", [b"the same"], pinned=False)
    serve(server, monkeypatch, "dolma-toxic", [b"the same"], pinned=False)
    catalog.fetch("dolma-nsfw")
    with pytest.raises(UserError, match="dolma-toxic: its origin serves the same bytes as dolma-nsfw"):
        catalog.fetch("dolma-toxic")
    assert catalog.find("dolma-toxic") is None
    assert set(json.loads((machine / "lock.json").read_text())) == {"dolma-nsfw"}
    server.files["/jigsaw_fasttext_bigrams_hatespeech_final.bin"] = b"another"
    assert catalog.fetch("dolma-toxic").read_bytes() == b"another"


# ---- the hub -----------------------------------------------------------------------------------

# The hub's client reads its settings when it is imported, so it runs in a process of its own,
# against this small hub: repository info, HEAD and GET of files by revision.
HUB = r"""
import hashlib, json, os, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FILES = {"owt_train.txt.gz": b"train", "owt_valid.txt.gz": b"valid", "README.md": b"not asked for"}
SHA = "a" * 40
seen = []

class Hub(BaseHTTPRequestHandler):
    def do_GET(self):
        seen.append(self.command + " " + self.path)
        if "/gated" in self.path or "meta-llama" in self.path:
            self.send_response(403)
            self.send_header("X-Error-Code", "GatedRepo")
            body = b"{}"
        elif self.path.startswith("/api/datasets/stanford-cs336/owt-sample"):
            self.send_response(200)
            siblings = [{"rfilename": name} for name in FILES]
            info = {"_id": "1", "id": "stanford-cs336/owt-sample", "sha": SHA, "siblings": siblings}
            body = json.dumps(info).encode()
        elif self.path.startswith("/datasets/stanford-cs336/owt-sample/resolve/" + SHA):
            body = FILES[self.path.rpartition("/")[2]]
            self.send_response(200)
            self.send_header("X-Repo-Commit", SHA)
            self.send_header("ETag", '"' + hashlib.sha1(body).hexdigest() + '"')
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            body = b"{}"
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
    do_HEAD = do_GET
    def log_message(self, *args):
        pass

server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"
os.environ["HF_HUB_OFFLINE"] = "0"
os.environ["HF_HUB_DISABLE_XET"] = "1"
from cs336 import catalog
from cs336.files import UserError
"""


def run_hub(code: str, folder: Path) -> str:
    environment = {**os.environ, "HF_HOME": str(folder / "hf"), "PYTHONPATH": str(Path(catalog.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", HUB + code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_hub_entry_is_fetched_at_its_resolved_revision_pinned_and_checked_afterwards(machine):
    output = run_hub(
        """
folder = catalog.fetch("owt-sample")
print(sorted(each for each in os.listdir(folder) if not each.startswith(".")))
print(catalog.find_file("owt-sample", "owt_valid.txt.gz").read_bytes())
assert catalog.fetch("owt-sample") == folder

FILES["owt_valid.txt.gz"] = b"VALID"  # the origin changes, in spite of the pinned revision
import shutil
shutil.rmtree(folder)
seen.clear()
try:
    catalog.fetch("owt-sample")
except UserError as error:
    print(error)
print([each for each in seen if "/revision/" in each])
print(catalog.find("owt-sample"))
""",
        machine,
    ).splitlines()
    assert output[0] == "['owt_train.txt.gz', 'owt_valid.txt.gz']"
    assert output[1] == "b'valid'"
    sha256 = hashlib.sha256(b"valid").hexdigest()
    assert f"pinned is {sha256}; it was deleted" in output[2]
    assert output[3].startswith(f"['GET /api/datasets/stanford-cs336/owt-sample/revision/{'a' * 40}")
    assert output[4] == "None"
    lock = json.loads((machine / "lock.json").read_text())
    assert lock["owt-sample"]["revision"] == "a" * 40
    assert lock["owt-sample"]["files"]["owt_valid.txt.gz"] == {"sha256": sha256, "bytes": 5}


def test_gated_missing_and_unreachable_repositories_are_one_line_each(machine):
    output = run_hub(
        """
for name in ("llama-3.1-8b", "tinystories"):
    try:
        catalog.fetch(name)
    except UserError as error:
        print(error)
server.shutdown(); server.server_close()
try:
    catalog.fetch("mmlu")
except UserError as error:
    print(error)
""",
        machine,
    ).splitlines()
    assert len(output) == 3
    assert "accept the licence of hub repository meta-llama/Llama-3.1-8B, set HF_TOKEN" in output[0]
    assert "tinystories: hub repository roneneldan/TinyStories was not found" in output[1]
    assert output[2].startswith("mmlu: hub repository cais/mmlu could not be re")
