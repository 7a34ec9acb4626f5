"""Requests that are wrong in one way or several, as bytes on the wire. The same seed gives the same requests."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

ROUTES: list[tuple[str, str, Any]] = [
    (
        "POST",
        "/v1/fine_tuning/jobs",
        {
            "model": "org/tiny-base",
            "training_file": "file-x",
            "seed": 1,
            "suffix": "a",
            "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1}}},
            "metadata": {"a": "b"},
        },
    ),
    (
        "POST",
        "/v1/chat/completions",
        {
            "model": "org/tiny-base",
            "messages": [{"role": "user", "content": "hi"}],
            "store": True,
            "metadata": {"a": "b"},
            "n": 1,
            "stop": ["a"],
            "tools": [],
        },
    ),
    ("POST", "/v1/completions", {"model": "org/tiny-base", "prompt": "hi", "logit_bias": {"1": 1}}),
    ("POST", "/v1/responses", {"model": "org/tiny-base", "input": "hi", "tools": [], "store": True}),
    ("POST", "/v1/embeddings", {"model": "org/tiny-base", "input": ["a", "b"]}),
    (
        "POST",
        "/v1/messages",
        {"model": "org/tiny-base", "max_tokens": 5, "messages": [{"role": "user", "content": "a"}]},
    ),
    ("POST", "/v1/batches", {"input_file_id": "file-x", "endpoint": "/v1/completions", "completion_window": "24h"}),
    ("POST", "/v1/uploads", {"filename": "a", "bytes": 3, "mime_type": "text/jsonl", "purpose": "fine-tune"}),
    ("POST", "/v1/webhook_endpoints", {"name": "n", "url": "https://93.184.216.34/", "event_types": ["batch.failed"]}),
    ("POST", "/v1/aliases", {"name": "fuzz", "model": "org/tiny-base"}),
    ("POST", "/v1/models/import", {"base": "org/tiny-base", "files": {"adapter_config.json": "file-a"}}),
    ("POST", "/v1/organization/projects", {"name": "n"}),
    ("GET", "/v1/files", None),
    ("GET", "/v1/models", None),
    ("GET", "/v1/fine_tuning/jobs", None),
    ("GET", "/v1/fine_tuning/jobs/ftjob-x/events", None),
    ("GET", "/v1/chat/completions", None),
    ("GET", "/v1/files/file-x/content", None),
    ("DELETE", "/v1/files/file-x", None),
    ("GET", "/v1/batches", None),
    ("GET", "/docs", None),
    ("GET", "/openapi.json", None),
    ("GET", "/healthz", None),
]

_ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    1.5,
    2**63,
    2**70,
    1e308,
    "",
    "\x00",
    "ÿ",
    "\ud800",
    "a" * 5000,
    [],
    {},
    [[]],
    {"": {}},
    "../..",
    "file-" + "x" * 300,
    "ft:a:b:c:d",
    "a:b/c",
    ["a"] * 300,
    "%s%n",
    "${jndi:ldap://x}",
    "'; --",
    "\r\nx: y",
    "${7*7}",
]
_SEGMENTS = [
    "..",
    ".",
    "%2e%2e",
    "%2F",
    "%00",
    "%ff",
    "%0d%0a",
    "a" * 3000,
    "ft:x:y:z:w",
    "%u0041",
    ";",
    "~",
    "*",
    "{id}",
]
_QUERIES = [
    "limit=0",
    "limit=-1",
    "limit=999999999999999999999",
    "limit=ten",
    "after=",
    "after=%00",
    "after=file-x",
    "order=up",
    "limit=1&limit=2",
    "&&&&",
    "=",
    "%ff=%ff",
    "a" * 4000,
    "metadata[a]=b",
    "metadata[]=",
    "include[]=x" * 50,
    "model=%2F",
]
_HEADERS = [
    b"authorization: Bearer ",
    b"authorization: Basic YTpi",
    b"authorization: Bearer \xff\xfe",
    b"accept: \x80",
    b"content-type: multipart/form-data",
    b"content-type: text/plain",
    b"content-type: application/json; charset=utf-16",
    b"content-type: multipart/form-data; boundary=" + b"b" * 300,
    b"idempotency-key: " + b"k" * 5000,
    b"x: " + b"y" * 9000,
    b"content-encoding: gzip",
    b"expect: 100-continue",
    b"expect: nonsense",
    b"range: bytes=9-1",
    b"host: a b",
    b"upgrade: websocket\r\nconnection: upgrade",
    b"openai-project: ../..",
    b"openai-organization: \x01",
    b"cookie: a=b",
    b"if-none-match: *",
    b"content-length: -1",
    b"content-length: 1e3",
    b"transfer-encoding: gzip, chunked",
    b": empty",
    b"bad header: x",
    b"x\x00y: z",
    b" folded: x",
    b"x-http-method-override: DELETE",
    b"forwarded: for=127.0.0.1",
]
_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "CONNECT", "BREW", "get"]
_BOUNDARY = b"b0undary"


def malformed(seed: int, count: int, key: str) -> Iterator[bytes]:
    """Yield `count` requests, most of them with a good key, each to be sent on a connection of its own."""
    rng = random.Random(seed)
    kinds: list[Callable[[random.Random, str], bytes]] = [
        *(_json_request, _json_request, _json_request, _broken_json, _form, _form, _addressed, _headed),
        *(_chunked, _garbage, _pipelined),
    ]
    for _ in range(count):
        yield rng.choice(kinds)(rng, key)


def _request(rng: random.Random, key: str, method: str, path: str, body: bytes, *more: bytes, kind: bytes) -> bytes:
    auth = [b"authorization: Bearer " + key.encode()] if rng.random() < 0.9 else []
    headers = [b"host: x", b"connection: close", *auth, b"content-type: " + kind, *more]
    if body or method == "POST":
        headers.append(b"content-length: %d" % len(body))
    return f"{method} {path} HTTP/1.1\r\n".encode("latin-1", "replace") + b"\r\n".join(headers) + b"\r\n\r\n" + body


def _json_request(rng: random.Random, key: str) -> bytes:
    method, path, body = rng.choice(ROUTES)
    raw = b"" if body is None else json.dumps(_twisted(rng, body)).encode()
    query = "?" + rng.choice(_QUERIES) if rng.random() < 0.3 else ""
    return _request(rng, key, method, path + query, raw, kind=b"application/json")


def _twisted(rng: random.Random, value: Any) -> Any:
    """Replace, drop, double or rename something inside, often nothing."""
    if rng.random() < 0.12:
        return rng.choice(_ODD)
    if isinstance(value, dict):
        changed = {name: _twisted(rng, item) for name, item in value.items() if rng.random() > 0.05}
        if rng.random() < 0.15:
            changed[str(rng.choice(_ODD))[:200]] = rng.choice(_ODD)
        return changed
    if isinstance(value, list):
        return [_twisted(rng, item) for item in value] * rng.choice([1, 1, 1, 2, 50])
    return value


def _broken_json(rng: random.Random, key: str) -> bytes:
    method, path, body = rng.choice([route for route in ROUTES if route[2] is not None])
    raw = json.dumps(body).encode()
    at, depth = rng.randrange(len(raw)), rng.choice([50, 500, 5000, 100_000])
    bracket = rng.choice([b"[", b'{"a":'])
    broken = rng.choice(
        [
            raw[:at],
            raw + raw,
            raw[:at] + bytes([rng.randrange(256)]) + raw[at + 1 :],
            raw[:at] + rng.randbytes(8) + raw[at:],
            bracket * depth,
            b'{"model":' + b"[" * depth + b"]" * depth + b"}",
            b"",
            b"\xff\xfe" + raw,
            raw.replace(b'"', b"'"),
            b'{"model":"a","model":"b"}',
            b'{"seed":1e999}',
            b'{"model":NaN}',
            b'{"model":"\\ud800"}',
            b"\x00" * 100,
            rng.randbytes(200),
            b'"' + b"a" * 100_000 + b'"',
            b"[" + b"1," * 50_000 + b"1]",
        ]
    )
    return _request(rng, key, method, path, broken, kind=b"application/json")


def _form(rng: random.Random, key: str) -> bytes:
    """Make a file's form: parts missing, doubled, without end, with odd names and lines."""
    lines = [
        json.dumps({"messages": [{"role": "user", "content": "hi"}]}).encode(),
        b"{",
        b"[" * 2000,
        rng.randbytes(300),
    ]
    parts = [
        b'content-disposition: form-data; name="purpose"\r\n\r\n'
        + rng.choice([b"fine-tune", b"batch", b"x" * 5000, b"\xff"]),
        b'content-disposition: form-data; name="file"; filename="'
        + rng.choice([b"a.jsonl", b"../../x", b"\xff", b"a" * 999])
        + b'"\r\n\r\n'
        + b"\n".join(rng.choices(lines, k=rng.randrange(5))),
        b'content-disposition: form-data; name="other"\r\n\r\nx',
        b"\r\n\r\nx",
        b"content-disposition: form-data\r\n\r\nx",
        b"content-disposition: form-data; name=file; filename*=UTF-8''%ff\r\n\r\nx",
        b"a" * 9000 + b"\r\n\r\nx",
        rng.randbytes(99),
    ]
    chosen = parts[:2] if rng.random() < 0.4 else rng.choices(parts, k=rng.randrange(40 if rng.random() < 0.1 else 5))
    body = b"".join(b"--" + _BOUNDARY + b"\r\n" + part + b"\r\n" for part in chosen) + b"--" + _BOUNDARY + b"--\r\n"
    if rng.random() < 0.4:
        body = body[: rng.randrange(len(body))]
    path = rng.choice(["/v1/files", "/v1/files", "/v1/uploads/upload_x/parts"])
    return _request(rng, key, "POST", path, body, kind=b"multipart/form-data; boundary=" + _BOUNDARY)


