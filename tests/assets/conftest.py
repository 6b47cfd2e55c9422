"""A project of its own for each test: artifacts, Dagster home and the `micro` preset."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUCKET = "course"


@dataclass
class Project:
    """Where a test's artifacts lie, and how to run things on them."""

    folder: Path
    environment: dict[str, str]

    @property
    def artifacts(self) -> Path:
        return self.folder / "artifacts" / "micro"

    def python(self, *arguments: str, **options) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=280,
            **options,
        )

    def run(self, job: str = "all", preset: str = "micro", *options: str) -> str:
        """`cs336 run`; returns what it printed, and fails with it when it fails."""
        done = self.python("-m", "cs336", "run", "--preset", preset, "--job", job, *options)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def copy(self, folder: Path, **variables: str) -> Project:
        """This project as it is now, elsewhere and with other environment variables."""
        for part in ("artifacts", "dagster_home"):
            shutil.copytree(self.folder / part, folder / part, symlinks=True)
        places = {"DAGSTER_HOME": str(folder / "dagster_home"), "CS336_ARTIFACTS": str(folder / "artifacts")}
        return Project(folder, self.environment | places | variables)


def make_project(folder: Path, **variables: str) -> Project:
    home = folder / "dagster_home"
    home.mkdir(parents=True)
    shutil.copy(ROOT / "dagster_home" / "dagster.yaml", home)
    environment = {key: value for key, value in os.environ.items() if key != "CS336_DATA"}
    environment |= {
        "DAGSTER_HOME": str(home),
        "CS336_ARTIFACTS": str(folder / "artifacts"),
        "CS336_DOWNLOADS": str(folder / "downloads"),
        "CS336_PRESETS": str(ROOT / "tests" / "presets.toml"),
        "CS336_PRESET": "micro",
        "CS336_SHEETS": str(folder / "sheets"),
        "CS336_WORKERS": "1",  # tests run side by side
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        **variables,
    }
    return Project(folder, environment)


@pytest.fixture
def project(tmp_path) -> Project:
    """An empty project."""
    return make_project(tmp_path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Project:
    """A project whose whole graph was made once; tests only read it, or copy it."""
    made = make_project(tmp_path_factory.mktemp("finished"))
    made.run()
    return made


@pytest.fixture
def copied(finished, tmp_path) -> Project:
    """A copy of the finished project that a test may change."""
    return finished.copy(tmp_path)


def free_port() -> int:
    """A port that nobody listens on."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def s3(tmp_path_factory):
    """Variables of a server that speaks S3, with one bucket."""
    s3fs, _ = pytest.importorskip("s3fs"), pytest.importorskip("moto")
    port = free_port()
    log = (tmp_path_factory.mktemp("s3") / "log.txt").open("w")
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log
    )
    variables = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "anyone",
        "AWS_SECRET_ACCESS_KEY": "anything",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        for _ in range(300):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            s3fs.S3FileSystem(skip_instance_cache=True).mkdir(BUCKET)
        yield variables
    finally:
        server.terminate()
        server.wait()
        log.close()
