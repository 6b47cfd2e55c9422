"""Who may import whom, read from the syntax trees, and tried with packages blocked."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STAGES = ["crawl", "extract", "filters", "dedup", "tokenizer", "tokens", "model", "kernels", "generate", "parallel"]
STAGES += ["train", "profiling", "scaling", "evals", "posttrain"]
# Beyond "a stage imports only stages above it": the turns that the house allows.
TURNS = {("model", "kernels")}
# What combines stages or knows how their results are kept; stages take folders and data.
ABOVE_STAGES = ("presets", "preset_lookup", "cli", "store", "fingerprint", "leaderboard", "sheets", "service")
NO_TORCH = ("crawl", "extract", "filters", "dedup", "tokenizer")


def _imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _library() -> list[Path]:
    return sorted((ROOT / "cs336").rglob("*.py"))


def test_the_library_never_imports_the_graph():
    for path in _library():
        roots = {name.partition(".")[0] for name in _imports(path)}
        assert not roots & {"dagster", "dagster_pipes", "cs336_assets", "tests", "benchmarks"}, path


def test_stages_import_only_what_stands_above_them():
    for path in _library():
        parts = path.relative_to(ROOT / "cs336").parts
        if len(parts) < 2 or parts[0] not in STAGES:
            continue
        for name in _imports(path):
            words = name.split(".")
            if words[0] != "cs336" or len(words) < 2 or words[1] not in STAGES:
                assert not (words[0] == "cs336" and words[1:2] and words[1] in ABOVE_STAGES), f"{path} imports {name}"
                continue
            above = STAGES.index(words[1]) <= STAGES.index(parts[0])
            assert above or (parts[0], words[1]) in TURNS, f"{path}: {parts[0]} imports {name}, which stands below it"


def test_the_parallel_forms_import_no_stage():
    """They carry any model, ours or not."""
    for path in (ROOT / "cs336" / "parallel").glob("*.py"):
        stages = {name.split(".")[1] for name in _imports(path) if name.startswith("cs336.")} & set(STAGES)
        assert stages <= {"parallel"}, path


@pytest.mark.parametrize("stage", NO_TORCH)
def test_stages_up_to_the_tokenizer_never_import_torch(stage):
    for path in (ROOT / "cs336" / stage).rglob("*.py"):
        assert not {name for name in _imports(path) if name.partition(".")[0] == "torch"}, path


def test_packages_hold_no_code_in_their_init():
    for path in [*_library(), *(ROOT / "cs336_assets").rglob("*.py")]:
        if path.name == "__init__.py":
            body = ast.parse(path.read_text()).body
            assert len(body) <= 1 and all(isinstance(node, ast.Expr) for node in body), path


def test_training_side_imports_without_the_data_side_packages():
    stages = ["model", "kernels", "parallel", "train", "scaling", "posttrain", "evals", "generate"]
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for stage in stages
        for path in sorted((ROOT / "cs336" / stage).rglob("*.py"))
        if path.name != "__init__.py"
    ]
    blocked = ["dagster", "dagster_pipes", "polars", "fasttext", "resiliparse", "fastwarc", "datasketch", "jaxtyping"]
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked!r}))\n" + "\n".join(f"import {m}" for m in modules)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(modules) > 15


def test_the_graph_is_there_before_what_only_drawing_a_web_server_and_one_form_of_training_need():
    code = "import sys, cs336_assets.definitions; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"matplotlib", "PIL", "fastapi", "starlette", "torch.distributed.fsdp"} & set(done.stdout.split())
