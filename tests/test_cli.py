"""The console command: help teaches, mistakes are one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cs336.cli import main

ROOT = Path(__file__).parents[1]


def test_help_lists_the_librarys_commands_and_the_graphs(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    printed = capsys.readouterr().out
    assert caught.value.code == 0
    for command in ("presets", "data", "show", "look", "generate", "scores", "verify", "run", "demo", "adopt"):
        assert f"    {command} " in printed


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
        (["look"], "holds no documents"),
        (["generate", "x"], "not there yet; `cs336 demo`"),
        (["scores"], "no scores yet"),
        (["presets", "huge"], "no preset 'huge'"),
        (["data", "fetch", "nonsense"], "the catalogue has no 'nonsense'"),
        (["adopt", "nowhere"], "nowhere/manifest.json: not found"),
    ],
)
def test_mistakes_end_with_one_line(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("CS336_ARTIFACTS", str(tmp_path))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    assert main(arguments) == 1
    printed = capsys.readouterr().err
    assert message in printed and printed.startswith("cs336: ") and len(printed.splitlines()) == 1


def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "cs336", "presets"], cwd=ROOT, capture_output=True, text=True, env={**os.environ}
    )
    assert done.returncode == 0 and "tiny" in done.stdout


def test_commands_of_the_library_do_not_load_dagster():
    code = "import sys; from cs336.cli import main; main(['presets']); assert 'dagster' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == 0
