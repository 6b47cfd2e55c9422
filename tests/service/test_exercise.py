"""The README's script does the handout's exercise: spends the budget, fits, predicts at 1e19."""

import os
import re
import subprocess
import sys

import pytest

from cs336.scaling.parametric import CHINCHILLA
from cs336.service.database import open_database
from cs336.service.keys import add_key
from tests.service.servers import ROOT, Server


def test_the_readmes_script_spends_the_budget_and_predicts_what_the_law_says(tmp_path):
    """Without measured runs the losses are Chinchilla's law, whose optimum at 1e19 is known in closed form."""
    page = (ROOT / "README.md").read_text().partition("### Serve a scaling study")[2]
    script = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]
    (tmp_path / "none.jsonl").write_text("")
    url = f"sqlite:///{tmp_path}/service.db"
    database = open_database(url)
    key = add_key(database, "ada")
    database.close()
    server = Server(url, tmp_path, "--runs", str(tmp_path / "none.jsonl"))
    server.start()
    try:
        environment = os.environ | {"CS336_SERVICE": server.url, "CS336_API_KEY": key}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=200
        )
    finally:
        server.stop()
    assert done.returncode == 0, done.stderr
    spent = float(re.search(r"([\d.e+]+) FLOPs spent on", done.stdout)[1])
    assert 1.7e18 <= spent <= 2e18, done.stdout
    size, loss = map(
        float, re.search(r"parametric +at 1e19: ([\d,]+) M parameters, loss ([\d.]+)", done.stdout).groups()
    )
    best = CHINCHILLA.frontier()
    assert size == pytest.approx(best.parameters(1e19) / 1e6, rel=0.05)
    assert loss == pytest.approx(best.loss(1e19), abs=0.02)
