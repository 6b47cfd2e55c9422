"""schemathesis asks what the OpenAPI description allows, and what it does not, and compares the answers with it."""

import subprocess
import sys

from cs336.service.client import ScalingClient
from cs336.service.database import open_database
from cs336.service.keys import add_key
from tests.service.servers import Server

# A request that fits the description may still be too dear for what is left of the budget, 400, or be known, 409. That
# a job's widths agree, its tokens divide and so on is beyond a JSON schema: 422.
CONFIGURATION = """
[parameters]
api_key = "{key}"
X-API-Key = "{key}"

[checks.positive_data_acceptance]
expected-statuses = ["2xx", 400, 404, 409]

[[operations]]
include-path-regex = "submi"
checks.positive_data_acceptance.expected-statuses = ["2xx", 400, 409, 422]
"""


def test_every_answer_is_as_the_description_says(tmp_path):
    url = f"sqlite:///{tmp_path}/service.db"
    database = open_database(url)
    key = add_key(database, "ada")
    database.close()
    server = Server(url, tmp_path, "--requests-per-second", "100000")
    server.start()
    try:
        asked = {"d_model": 64, "num_layers": 2, "num_heads": 2, "batch_size": 128, "learning_rate": 1e-3}
        ScalingClient(server.url, key).loss(**asked, train_flops=1e13)  # before a first loss there is no total
        (tmp_path / "schemathesis.toml").write_text(CONFIGURATION.format(key=key))
        command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(tmp_path / "schemathesis.toml")]
        command += ["run", f"{server.url}/openapi.json", "--max-examples", "40", "--seed", "1", "--no-color"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    finally:
        server.stop()
    assert done.returncode == 0, done.stdout
    assert "Tested: 11" in done.stdout and "failure" not in done.stdout.lower(), done.stdout
