"""Headers for browsers on every kind of answer, and pages of other sites."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api_server import ApiServer

ORIGIN = "https://app.example.com"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/files", 200), ("GET", "/healthz", 200), ("GET", "/openapi.json", 200), ("GET", "/nothing", 404),
        ("PUT", "/v1/files", 405), ("POST", "/v1/fine_tuning/jobs", 400), ("GET", "/v1/files/file-x/content", 404),
    ],
)  # fmt: skip
def test_answers_are_for_no_page_and_no_cache(api: ApiServer, method: str, path: str, status: int) -> None:
    with api.client() as http:
        answer = http.request(method, path)
    assert answer.status_code == status
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert answer.headers["cache-control"] == "no-store"
    assert "camera=()" in answer.headers["permissions-policy"]
    assert "server" not in answer.headers
    assert not [name for name in answer.headers if name.startswith("access-control-")]


@pytest.mark.parametrize("path", ["/docs", "/docs/start.js"])
def test_page_keeps_its_own_policy_and_runs_no_script_of_others(api: ApiServer, path: str) -> None:
    with api.client("") as http:
        answer = http.get(path)
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'self'") and "frame-ancestors 'none'" in policy
    assert "script-src" not in policy and "unsafe-eval" not in policy
    assert answer.headers.get_list("content-security-policy") == [policy]
    assert answer.headers["cross-origin-opener-policy"] == "same-origin"
    assert len(answer.headers.get_list("cache-control")) == 1


@pytest.fixture(scope="module")
def open_to_pages(valkey_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    url = f"unix://{valkey_folder / 'valkey.sock'}?db=3"
    server = ApiServer(tmp_path_factory.mktemp("api"), url, cors_origins=[ORIGIN])
    yield server
    server.stop()


def test_page_of_a_listed_origin_may_ask(open_to_pages: ApiServer) -> None:
    asked = {
        "origin": ORIGIN, "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, content-type, x-stainless-lang",
    }  # fmt: skip
    with open_to_pages.client("") as http:
        preflight = http.options("/v1/chat/completions", headers=asked)
        answer = http.get("/v1/models", headers={"origin": ORIGIN})
    assert preflight.status_code in (200, 204)
    assert preflight.headers["access-control-allow-origin"] == ORIGIN
    assert "POST" in preflight.headers["access-control-allow-methods"]
    allowed = preflight.headers["access-control-allow-headers"].lower()
    assert all(name in allowed for name in ("authorization", "x-stainless-lang"))  # * would leave the first out
    assert answer.status_code == 401  # being allowed to ask is no key
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert "x-request-id" in answer.headers["access-control-expose-headers"].lower()
    assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize("origin", ["https://evil.example", f"{ORIGIN}.evil.example", "null", "http://app.example.com"])
def test_page_of_another_origin_may_not(open_to_pages: ApiServer, origin: str) -> None:
    asked = {"origin": origin, "access-control-request-method": "POST"}
    with open_to_pages.client("") as http:
        answers = [http.options("/v1/models", headers=asked), http.get("/v1/models", headers={"origin": origin})]
    assert [answer.headers.get("access-control-allow-origin") for answer in answers] == [None, None]
