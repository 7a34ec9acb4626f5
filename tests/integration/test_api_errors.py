"""What clients get wrong, in OpenAI's envelope; and what every response carries."""

from __future__ import annotations

import socket
from typing import Any

import httpx2
import openai
import pytest

from tests.api_server import ApiServer


def error_of(answer: httpx2.Response) -> dict[str, Any]:
    """Check that an answer is the envelope and nothing else, and return what is in it."""
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"].startswith("req_")
    body = answer.json()
    assert list(body) == ["error"]
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert isinstance(body["error"]["message"], str) and body["error"]["message"]
    assert "Traceback" not in answer.text
    error: dict[str, Any] = body["error"]
    return error


def test_every_response_carries_openai_headers(api: ApiServer) -> None:
    with api.client() as http:
        answers = [http.get("/v1/models"), http.get("/nowhere"), http.put("/v1/models"), http.get("/healthz")]
    assert [answer.status_code for answer in answers] == [200, 404, 405, 200]
    for answer in answers:
        assert answer.headers["openai-version"] == "2020-10-01"
        assert int(answer.headers["openai-processing-ms"]) >= 0
    assert len({answer.headers["x-request-id"] for answer in answers}) == 4


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Basic abc", "Bearer wrong", "Bearer sk-selftune-wrong-wrong-wrong"]
)
def test_missing_or_wrong_key_is_401(api: ApiServer, header: str | None) -> None:
    with api.client("") as http:
        for method, path in (("GET", "/v1/models"), ("POST", "/v1/files"), ("POST", "/v1/chat/completions")):
            answer = http.request(method, path, headers={} if header is None else {"authorization": header})
            error = error_of(answer)
            assert answer.status_code == 401
            assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
            assert "wrong-wrong" not in error["message"]


def test_sdk_raises_authentication_error(api: ApiServer) -> None:
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{api.url}/v1", api_key="wrong", max_retries=0).models.list()


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/nothing", "/v1/files/a/b", "/v1/fine_tuning/jobs/a/rewind", "/schema"]
)
def test_unknown_route_is_404(api: ApiServer, path: str) -> None:
    with api.client() as http:
        answer = http.get(path)
    assert answer.status_code == 404
    assert error_of(answer)["code"] == "unknown_url"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/v1/models"),
        ("DELETE", "/v1/files"),
        ("PATCH", "/v1/fine_tuning/jobs"),
        ("GET", "/v1/completions"),
    ],
)
def test_wrong_method_is_405(api: ApiServer, method: str, path: str) -> None:
    with api.client() as http:
        answer = http.request(method, path)
    assert answer.status_code == 405
    assert error_of(answer)["code"] == "method_not_allowed"
    assert answer.headers["allow"]


BODIES: list[tuple[bytes, str]] = [
    (b"", "empty"),
    (b"   ", "empty"),
    (b"{", "JSON"),
    (b'{"model": "x"} x', "JSON"),
    (b"nonsense", "JSON"),
    (b"[]", "object"),
    (b"null", "object"),
    (b'"text"', "object"),
    (b'{"model": "\xff"}', "UTF-8"),
    (b'{"model": "x", "other": "\xff"}', "UTF-8"),
    (b'{"model": "\\ud800"}', "JSON"),
    (b'{"model": NaN}', "JSON"),
    (b'{"model": "x", "deep": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested"),
    (b"{" * 100_000, "JSON"),
    ('{"model": "x"}'.encode("utf-16"), "UTF-8"),
    (b"\xef\xbb\xbf{}", "JSON"),
]


@pytest.mark.parametrize(("body", "word"), BODIES, ids=range(len(BODIES)))
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/fine_tuning/jobs"])
def test_bad_json_is_400(api: ApiServer, path: str, body: bytes, word: str) -> None:
    with api.client() as http:
        answer = http.post(path, content=body, headers={"content-type": "application/json"})
    error = error_of(answer)
    assert answer.status_code == 400, answer.text
    assert error["type"] == "invalid_request_error"
    if path != "/v1/fine_tuning/jobs":
        assert word in error["message"], error["message"]


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "ÿ"]
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/fine_tuning/jobs"])
def test_wrong_content_type_is_415(api: ApiServer, path: str, kind: str) -> None:
    with api.client() as http:
        answer = http.post(path, content=b'{"model": "x"}', headers={b"content-type": kind.encode("latin-1")})
    assert answer.status_code == 415
    assert error_of(answer)["code"] == "unsupported_media_type"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/fine_tuning/jobs"])
def test_huge_body_is_413(api: ApiServer, path: str) -> None:
    body = b'{"model": "' + b"x" * (2 << 20) + b'"}'
    with api.client() as http:
        kind = {"content-type": "application/json"}
        for content in (body, iter([body])):
            answer = http.post(path, content=content, headers=kind)
            assert answer.status_code == 413
            assert error_of(answer)["code"] == "request_too_large"


@pytest.mark.parametrize(
    ("path", "param"),
    [
        ("/v1/files?limit=0", "limit"),
        ("/v1/files?limit=10001", "limit"),
        ("/v1/files?limit=ten", "limit"),
        ("/v1/files?limit=", "limit"),
        ("/v1/files?limit=99999999999999999999999", "limit"),
        ("/v1/files?order=sideways", "order"),
        ("/v1/fine_tuning/jobs?limit=0", "limit"),
        ("/v1/fine_tuning/jobs?limit=-1", "limit"),
        ("/v1/fine_tuning/jobs/ftjob-x/events?limit=0", "limit"),
        ("/v1/fine_tuning/jobs/ftjob-x/checkpoints?limit=1.5", "limit"),
    ],
)
def test_wrong_query_is_400_and_names_the_parameter(api: ApiServer, path: str, param: str) -> None:
    with api.client() as http:
        answer = http.get(path)
    assert answer.status_code == 400, answer.text
    assert error_of(answer)["param"] == param


@pytest.mark.parametrize(
    "path", ["/v1/files?after=file-x", "/v1/fine_tuning/jobs?after=ftjob-x", "/v1/files/%00", "/v1/files/%FF%FE"]
)
def test_unknown_ids_are_404(api: ApiServer, path: str) -> None:
    with api.client() as http:
        answer = http.get(path)
    assert answer.status_code == 404
    error_of(answer)


def test_empty_cursor_starts_from_the_beginning(api: ApiServer) -> None:
    with api.client() as http:
        assert http.get("/v1/files?after=&purpose=").json()["data"] == []
        assert http.get("/v1/fine_tuning/jobs?after=").json()["data"] == []


@pytest.mark.parametrize(
    "raw",
    [
        b"GET /v1/models HTTP/1.1\r\nhost: a b\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nhost: x\r\nauthorization: Bearer \xff\xfe\r\n\r\n",
        b"GET /v1/models?limit=%ff&x=%00 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"FROBNICATE /v1/models HTTP/1.1\r\nhost: x\r\n\r\n",
        b"POST /v1/fine_tuning/jobs HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999999999999\r\n\r\n",
    ],
)
def test_odd_requests_do_not_break_the_server(api: ApiServer, raw: bytes) -> None:
    with socket.create_connection(("127.0.0.1", api.settings.port)) as connection:
        connection.sendall(raw)
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 4"), answer
    assert b"Traceback" not in answer


def test_document_and_health_need_no_key(api: ApiServer) -> None:
    with api.client("") as http:
        assert http.get("/healthz").json() == {"status": "ok"}
        assert http.get("/openapi.json").json()["openapi"].startswith("3.1")
        assert http.get("/readyz").status_code == 503
