"""The page at /docs says all that the OpenAPI description does, and loads nothing."""

import re

import pytest
from fastapi.testclient import TestClient

from cs336.scaling.surrogate import fit_surrogate
from cs336.service import api_2025
from cs336.service.api_2026 import users_router
from cs336.service.app import Part, create_app
from cs336.service.docs_page import docs_page
from cs336.service.state import Settings


@pytest.fixture
def client(tmp_path):
    settings = Settings(database_url=f"sqlite:///{tmp_path}/service.db", log_file=tmp_path / "log")
    parts = [api_2025.part(fit_surrogate([])), Part(router=users_router())]
    with TestClient(create_app(settings, parts)) as client:
        yield client


def test_every_path_parameter_answer_and_field_is_there(client):
    page, described = client.get("/docs").text, client.get("/openapi.json").json()
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            section = page.partition(f"<code>{method.upper()} {path}</code>")[2].partition("<h2")[0]
            names = [each["name"] for each in operation.get("parameters", [])]
            assert all(f"<code>{name}</code>" in section for name in names)
            assert all(f"<td>{status}</td>" in section for status in operation["responses"])
    for name, schema in described["components"]["schemas"].items():
        section = page.partition(f'id="{name}"')[2].partition("<h2")[0]
        assert all(f"<code>{field}</code>" in section for field in schema.get("properties", {}))
    ranged = page.partition("GET /loss")[2].partition("<h2")[0]
    assert "integer from 64 to 1024" in ranged and "<code>128</code>, <code>256</code>" in ranged
    assert "default <code>0.0003</code>" in page


def test_it_loads_nothing_and_its_links_lead_somewhere(client):
    answer = client.get("/docs")
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert not re.search(r"<script|<link|<img|@import|url\(|https?:", answer.text)
    links = set(re.findall(r'href="#([^"]+)"', answer.text))
    assert links and links <= set(re.findall(r'id="([^"]+)"', answer.text))
    assert set(re.findall(r'href="([^#"][^"]*)"', answer.text)) == {"/openapi.json"}


def test_words_of_a_description_are_no_markup():
    described = {"info": {"title": "<b>"}, "paths": {"/<i>": {"get": {"description": "a < b, `c<d`", "responses": {}}}}}
    page = docs_page(described)
    assert "<b>" not in page and "<i>" not in page and "a &lt; b, <code>c&lt;d</code>" in page
