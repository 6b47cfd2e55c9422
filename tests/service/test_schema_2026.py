"""The 2026 API as its own description says, asked everything that schemathesis can think of."""

import itertools

import pytest
from hypothesis import HealthCheck, given, settings

from cs336.service.api_2026 import users_router
from cs336.service.app import Part, create_app
from cs336.service.keys import add_key
from cs336.service.state import Settings

schemathesis = pytest.importorskip("schemathesis")
generous = {"requests_per_second": 1e6, "burst": 1e6, "failures_per_second": 1e6, "failure_burst": 1e6}


@pytest.fixture
def service(tmp_path):
    made = Settings(database_url=f"sqlite:///{tmp_path}/service.db", log_file=tmp_path / "log", **generous)
    app = create_app(made, [Part(router=users_router(num_train_tokens=10**9))])
    yield app
    app.state.service.database.close()


def test_every_answer_is_a_described_one(service):
    # That widths agree, tokens divide and so on is beyond a JSON schema: a body may fit it and still be refused.
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    headers = {"X-API-Key": add_key(service.state.service.database, "ada")}
    described = schemathesis.openapi.from_asgi("/openapi.json", service)
    asked = []
    modes = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]
    for found, mode in itertools.product(described.get_all_operations(), modes):
        operation = found.ok()
        if mode is modes[1] and not (operation.body or operation.path_parameters):  # nothing that could be wrong
            continue
        asked.append(operation.label)

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        def ask(case):
            case.call_and_validate(headers=headers, excluded_checks=[positive_data_acceptance])

        ask()
    assert len(asked) == 10
