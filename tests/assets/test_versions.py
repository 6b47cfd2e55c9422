"""What a change re-makes: exactly what depends on it."""

import dataclasses
import json
import shutil

import dagster as dg
import pytest

from cs336.crawl.local_files import TextFiles
from cs336.files import UserError
from cs336.preset_lookup import find_preset
from cs336.presets import TINY
from cs336.store import MANIFEST, Store, Version
from cs336_assets.asset import part_names, version_of
from cs336_assets.flow import STAGES
from cs336_assets.graph import build_definitions
from tests.assets.conftest import ROOT

PRINT_VERSIONS = """
import json
from cs336.preset_lookup import find_preset
from cs336_assets.asset import STAGES, code_version
import cs336_assets.flow
print(json.dumps({name: code_version(stage, find_preset("micro")) for name, stage in STAGES.items()}))
"""


def downstream(*names):
    """These and what the main chain makes from them; experiments are run apart."""
    found = set(names)
    for name, stage in STAGES.items():  # upstream assets come first
        apart = ("experiments", "data_ablation", "reasoning", "scaling", "instruct")
        if found & set(stage.inputs) and stage.group not in apart:
            found.add(name)
    return found


def made(printed):
    lines = [line for line in printed.splitlines() if ": made in" in line]
    return {line.partition("/")[2].partition(":")[0].partition("[")[0] for line in lines}


def test_parts_cut_from_another_crawl_are_refused_and_not_mixed(copied, monkeypatch):
    for name, value in copied.environment.items():
        monkeypatch.setenv(name, value)
    preset, store = find_preset("micro"), Store("micro")
    first, second = part_names(STAGES["repeated_lines"], preset, store)
    current = version_of(STAGES["unique_lines"], preset, store, second)
    manifest = store.path("repeated_lines", first) / MANIFEST
    described = json.loads(manifest.read_text())
    described["inputs"]["line_hashes"] = "of one shard fewer"
    manifest.write_text(json.dumps(described))
    message = "made from other parts of line_hashes than there are now; materialize repeated_lines for all shards"
    with pytest.raises(UserError, match=message):
        version_of(STAGES["unique_lines"], preset, Store("micro"), second)
    assert version_of(STAGES["line_hashes"], preset, Store("micro"), second) and current


def test_the_version_of_all_shards_is_found_once_a_store_and_again_when_one_is_made(tmp_path, monkeypatch):
    store, shards, reads = Store("tiny", tmp_path), [f"shard-{n:02d}" for n in range(20)], []
    store.path("crawl_plan").mkdir(parents=True)
    (store.path("crawl_plan") / "plan.json").write_text(json.dumps({"shards": [{"name": name} for name in shards]}))
    (store.path("crawl_plan") / MANIFEST).write_text("{}")

    def make(name, shard, code="1"):
        version = dataclasses.replace(version_of(STAGES[name], TINY, store, shard), code=code)
        with store.staging(name, shard, version):
            pass

    def version():
        reads.clear()
        return version_of(STAGES["unique_lines"], TINY, store, shards[3]).inputs["repeated_lines"]

    with store.staging("filtered_text", shards[0], Version(code="1", config="1")):
        pass
    for shard in shards[1:]:
        shutil.copytree(store.path("filtered_text", shards[0]), store.path("filtered_text", shard))
    for name in ("line_hashes", "repeated_lines"):
        for shard in shards:
            make(name, shard)
    monkeypatch.setattr(store, "manifest", lambda *place: reads.append(place) or Store.manifest(store, *place))
    first = version()
    assert len(reads) > 2 * len(shards)
    assert version() == first and len(reads) < 5
    make("repeated_lines", shards[7], "2")
    assert version() != first
    make("line_hashes", shards[7], "2")
    with pytest.raises(UserError, match="made from other parts of line_hashes"):
        version()


def change_preset(project, text):
    presets = project.folder / "presets.toml"
    presets.write_text((ROOT / "tests" / "presets.toml").read_text() + text)
    project.environment["CS336_PRESETS"] = str(presets)


@pytest.mark.slow
def test_a_filter_threshold_remakes_what_is_downstream_and_nothing_else(copied):
    change_preset(copied, "filters = {min_language_confidence = 0.9}\n")
    assert made(copied.run()) == downstream("filtered_text")