def _addressed(rng: random.Random, key: str) -> bytes:
    _, path, _ = rng.choice(ROUTES)
    parts = path.split("/")
    parts.insert(rng.randrange(1, len(parts) + 1), rng.choice(_SEGMENTS))
    query = "?" + rng.choice(_QUERIES) if rng.random() < 0.5 else ""
    return _request(rng, key, rng.choice(_METHODS), "/".join(parts) + query, b"", kind=b"application/json")


def _headed(rng: random.Random, key: str) -> bytes:
    method, path, body = rng.choice(ROUTES)
    raw = b"" if body is None else json.dumps(body).encode()
    more = rng.choices(_HEADERS, k=rng.choice([1, 1, 2, 5, 150]))
    return _request(rng, key, method, path, raw, *more, kind=b"application/json")


def _chunked(rng: random.Random, key: str) -> bytes:
    method, path, body = rng.choice([route for route in ROUTES if route[2] is not None])
    raw = json.dumps(body).encode()
    size = rng.choice(
        [b"%x" % len(raw), b"%x" % (len(raw) - 1), b"ffffffffffffffff", b"-1", b"zz", b"%x;a=b" % len(raw), b""]
    )
    end = rng.choice(
        [b"0\r\n\r\n", b"0\r\nauthorization: Bearer x\r\n\r\n", b"0\r\n" + b"t: " + b"y" * 9000 + b"\r\n\r\n", b""]
    )
    head = f"{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {key}\r\n".encode()
    return head + b"transfer-encoding: chunked\r\n\r\n" + size + b"\r\n" + raw + b"\r\n" + end


def _garbage(rng: random.Random, _key: str) -> bytes:
    return rng.choice(
        [
            rng.randbytes(rng.randrange(1, 2000)),
            b"\x16\x03\x01" + rng.randbytes(200),
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
            b"GET\r\n\r\n",
            b"\r\n" * 500,
            b"GET /" + b"a" * 70_000,
            b"\x00" * 500,
            b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 5000,
            b"GET /v1/models HTTP/1.1\n\n",
            b"*1\r\n$4\r\nPING\r\n",
        ]
    )


def _pipelined(rng: random.Random, key: str) -> bytes:
    one = _json_request(rng, key).replace(b"connection: close", b"connection: keep-alive")
    return one * rng.randrange(1, 4) + _json_request(rng, key)
