"""The UI in a real browser: lineage, an asset's figures and plot, and an asset made by clicks.

Needs Chromium and its driver; skipped without them unless CS336_REQUIRE_BROWSER=1. Screenshots go to
the folder named by CS336_SCREENSHOTS, for people to look at.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cs336.store import MANIFEST
from cs336_assets.flow import STAGES
from tests.assets.conftest import ROOT, Project
from tests.browser import headless_chromium

PATIENCE_SECONDS = 90


@pytest.fixture
def ui(copied: Project) -> Iterator[str]:
    """Address of `dagster dev` on a copy of the finished project."""
    workspace = copied.folder / "workspace.yaml"
    workspace.write_text(
        "load_from:\n"
        "  - python_module: {module_name: cs336_assets.definitions, attribute: micro, location_name: micro}\n"
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = (copied.folder / "dev.log").open("w")
    server = subprocess.Popen(
        [sys.executable, "-m", "dagster", "dev", "-w", str(workspace), "--host", "127.0.0.1", "-p", str(port)],
        cwd=ROOT,
        env=copied.environment,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    try:
        address = f"http://127.0.0.1:{port}"
        until(lambda: urllib.request.urlopen(f"{address}/server_info").status == 200)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # the webserver, the daemon and the code servers at once
        server.wait()
        log.close()


@pytest.fixture
def browser(tmp_path: Path):
    """Headless Chromium."""
    with headless_chromium(tmp_path / "profile", "1600,1100") as opened:
        yield opened


def until(condition: Callable[[], object]) -> None:
    """Wait for something to become true; what it raises meanwhile counts as not yet."""
    deadline, problem = time.monotonic() + PATIENCE_SECONDS, None
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except Exception as error:
            problem = error
        time.sleep(0.5)
    raise AssertionError("waited in vain") from problem


def used(name: str) -> bool:
    """Whether any asset reads this one."""
    return any(name in stage.inputs for stage in STAGES.values())


@pytest.mark.slow
def test_lineage_metadata_plot_and_materializing_by_clicks(ui: str, browser, copied: Project):
    def text() -> str:
        return browser.execute_script("return document.body.textContent")

    def click(label: str) -> None:
        found = browser.execute_script(
            "return [...document.querySelectorAll('button, a, span, div')]"
            ".filter(e => e.textContent.trim() === arguments[0] && e.offsetParent !== null).pop()",
            label,
        )
        browser.execute_script("arguments[0].click()", found)

    def screenshot(name: str) -> None:
        folder = Path(os.environ.get("CS336_SCREENSHOTS", copied.folder))
        folder.mkdir(parents=True, exist_ok=True)
        assert browser.save_screenshot(str(folder / f"{name}.png"))

    def drawn() -> set[str]:
        """Assets whose node is in the picture; a long name is cut in the middle there."""
        labels = set(
            browser.execute_script(
                "return [...document.querySelectorAll('foreignObject *')]"
                ".filter(e => !e.childElementCount).map(e => e.textContent.trim())"
            )
        )
        cut = [label.partition("…") for label in labels if "…" in label]
        whole = labels & STAGES.keys()
        return whole | {name for name in STAGES for a, _, b in cut if name.startswith(a) and name.endswith(b)}

    # The lineage, seen from where data enters, from its end and from what stands apart, shows every asset.
    alone = [name for name, stage in STAGES.items() if not stage.inputs and not used(name)]
    seen = set()
    for name, scope, other in (
        ("crawl_plan", "downstream", "token_shards"),
        ("leaderboard", "upstream", "token_shards"),
        ("instruction_data", "downstream", "instruction_model"),
        ("preference_data", "downstream", "dpo_model"),
        ("reasoning_problems", "downstream", "longer_sft_model"),
        ("attention_errors", "downstream", "step_times"),
        ("parallel_correctness", "downstream", "all_reduce_times"),
        *((name, "", name) for name in alone),
    ):
        browser.get(f"{ui}/assets/micro/{name}?view=lineage&lineageScope={scope}&lineageDepth=20")
        until(lambda name=name, other=other: {name, other} <= drawn())
        time.sleep(1)
        seen |= drawn()
        screenshot(f"lineage-{name}-{scope}")
    assert seen == set(STAGES)

    # An asset explains itself, and draws its training curve.
    browser.get(f"{ui}/assets/micro/base_model")
    for words in ("trained from scratch", "num_parameters", "PyTorch", "[Show Markdown]"):
        until(lambda words=words: words in text())
    screenshot("base-model")
    click("[Show Markdown]")
    loaded = "return [...document.images].some(i => i.src.startsWith('data:image/png') && i.naturalWidth > 300)"
    until(lambda: browser.execute_script(loaded))
    screenshot("training-curve")

    # Clicking Materialize makes an asset.
    artifact = copied.artifacts / "eval_index"
    shutil.rmtree(artifact)
    browser.get(f"{ui}/assets/micro/eval_index")
    until(lambda: "num_ngrams" in text())
    click("Materialize")
    until((artifact / MANIFEST).exists)
    screenshot("materialized")