def test_a_learning_rate_remakes_the_model_and_its_scores(copied):
    presets = (ROOT / "tests" / "presets.toml").read_text()
    changed = copied.folder / "presets.toml"
    changed.write_text(presets.replace("num_steps = 30", "num_steps = 30, learning_rate = 0.001"))
    copied.environment["CS336_PRESETS"] = str(changed)
    # The written answers count the FLOPs of the whole training, so they read its settings too.
    assert made(copied.run()) == downstream("base_model", "model_accounting")


def test_a_longer_crawl_keeps_the_shards_it_has(tmp_path, monkeypatch):
    documents = [" ".join(f"word{i * j % 97}" for j in range(60)) for i in range(1, 30)]
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text("<|endoftext|>".join(text + name for text in documents))
    monkeypatch.setenv("CS336_ARTIFACTS", str(tmp_path / "artifacts"))
    instance = dg.DagsterInstance.ephemeral()

    def unchanged(files, partition=None):
        """Which assets were found unchanged, of the plan or of one shard."""
        preset = dataclasses.replace(TINY, name="more", source=TextFiles(paths=tuple(str(tmp_path / f) for f in files)))
        names = ["crawl", "extracted_text"] if partition else ["crawl_plan"]
        result = (
            build_definitions(preset)
            .resolve_job_def("more_data" if partition else "more_plan")
            .execute_in_process(
                instance=instance,
                partition_key=partition,
                asset_selection=[dg.AssetKey(["more", name]) for name in names],
            )
        )
        return [
            event.materialization.metadata["unchanged"].value for event in result.get_asset_materialization_events()
        ]

    assert unchanged(["a.txt"]) == [False]
    assert unchanged(["a.txt"], "a") == [False, False]
    assert unchanged(["a.txt", "b.txt"]) == [False]
    assert unchanged(["a.txt", "b.txt"], "a") == [True, True]
    assert unchanged(["a.txt", "b.txt"], "b") == [False, False]


def test_equal_bytes_made_by_other_code_leave_what_is_made_from_them(copied, monkeypatch):
    monkeypatch.setenv("CS336_PRESETS", copied.environment["CS336_PRESETS"])
    preset, store = find_preset("micro"), Store("micro", copied.folder / "artifacts")
    shard = part_names(STAGES["token_shards"], preset, store)[0]

    def versions():
        parts = {"token_shards": shard, "base_model": None}
        return [version_of(STAGES[name], preset, store, part).fingerprint for name, part in parts.items()]

    before = versions()
    for folder in (store.path("tokenizer"), store.path("token_shards", shard)):
        manifest = json.loads((folder / MANIFEST).read_text())
        (folder / MANIFEST).write_text(json.dumps(manifest | {"fingerprint": "0" * 16, "code": "other"}))
    assert versions() == before
    next(iter(manifest["files"].values()))["sha256"] = "0" * 64
    (folder / MANIFEST).write_text(json.dumps(manifest))
    after = versions()
    assert after[0] == before[0] and after[1] != before[1]


@pytest.fixture(scope="module")
def versions(tmp_path_factory, finished):
    """Code versions of a copy of the project's code, with some of its text replaced."""
    copy = tmp_path_factory.mktemp("code")

    def of(file=None, old="", new=""):
        for name in ("cs336", "cs336_assets"):
            shutil.rmtree(copy / name, ignore_errors=True)
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "requirements.lock", copy)
        if file:
            text = (copy / file).read_text()
            assert old in text
            (copy / file).write_text(text.replace(old, new))
        code = f"import sys; sys.path.insert(0, {str(copy)!r})\n{PRINT_VERSIONS}"
        done = finished.python("-c", code)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return of


@pytest.mark.slow
def test_comments_and_docstrings_change_no_version_and_helpers_change_their_callers(versions):
    before = versions()
    assert before == versions("cs336/dedup/minhash.py", "    Raises:", "    Fails with:")
    assert before == versions("cs336/tokens/shards.py", "import numpy as np\n", "import numpy as np\n# a remark\n")

    after = versions("cs336/dedup/exact_lines.py", "len(data) > 0", "len(data) > 1")
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"line_hashes", "unique_lines"}
