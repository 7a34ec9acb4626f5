"""Files: the SDK's calls, uploads that go wrong, and how much memory a large one takes."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import httpx2
import msgspec
import openai
import psutil
import pytest

from services.api.files.names import attachment
from services.api.files.sweeper import Sweeper
from services.api.files.uploads import Uploads
from shared import keys
from shared.blobs.local import LocalBlobs
from shared.errors import StoreUnavailable
from shared.paths import Paths
from shared.records import FileRecord
from shared.store.audit import AuditStore
from shared.store.client import Client
from shared.store.files import FileStore
from shared.store.uploads import UploadStore
from shared.token_cache import Meta
from tests.api_server import ApiServer, know_key, wait_until, with_store

LINES = b'{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}\n' * 12


def sdk(api: ApiServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{api.url}/v1", api_key=api.key, max_retries=0)


def left_behind(api: ApiServer) -> list[str]:
    """Names of partial uploads, of files in the data folder, and of those that wait for their record."""
    hidden = [path.name for folder in (api.paths.partial, api.paths.unrecorded) for path in folder.iterdir()]
    return sorted(hidden + [path.name for path in api.paths.files.iterdir() if not path.name.startswith(".")])


@pytest.fixture(autouse=True)
def clean_folder(api: ApiServer) -> Iterator[None]:
    for name in left_behind(api):
        shutil.rmtree(api.paths.files / name, ignore_errors=True)
        api.paths.unrecorded_mark(name).unlink(missing_ok=True)
    yield


def test_file_comes_back_as_it_went_in(api: ApiServer, tmp_path: Path) -> None:
    path = tmp_path / "train ü.jsonl"
    path.write_bytes(LINES)
    with path.open("rb") as handle:
        made = sdk(api).files.create(file=handle, purpose="fine-tune")
    assert made.id.startswith("file-")
    assert (made.object, made.bytes, made.filename, made.purpose, made.status) == (
        "file", len(LINES), "train ü.jsonl", "fine-tune", "processed",
    )  # fmt: skip
    answer = sdk(api).files.content(made.id)
    assert answer.read() == LINES
    assert answer.response.headers["content-type"] == "application/octet-stream"
    assert answer.response.headers["content-disposition"] == (
        "attachment; filename=\"train _.jsonl\"; filename*=UTF-8''train%20%C3%BC.jsonl"
    )
    assert sdk(api).files.retrieve(made.id).to_dict() == made.to_dict()
    folder = api.paths.file_folder(made.id)
    assert sorted(path.name for path in folder.iterdir()) == ["content", "manifest.json"]


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_files_are_deleted_while_they_are_listed(api: ApiServer, redis_url: str, order: Literal["asc", "desc"]) -> None:
    client = sdk(api)
    made = [client.files.create(file=(f"{n}.jsonl", LINES), purpose="fine-tune").id for n in range(7)]
    seen = []
    for file in client.files.list(limit=3, order=order):
        client.files.delete(file.id)
        seen.append(file.id)
    assert seen == (made if order == "asc" else made[::-1])
    assert client.files.list(after=made[3]).data == []
    foreign = openai.OpenAI(base_url=f"{api.url}/v1", api_key=know_key(redis_url, "sk-foreign", project="proj_foreign"))
    for stranger, after in ((foreign, made[3]), (client, "file-unknown"), (client, "proj_foreign file-unknown")):
        with pytest.raises(openai.NotFoundError) as refused:
            stranger.files.list(after=after)
        assert refused.value.param == "after"


def test_place_of_a_deleted_file_is_forgotten_in_an_hour(api: ApiServer, redis_url: str) -> None:
    made = sdk(api).files.create(file=("a.jsonl", LINES), purpose="fine-tune").id
    sdk(api).files.delete(made)
    place = keys.place(keys.files("proj_default"), made)
    assert 3500 < with_store(redis_url, lambda client: client.call("TTL", place)) <= 3600


def test_async_sdk_uploads_bytes_without_a_name(api: ApiServer) -> None:
    async def upload() -> openai.types.FileObject:
        async with openai.AsyncOpenAI(base_url=f"{api.url}/v1", api_key=api.key) as client:
            return await client.files.create(file=b"Example data", purpose="fine-tune")

    made = asyncio.run(upload())
    assert (made.filename, made.bytes) == ("upload", 12)


@pytest.mark.parametrize("name", ["a b.jsonl", 'say "hi".jsonl', "训练.jsonl"])
def test_any_name_of_a_file_comes_back_with_its_content(api: ApiServer, name: str) -> None:
    made = sdk(api).files.create(file=(name, LINES), purpose="fine-tune")
    assert made.filename == name
    answer = sdk(api).files.content(made.id)
    assert answer.read() == LINES
    assert answer.response.headers["content-disposition"] == attachment(name)


def test_empty_file_is_stored(api: ApiServer) -> None:
    made = sdk(api).files.create(file=("empty.jsonl", b""), purpose="fine-tune")
    assert made.bytes == 0
    assert sdk(api).files.content(made.id).read() == b""


def test_file_may_come_before_its_purpose(api: ApiServer) -> None:
    with api.client() as http:
        parts = [("file", ("a.jsonl", b"x" * 3_000_000)), ("purpose", (None, b"batch"))]
        made = http.post("/v1/files", files=parts).json()
    assert (made["bytes"], made["purpose"]) == (3_000_000, "batch")
    assert made["expires_at"] == made["created_at"] + 30 * 86_400


def test_expiry_is_kept_and_an_expired_file_is_gone(api: ApiServer, redis_url: str) -> None:
    after = {"anchor": "created_at", "seconds": 3600}
    made = sdk(api).files.create(file=("a.txt", b"a"), purpose="user_data", expires_after=after)  # type: ignore[arg-type]
    assert made.expires_at == made.created_at + 3600
    old = FileRecord(
        id="file-old", project="proj_default", filename="a", purpose="user_data", size_bytes=0, sha256="",
        created_at=1, expires_at=2,
    )  # fmt: skip
    with_store(redis_url, lambda client: FileStore(client).add(old))
    with pytest.raises(openai.NotFoundError):
        sdk(api).files.retrieve("file-old")
    assert [item.id for item in sdk(api).files.list()] == [made.id]


def test_list_pages_orders_and_filters(api: ApiServer) -> None:
    client = sdk(api)
    ids = [client.files.create(file=(f"{n}.txt", b"x"), purpose="user_data").id for n in range(5)]
    other = client.files.create(file=("t.jsonl", b"x"), purpose="fine-tune").id
    assert [item.id for item in client.files.list()] == [other, *reversed(ids)]
    assert [item.id for item in client.files.list(order="asc", limit=2)] == [*ids, other]
    assert [item.id for item in client.files.list(purpose="fine-tune")] == [other]
    page = client.files.list(limit=2, purpose="user_data", after=ids[4])
    assert ([item.id for item in page.data], page.has_more) == ([ids[3], ids[2]], True)


def test_deleted_file_leaves_nothing(api: ApiServer) -> None:
    made = sdk(api).files.create(file=("a.txt", b"x"), purpose="user_data")
    assert sdk(api).files.delete(made.id).to_dict() == {"id": made.id, "object": "file", "deleted": True}
    assert left_behind(api) == []
    for call in (sdk(api).files.delete, sdk(api).files.retrieve, sdk(api).files.content):
        with pytest.raises(openai.NotFoundError, match="No such File object"):
            call(made.id)


def test_deleted_file_takes_its_tokens_with_it(api: ApiServer) -> None:
    made = sdk(api).files.create(file=("a.jsonl", LINES), purpose="fine-tune")
    tokens = api.paths.tokens
    for name, content in (("mine", LINES), ("other", b"another")):
        meta = Meta(
            format="chat", sides=1, rows=0, tokens=0, checksums={}, pieces="p",
            file_sha256=hashlib.sha256(content).hexdigest(),
        )  # fmt: skip
        (tokens / name).mkdir(parents=True)
        (tokens / name / "meta.json").write_bytes(msgspec.json.encode(meta))
    sdk(api).files.delete(made.id)
    assert [entry.name for entry in tokens.iterdir()] == ["other"]


def test_foreign_project_sees_nothing(api: ApiServer, redis_url: str) -> None:
    made = sdk(api).files.create(file=("a.txt", b"x"), purpose="user_data")
    with api.client(know_key(redis_url, "sk-of-somebody-else", project="proj_other")) as http:
        assert http.get("/v1/files").json()["data"] == []
        for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
            answer = http.request(method, f"/v1/files/{made.id}{path}")
            unknown = http.request(method, f"/v1/files/file-unknown{path}")
            assert answer.status_code == unknown.status_code == 404
            assert answer.text.replace(made.id, "file-unknown") == unknown.text


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\data\\train.jsonl", "train.jsonl"),
        ("..", "upload"),
        ('a"b.jsonl', 'a"b.jsonl'),
        ("x" * 400, "x" * 255),
    ],
)
def test_names_of_files_are_made_safe(api: ApiServer, given: str, stored: str) -> None:
    made = sdk(api).files.create(file=(given, b"x"), purpose="user_data")
    assert made.filename == stored
    assert sdk(api).files.content(made.id).read() == b"x"


def form(*parts: tuple[str, str | None, bytes], boundary: str = "b0undary") -> tuple[bytes, str]:
    """Write a form by hand; returns the body and its content type."""
    body = b""
    for name, filename, data in parts:
        named = f'; filename="{filename}"' if filename else ""
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'
        body += head.encode() + data + b"\r\n"
    return body + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


FILE = ("file", "a.jsonl", b"data")
PURPOSE = ("purpose", None, b"fine-tune")
ANCHOR, SECONDS = "expires_after[anchor]", "expires_after[seconds]"


@pytest.mark.parametrize(
    ("parts", "param", "code"),
    [
        ([PURPOSE], "file", "missing_required_parameter"),
        ([FILE], "purpose", "missing_required_parameter"),
        ([], "purpose", "missing_required_parameter"),
        ([("purpose", None, b"world domination"), FILE], "purpose", "invalid_value"),
        ([FILE, ("purpose", None, b"\xff")], "purpose", None),
        ([PURPOSE, FILE, ("colour", None, b"red")], "colour", "unknown_parameter"),
        ([PURPOSE, FILE, FILE], "file", None),
        ([PURPOSE, (SECONDS, None, b"3600"), FILE], "expires_after.anchor", "invalid_value"),
        ([PURPOSE, (ANCHOR, None, b"created_at"), FILE], "expires_after.seconds", "invalid_value"),
        (
            [PURPOSE, (ANCHOR, None, b"created_at"), (SECONDS, None, b"5"), FILE],
            "expires_after.seconds",
            "invalid_value",
        ),
        ([PURPOSE, (ANCHOR, None, b"x" * 5000), FILE], ANCHOR, None),
    ],
)
def test_wrong_form_is_refused_and_leaves_nothing(
    api: ApiServer, parts: list[tuple[str, str | None, bytes]], param: str, code: str | None
) -> None:
    body, kind = form(*parts)
    with api.client() as http:
        answer = http.post("/v1/files", content=body, headers={"content-type": kind})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)
    assert left_behind(api) == []


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"", "multipart/form-data; boundary=b0undary", 400),
        (form(PURPOSE, FILE)[0][:-20], "multipart/form-data; boundary=b0undary", 400),
        (b"--other\r\n\r\n", "multipart/form-data; boundary=b0undary", 400),
        (b"--b0undary\r\nnonsense\r\n\r\nx\r\n--b0undary--\r\n", "multipart/form-data; boundary=b0undary", 400),
        (form(PURPOSE, FILE)[0], "multipart/form-data", 415),
        (b"{}", "application/json", 415),
        (b"purpose=fine-tune", "application/x-www-form-urlencoded", 415),
    ],
)
def test_malformed_upload_is_refused_and_leaves_nothing(api: ApiServer, body: bytes, kind: str, status: int) -> None:
    with api.client() as http:
        answer = http.post("/v1/files", content=body, headers={"content-type": kind})
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert left_behind(api) == []


def test_announced_body_that_is_too_large_is_refused_before_it_is_sent(api: ApiServer) -> None:
    head = upload_head(api, "multipart/form-data; boundary=b0undary", api.settings.max_file_bytes + (2 << 20))
    with socket.create_connection(("127.0.0.1", api.settings.port)) as connection:
        connection.settimeout(20)
        connection.sendall(head)
        answer = b""
        while b'"}}' not in answer and b"null}}" not in answer:
            answer += connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"code":"request_too_large"' in answer


def test_file_that_turns_out_too_large_is_413_and_leaves_nothing(api: ApiServer) -> None:
    opening = form(FILE)[0].partition(b"data\r\n")[0]
    pieces = [b"x" * (1 << 20)] * ((api.settings.max_file_bytes >> 20) + 1)
    with api.client() as http:
        kind = "multipart/form-data; boundary=b0undary"
        answer = http.post("/v1/files", content=iter([opening, *pieces]), headers={"content-type": kind})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
    assert left_behind(api) == []


def upload_head(api: ApiServer, kind: str, size_bytes: int) -> bytes:
    return (
        f"POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {api.key}\r\n"
        f"content-type: {kind}\r\ncontent-length: {size_bytes}\r\n\r\n"
    ).encode()


def test_cut_off_upload_leaves_nothing(api: ApiServer) -> None:
    body, kind = form(PURPOSE, ("file", "a.jsonl", b"x" * 5_000_000))
    with socket.create_connection(("127.0.0.1", api.settings.port)) as connection:
        connection.sendall(upload_head(api, kind, len(body)) + body[:4_000_000])
        wait_until(lambda: left_behind(api))
    wait_until(lambda: not left_behind(api))
    with api.client() as http:
        assert http.get("/v1/files").json()["data"] == []


def test_large_upload_and_download_do_not_grow_the_process(api: ApiServer) -> None:
    size = 300 << 20
    process = psutil.Process(api.process.pid)
    with api.client() as http:
        http.post("/v1/files", files={"file": ("warm-up", b"x" * (4 << 20)), "purpose": (None, "user_data")})
        before = process.memory_info().rss
        peak = 0

        def pieces() -> Iterator[bytes]:
            nonlocal peak
            head, _, tail = form(PURPOSE, FILE)[0].partition(b"data\r\n")
            yield head
            for _ in range(size >> 20):
                yield b"x" * (1 << 20)
                peak = max(peak, process.memory_info().rss)
            yield b"\r\n" + tail

        kind = "multipart/form-data; boundary=b0undary"
        made = http.post("/v1/files", content=pieces(), headers={"content-type": kind}).json()
        assert made["bytes"] == size
        received = 0
        with http.stream("GET", f"/v1/files/{made['id']}/content") as content:
            for piece in content.iter_raw():
                received += len(piece)
                peak = max(peak, process.memory_info().rss)
        http.delete(f"/v1/files/{made['id']}")
    assert received == size
    assert peak - before < 64 << 20, f"grew by {(peak - before) >> 20} MiB"


def test_partial_uploads_of_a_dead_process_are_cleared_at_start(api: ApiServer, redis_url: str, tmp_path: Path) -> None:
    stale, fresh = tmp_path / "files/.partial/file-stale", tmp_path / "files/.partial/file-fresh"
    for folder in (stale, fresh):
        folder.mkdir(parents=True)
        (folder / "content").write_bytes(b"x")
    for path in (stale / "content", stale):
        os.utime(path, (1, 1))
    server = ApiServer(tmp_path, redis_url)
    server.stop()
    assert (stale.exists(), fresh.exists()) == (False, True)


class Interrupted(FileStore):
    """Answers as usual, and lets something happen when it is asked for the `nth` time whether a file exists."""

    def __init__(self, client: Client, nth: int, event: Callable[[], Awaitable[None]]) -> None:
        super().__init__(client)
        self.nth = nth
        self.event = event

    async def exists(self, file_id: str) -> bool:
        self.nth -= 1
        if self.nth == 0:
            await self.event()
        return await super().exists(file_id)


def sweep(redis_url: str, paths: Paths, now: float, *, nth: int = 0, event: Any = None) -> None:
    async def run(client: Client) -> None:
        files = Interrupted(client, nth, event)
        storage = Uploads(files, LocalBlobs(paths), max_file_bytes=1)
        await Sweeper(files, UploadStore(client), storage, LocalBlobs(paths), AuditStore(client)).sweep(now)

    with_store(redis_url, run)


@pytest.fixture
def refused_file(api: ApiServer, redis_url: str) -> str:
    """A file whose record the database did not take."""

    def body() -> Iterator[bytes]:
        yield b'--x\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        # the request is noted in the audit log by now, which takes memory too
        wait_until(lambda: with_store(redis_url, lambda client: client.call("HLEN", keys.AUDIT_PENDING)) == 1)
        with_store(redis_url, lambda client: client.call("CONFIG", "SET", "maxmemory", 1))
        yield b'--x\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\nx\r\n--x--\r\n'

    try:
        with api.client() as http:
            form = {"content-type": "multipart/form-data; boundary=x"}
            answer = http.post("/v1/files", content=body(), headers=form)
    finally:
        with_store(redis_url, lambda client: client.call("CONFIG", "SET", "maxmemory", 0))
    assert answer.json()["error"]["code"] == "store_unavailable"
    (mark,) = api.paths.unrecorded.iterdir()
    assert api.paths.file_content(mark.name).exists()
    return mark.name


def test_file_that_was_never_recorded_is_swept_after_an_hour(api: ApiServer, redis_url: str, refused_file: str) -> None:
    folder = api.paths.file_folder(refused_file)
    kept = sdk(api).files.create(file=("a", b"x"), purpose="user_data").id
    sweep(redis_url, api.paths, time.time() + 3500)
    assert folder.exists()
    sweep(redis_url, api.paths, time.time() + 3700)
    assert left_behind(api) == [kept]


def test_emptied_database_costs_no_file_that_was_recorded(api: ApiServer, redis_url: str) -> None:
    made = sdk(api).files.create(file=("a", b"x"), purpose="user_data").id
    with_store(redis_url, lambda client: client.call("DEL", keys.file(made)))
    sweep(redis_url, api.paths, time.time() + 86_400)
    assert left_behind(api) == [made]


def record_of(api: ApiServer, file_id: str) -> FileRecord:
    return msgspec.json.decode((api.paths.file_folder(file_id) / "manifest.json").read_bytes(), type=FileRecord)


def test_recorded_file_loses_only_its_mark(api: ApiServer, redis_url: str, refused_file: str) -> None:
    record = record_of(api, refused_file)
    with_store(redis_url, lambda client: FileStore(client).add(record))
    sweep(redis_url, api.paths, time.time() + 3700)
    assert left_behind(api) == [refused_file] and sdk(api).files.content(refused_file).read() == b"x"


def test_file_that_is_recorded_while_it_is_swept_is_put_back(api: ApiServer, redis_url: str, refused_file: str) -> None:
    record = record_of(api, refused_file)

    async def recorded() -> None:
        client = Client(redis_url)
        await FileStore(client).add(record)
        await client.close()

    sweep(redis_url, api.paths, time.time() + 3700, nth=2, event=recorded)
    assert sdk(api).files.content(refused_file).read() == b"x"


def test_file_that_is_tried_again_while_it_is_swept_is_put_back(
    api: ApiServer, redis_url: str, refused_file: str
) -> None:
    now = time.time() + 3700

    async def marked() -> None:
        os.utime(api.paths.unrecorded_mark(refused_file), (now, now))

    sweep(redis_url, api.paths, now, nth=1, event=marked)
    assert left_behind(api) == sorted([refused_file, refused_file])


def test_database_that_is_away_costs_no_file(api: ApiServer, redis_url: str, refused_file: str) -> None:
    async def away() -> None:
        raise StoreUnavailable("away")

    for nth in (1, 2):
        with pytest.raises(StoreUnavailable):
            sweep(redis_url, api.paths, time.time() + 3700, nth=nth, event=away)
        assert left_behind(api) == [refused_file, refused_file]


def test_content_that_is_gone_is_404(api: ApiServer) -> None:
    made = sdk(api).files.create(file=("a.txt", b"x"), purpose="user_data")
    api.paths.file_content(made.id).unlink()
    with api.client() as http:
        answer: httpx2.Response = http.get(f"/v1/files/{made.id}/content")
    assert (answer.status_code, answer.json()["error"]["param"]) == (404, "id")
