"""The console command: help teaches, mistakes are one line."""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cs336.cli import main
from cs336.documents import Document, write_documents
from cs336.evals.report import score_rows
from cs336.files import write_json
from cs336.leaderboard import SCORES_FILE
from cs336.store import Store, Version

ROOT = Path(__file__).parents[1]


def test_help_lists_the_librarys_commands_and_the_graphs(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    printed = capsys.readouterr().out
    assert caught.value.code == 0
    for command in (
        "presets",
        "data",
        "show",
        "look",
        "generate",
        "export",
        "tokenizer",
        "chat",
        "evaluate",
        "scores",
        "verify",
        "run",
        "demo",
        "ui",
        "adopt",
        "why",
        "trace",
        "what-if",
    ):
        assert re.search(rf"^    {command}\s", printed, re.MULTILINE), command


def test_presets_show_every_setting(capsys):
    assert main(["presets", "course"]) == 0
    printed = capsys.readouterr().out
    assert "d_model = 512" in printed and "min_language_confidence = 0.65" in printed


def test_the_catalogue_is_listed_with_licences_and_pins(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("CS336_DATA", str(tmp_path))
    monkeypatch.setenv("CS336_DOWNLOADS", str(tmp_path))
    assert main(["data", "list"]) == 0
    printed = capsys.readouterr().out
    assert "gsm8k" in printed and "MIT" in printed and "unpinned" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "tokenizer"], "not there yet; `cs336 run"),
        (["show", "tokenizer", "--preset", "huge"], "no preset 'huge'"),
        (
            ["pin", "pinned.json", "--preset", "course"],
            "plan.json: not there yet; `cs336 run --preset course --job plan`",
        ),
        (["look", "--preset", "huge"], "no preset 'huge'"),
        (["look"], "holds no documents"),
        (["generate", "x"], "not there yet; `cs336 run --preset tiny` makes it"),
        (["export", "out"], "not there yet; `cs336 run --preset tiny` makes it"),
        (["generate", "x", "--preset", "huge"], "no preset 'huge'"),
        (["generate", "x", "--num-samples", "0"], "--num-samples is 0; give 1 or more"),
        (["generate", "x", "--device", "abacus"], "device 'abacus'"),
        (["generate", "x", "--model", "nowhere"], "nowhere: not found; --model takes"),
        (["chat"], "not there yet; `cs336 run --preset tiny` makes it"),
        (["chat", "--model", "nowhere"], "nowhere: not found; --model takes"),
        (["chat", "--top-p", "2"], "--top-p: 2.0 is out of range; give above 0 and at most 1"),
        (["scores"], "no scores yet"),
        (["scores", "--preset", "huge"], "no preset 'huge'"),
        (["scores", "--preset", "course"], "course: no scores yet; `cs336 run --preset course` makes them"),
        (["presets", "huge"], "no preset 'huge'"),
        (["data", "fetch", "nonsense"], "the catalogue has no 'nonsense'"),
        (["adopt", "nowhere"], "nowhere/manifest.json: not found"),
        (["why", "x"], "crawl_plan: not there yet; `cs336 run --preset tiny --job data` makes it"),
        (["trace", "docs-00000", "1"], "crawl_plan: not there yet; `cs336 run --preset tiny --job data` makes it"),
        (["trace", "--batch", "1"], "crawl_plan: not there yet; `cs336 run --preset tiny --job data` makes it"),
        (["trace"], "give SHARD and POSITION of a token, or --batch STEP"),
        (["what-if", "mask_pii=false"], "crawl_plan: not there yet; `cs336 run --preset tiny --job data` makes it"),
        (["what-if", "words=1"], "the filters have no setting 'words'; there are languages, "),
    ],
)
def test_mistakes_end_with_one_line(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("CS336_ARTIFACTS", str(tmp_path))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    assert main(arguments) == 1
    printed = capsys.readouterr().err
    assert message in printed and printed.startswith("cs336: ") and len(printed.splitlines()) == 1


def test_a_preset_with_a_mistake_does_not_hide_the_others(capsys, monkeypatch, tmp_path):
    (tmp_path / "presets.toml").write_text("[mine]\nbase = 'tiny'\nbpe = {vocab = 300}\n[other]\nbase = 'tiny'\n")
    monkeypatch.setenv("CS336_PRESETS", str(tmp_path / "presets.toml"))
    assert main(["presets"]) == 1
    printed = capsys.readouterr()
    assert "tiny" in printed.out and "other" in printed.out
    assert "[mine]" in printed.err and len(printed.err.splitlines()) == 1


def test_what_is_not_made_yet_is_told_from_what_is_alike(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("CS336_ARTIFACTS", str(tmp_path))
    for name in ("reasoning_study", "tokenizer"):
        (tmp_path / "tiny" / name).mkdir(parents=True)
        write_json(tmp_path / "tiny" / name / "manifest.json", {})
    assert main(["show", "grpo_study"]) == 1
    printed = capsys.readouterr().err
    assert "not there; did you mean reasoning_study? Else `cs336 run --preset tiny` makes it, or with --job" in printed


def test_alone_it_says_how_it_is_used(capsys):
    assert main([]) == 0
    assert capsys.readouterr().out.startswith("usage: cs336")


def test_a_data_folder_that_is_not_there_is_no_silence(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("CS336_DATA", str(tmp_path / "mistyped"))
    assert main(["data", "list"]) == 1
    assert "mistyped: no such folder" in capsys.readouterr().err


def test_documents_of_one_shard_or_of_all_are_looked_at(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("CS336_ARTIFACTS", str(tmp_path))
    for shard in ("a", "b"):
        documents = [Document(f"{shard}-1", "http://x", "x.warc", 0, f"gradient of {shard}")]
        write_documents(tmp_path / "tiny" / "extracted_text" / shard, documents)
    assert main(["look", "extracted_text"]) == 0
    assert capsys.readouterr().out.startswith("2 documents in ")
    assert main(["look", "extracted_text/b", "--contains", "gradient"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("1 documents that contain 'gradient' in ") and "gradient of b" in printed


def test_an_artifact_is_shown_without_braces(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("CS336_ARTIFACTS", str(tmp_path))
    facts = {"per_filter": {"language": {}, "length": {"kept": 3, "seen": 5}}, "sizes": [1, 2]}
    facts |= {"plot": {"image": "plot.png"}, "counts": {"markdown": "| a |\n|---|\n| 1 |"}}
    with Store("tiny", tmp_path).staging("thing", None, Version("c", "s", {"crawl": "f00"})) as (folder, metadata):
        (folder / "data.txt").write_text("some")
        metadata |= facts
    assert main(["show", "thing"]) == 0
    printed = capsys.readouterr().out
    assert "\n  inputs:      crawl=f00\n" in printed and "\n               4 bytes  data.txt" in printed
    assert printed.endswith("""
  counts:
| a |
|---|
| 1 |
  per_filter: language=none, length=(kept=3, seen=5)
  plot:       plot.png
  sizes:      1, 2
""")
    assert not set("{}[]'") & set(printed)


@pytest.fixture
def two_scored(monkeypatch, tmp_path):
    """Presets `tiny` and `old`, of which the second is no preset any more."""
    monkeypatch.setenv("CS336_ARTIFACTS", str(tmp_path))
    for preset in ("tiny", "old"):
        rows = score_rows({"accuracy": 0.5, "num_examples": 2}, preset=preset, model="m", task="t", set_name="s")
        with Store(preset, tmp_path).staging("perplexity", None, Version("c", "s")) as (folder, _):
            write_json(folder / SCORES_FILE, rows)
    return tmp_path


def test_scores_are_those_of_all_presets_or_of_one(two_scored, capsys):
    for arguments, shown in (([], {"tiny", "old"}), (["--preset", "tiny"], {"tiny"}), (["--preset", "old"], {"old"})):
        assert main(["scores", *arguments]) == 0
        assert {line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]} == shown


def test_scores_of_several_seeds_stand_in_one_line(two_scored, capsys):
    for seed, accuracy in ((1, 0.7), (2, 0.9)):
        metrics = {"accuracy": accuracy, "num_examples": 10}
        rows = score_rows(metrics, preset=f"tiny_seed_{seed}", model="m", task="t", set_name="s")
        with Store(f"tiny_seed_{seed}", two_scored).staging("perplexity", None, Version("c", "s")) as (folder, _):
            write_json(folder / SCORES_FILE, rows)
    for preset in ([], ["--preset", "tiny"], ["--preset", "tiny_seed_2"]):
        assert main(["scores", "--seeds", *preset]) == 0
        (line,) = capsys.readouterr().out.splitlines()[2:]
        assert line.split()[:4] == ["tiny", "m", "t", "s"]
        assert line.split()[-6:] == ["70.0%", "20.0%", "50.0%", "90.0%", "3", "here"]
    assert main(["scores", "--seeds", "--preset", "old"]) == 1
    assert "old: no scores of several seeds yet; `cs336 run --preset old_seed_1`" in capsys.readouterr().err


def test_verify_says_of_which_preset_it_speaks(two_scored, capsys):
    assert main(["verify"]) == 0
    assert capsys.readouterr().out == "preset tiny: 1 artifacts, 0 problems\n"
    scores = two_scored / "tiny" / "perplexity" / SCORES_FILE
    scores.write_text("[]")
    assert main(["verify", "--preset", "tiny"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{scores}: content differs from the manifest",
        "preset tiny: 1 artifacts, 1 problems",
    ]


def test_a_taken_port_is_one_line(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert main(["ui", "--port", str(port)]) == 1
    assert f"`cs336 ui --port {port + 1}`" in capsys.readouterr().err


def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "cs336", "presets"], cwd=ROOT, capture_output=True, text=True, env={**os.environ}
    )
    assert done.returncode == 0 and "tiny" in done.stdout


def test_commands_of_the_library_do_not_load_dagster():
    code = "import sys; from cs336.cli import main; main(['presets']); assert 'dagster' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == 0


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("python", ["no-such-python", "false", ""])
def test_make_with_an_unfit_python_is_one_line(python, tmp_path):
    command = ["make", "demo", f"PYTHON={python}", f"VENV={tmp_path / 'venv'}"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode != 0 and not done.stdout and not (tmp_path / "venv").exists()
    assert len(done.stderr.splitlines()) == 1
    assert "Python 3.11 to 3.13 is needed; set PYTHON=/path/to/python3.12" in done.stderr
