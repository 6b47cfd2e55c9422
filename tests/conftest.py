"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # test processes share the cores


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data named by CS336_DATA; tests that need it skip where it is missing.

    With CS336_REQUIRE_DATA=1 its absence is a failure.
    """
    folder = Path(os.environ.get("CS336_DATA", "shared-data-not-set"))
    if (folder / "MANIFEST.json").exists():
        return folder.resolve()
    if os.environ.get("CS336_REQUIRE_DATA") == "1":
        pytest.fail(f"CS336_REQUIRE_DATA=1, but CS336_DATA={folder} holds no MANIFEST.json")
    pytest.skip("set CS336_DATA to a folder with the real data sets")
