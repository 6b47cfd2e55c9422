"""`cs336 keys` and `cs336 serve scaling`, as a user types them."""

import argparse
import json
import socket

import pytest

from cs336.cli import main
from cs336.scaling.loss_model import configuration_of
from cs336.scaling.runs import append_run
from cs336.service.client import ScalingClient, ServiceError
from cs336.service.commands import contest_of, open_surrogate
from tests.scaling.made_runs import configuration, made_run
from tests.service.servers import Server


@pytest.fixture(autouse=True)
def artifacts(tmp_path, monkeypatch):
    monkeypatch.setenv("CS336_ARTIFACTS", str(tmp_path / "artifacts"))
    monkeypatch.delenv("CS336_SERVICE_DATABASE", raising=False)
    return tmp_path / "artifacts"


def test_a_key_is_shown_once_listed_and_revoked(artifacts, capsys):
    assert main(["keys", "list"]) == 0
    assert "no keys yet" in capsys.readouterr().out
    assert main(["keys", "add", "ada"]) == 0
    key = capsys.readouterr().out.strip()
    assert key.startswith("cs336-") and len(key) == 49
    assert main(["keys", "list"]) == 0
    line = capsys.readouterr().out
    assert line.startswith("ada  since ") and "0 FLOPs used" in line and key not in line
    assert main(["keys", "revoke", "ada"]) == 0
    assert main(["keys", "list"]) == 0
    assert "revoked" in capsys.readouterr().out
    assert (artifacts / "scaling_service" / "service.db").exists()


def test_the_environment_names_the_database_and_the_option_goes_before_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CS336_SERVICE_DATABASE", f"sqlite:///{tmp_path}/other.db")
    assert main(["keys", "add", "ada"]) == 0
    assert (tmp_path / "other.db").exists()
    assert main(["keys", "add", "ada", "--database", f"sqlite:///{tmp_path}/third.db"]) == 0
    assert (tmp_path / "third.db").exists()


@pytest.mark.parametrize(
    ("host", "address"),
    [("127.0.0.1", "http://127.0.0.1:80"), ("0.0.0.0", "http://127.0.0.1:80"), ("::1", "http://[::1]:80")],
)
def test_workers_reach_the_service_at_an_address_of_this_machine(artifacts, host, address):
    options = argparse.Namespace(host=host, port=80, text=None, workers=2, devices="cuda:0,cuda:1", pool="processes")
    contest = contest_of(options)
    assert (contest.address, contest.devices, contest.num_workers) == (address, ("cuda:0", "cuda:1"), 2)
    assert contest.folder == artifacts / "scaling_service" / "runs"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["keys", "revoke", "nobody"], "nobody: has no key that is good"),
        (["keys", "add", "two words"], "give a name"),
        (["keys", "list", "--database", "mysql://host/name"], "no database for this"),
        (["serve", "scaling", "--runs", "/nowhere.jsonl"], "/nowhere.jsonl: not found"),
        (["serve", "scaling", "--requests-per-second", "0"], "give a number above 0"),
        (["serve", "scaling", "--text", "/nowhere"], "/nowhere: holds no train.bin"),
        (["serve", "scaling", "--port", "99999"], "127.0.0.1:99999: cannot listen there"),
        (["serve", "scaling", "--workers", "0"], "--workers is 0; give 1 or more"),
    ],
)
def test_a_mistake_is_one_line(capsys, arguments, message):
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_port_that_is_taken_is_one_line_and_nothing_has_begun(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", "scaling", "--port", str(taken.getsockname()[1])]) == 1
    said = capsys.readouterr()
    assert "in use" in said.err and said.err.count("\n") == 1 and said.out == ""


def test_a_file_without_a_whole_row_is_refused_unless_it_is_empty(tmp_path, capsys):
    (tmp_path / "torn.jsonl").write_text("hello")
    assert main(["serve", "scaling", "--runs", str(tmp_path / "torn.jsonl")]) == 1
    assert "torn.jsonl: holds no whole row" in capsys.readouterr().err
    (tmp_path / "empty.jsonl").touch()
    assert open_surrogate(tmp_path / "empty.jsonl").summary()["measured_runs"] == 0


def test_a_server_answers_from_the_runs_that_it_was_given(tmp_path, capsys):
    run = made_run(configuration(256, 4, 4, 128, 1e-3, 10**15), loss=4.321)
    append_run(tmp_path / "runs.jsonl", run)
    url = f"sqlite:///{tmp_path}/service.db"
    assert main(["keys", "add", "ada", "--database", url]) == 0
    key = capsys.readouterr().out.strip()
    server = Server(url, tmp_path, "--runs", str(tmp_path / "runs.jsonl"))
    server.start()
    try:
        client = ScalingClient(server.url, key)
        asked = vars(configuration_of(run))
        assert client.loss(**asked) == 4.321
        assert client.provenance(**asked)["provenance"] == "measured"
        assert client.total_flops_used() == 1e15
        assert client.previous_runs() == [asked | {"loss": 4.321}]
        assert main(["keys", "revoke", "ada", "--database", url]) == 0
        with pytest.raises(ServiceError, match="Invalid API key"):  # at once, without a restart
            client.previous_runs()
    finally:
        server.stop()
    lines = [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    assert {line["path"] for line in lines} >= {"/loss", "/provenance", "/previous_runs"}
    assert key not in (tmp_path / "requests.jsonl").read_text() + (tmp_path / "server.txt").read_text()
