"""Which commit of this project runs."""

from __future__ import annotations

import functools
import os
import subprocess
from pathlib import Path


@functools.cache
def describe_commit() -> str:
    """`CS336_COMMIT` if it is set; else the commit of this checkout, with "+changes" when files differ from it."""
    if os.environ.get("CS336_COMMIT"):
        return os.environ["CS336_COMMIT"]
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True).returncode
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("+changes" if changed else "")
