"""Many clients at once, and a server killed in the middle: no budget overshoots, no charge is lost or doubled."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from cs336.service.client import ScalingClient, ServiceError
from cs336.service.database import open_database
from cs336.service.keys import add_key
from tests.service.servers import Server

CHEAP = 10**16
RUN = {"num_layers": 4, "num_heads": 4, "batch_size": 128, "learning_rate": 1e-3}


@pytest.fixture
def server(database_url, tmp_path):
    server = Server(database_url, tmp_path, "--requests-per-second", "100000")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def key(database_url):
    database = open_database(database_url)
    key = add_key(database, "ada")
    database.close()
    return key


def ask(server, key, widths):
    """One client that asks for widths in turn: its answers, and the statuses of what was refused."""
    client = ScalingClient(server.url, key, patience_seconds=120)
    answers, refused = {}, []
    for width in widths:
        try:
            answers[width] = client.loss(d_model=width, train_flops=CHEAP, **RUN)
        except ServiceError as error:
            refused.append(error.status)
    return answers, refused


def books(server, key):
    client = ScalingClient(server.url, key)
    return client.total_flops_used(), client.previous_runs()


def test_sixty_four_clients_never_overshoot_a_nearly_spent_budget(server, key):
    """1.9e18 are spent; of 64 different runs at once, 1e16 each, exactly ten are paid for."""
    first = ScalingClient(server.url, key)
    for flops in (10**18, 6 * 10**17, 3 * 10**17):
        first.loss(d_model=64, train_flops=flops, **RUN)
    together = threading.Barrier(64)

    def one(number):
        together.wait()
        return ask(server, key, [100 + number])

    with ThreadPoolExecutor(64) as pool:
        results = list(pool.map(one, range(64)))
    assert sum(len(answers) for answers, _ in results) == 10
    assert Counter(status for _, refused in results for status in refused) == {400: 54}
    total, runs = books(server, key)
    assert total == 2e18 and len(runs) == 13
    assert sum(run["train_flops"] for run in runs) == total


def test_two_servers_on_one_database_never_overshoot_a_nearly_spent_budget(server, key, database_url, tmp_path):
    """1.8e18 are spent; of 32 different runs at once, each asked for of both servers, exactly twenty are paid for."""
    first = ScalingClient(server.url, key)
    for width, flops in ((64, 10**18), (65, 6 * 10**17), (66, 10**17), (67, 10**17)):
        first.loss(d_model=width, train_flops=flops, **RUN)
    second = Server(database_url, tmp_path, "--requests-per-second", "100000")
    second.start()
    together = threading.Barrier(16)

    def one(number):
        together.wait()
        return ask((server, second)[number % 2], key, range(100 + number // 2, 132, 8))

    try:
        with ThreadPoolExecutor(16) as pool:
            results = list(pool.map(one, range(16)))
    finally:
        second.stop()
    total, runs = books(server, key)
    assert total == 2e18 == sum(run["train_flops"] for run in runs) and len(runs) == 4 + 20
    paid = {run["d_model"]: run["loss"] for run in runs if run["d_model"] >= 100}
    assert all(answers.items() <= paid.items() for answers, _ in results)
    assert {status for _, refused in results for status in refused} == {400}


def test_sixty_four_clients_that_ask_the_same_are_charged_once(server, key):
    together = threading.Barrier(64)

    def one(number):
        together.wait()
        return ask(server, key, [256])

    with ThreadPoolExecutor(64) as pool:
        results = list(pool.map(one, range(64)))
    assert len({answers[256] for answers, _ in results}) == 1
    total, runs = books(server, key)
    assert total == CHEAP and len(runs) == 1


def test_a_server_killed_twice_in_the_middle_loses_and_doubles_nothing(server, key):
    """16 clients want 240 runs of 1e16; 200 are paid for, whatever was in flight when the server died."""
    counted, done = threading.Condition(), 0

    def one(number):
        nonlocal done
        client_answers, client_refused = {}, []
        for width in range(100 + number, 340, 16):
            answers, refused = ask(server, key, [width])
            client_answers |= answers
            client_refused += refused
            with counted:
                done += 1
                counted.notify_all()
        return client_answers, client_refused

    with ThreadPoolExecutor(16) as pool:
        clients = [pool.submit(one, number) for number in range(16)]
        for enough in (30, 110):
            with counted:
                assert counted.wait_for(lambda: done >= enough, timeout=120)  # noqa: B023 - called at once
            server.kill()
            server.start()
        results = [client.result() for client in clients]
    answers = {width: loss for found, _ in results for width, loss in found.items()}
    total, runs = books(server, key)
    assert len(answers) == 200 and Counter(s for _, refused in results for s in refused) == {400: 40}
    assert total == 2e18 == sum(run["train_flops"] for run in runs)
    assert {run["d_model"]: run["loss"] for run in runs} == answers and len(runs) == 200
