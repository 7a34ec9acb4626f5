"""Limits: exactly as much as is allowed passes, whoever asks at once; the headers say what is left."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from msgspec.structs import replace

from services.api.auth import PUBLIC
from services.api.routes import ROUTES
from services.api.scopes import needed
from shared import keys
from shared.batch_records import BatchRecord
from shared.batch_states import BatchState
from shared.errors import InvalidRequest, NotFound, RateLimited
from shared.projects import Limits
from shared.records import FileRecord
from shared.store.batches import BatchStore
from shared.store.client import Client
from shared.store.completions import CompletionStore, StoredCompletion
from shared.store.files import FileStore
from shared.store.limits import Bucket, LimitStore
from shared.store.projects import ProjectStore
from shared.store.registry import Registry
from shared.store.responses import ResponseStore, StoredResponse
from shared.store.uploads import PartRecord, UploadRecord, UploadStore
from tests.api_server import BASE, ApiServer, know_key, make_adapter, make_base, wait_until, with_store

PROJECTS = "/v1/organization/projects"
DURATION = re.compile(r"(\d+h)?(\d+m)?([\d.]+s)|\d+ms")


def new_key(api: ApiServer, project: str = "proj_default", **limits: int) -> str:
    with api.client() as http:
        body = {"name": "k", "selftune": {"limits": limits}}
        return str(http.post(f"{PROJECTS}/{project}/api_keys", json=body).json()["value"])


def new_project(api: ApiServer, **limits: int) -> str:
    with api.client() as http:
        body = {"name": "p", "selftune": {"limits": limits}}
        return str(http.post(PROJECTS, json=body).json()["id"])


def rate_headers(answer: httpx2.Response) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name.startswith("x-ratelimit-")}


def at_once(calls: int, call: Any) -> list[Any]:
    with ThreadPoolExecutor(max_workers=calls) as pool:
        return list(pool.map(lambda _: call(), range(calls)))


def test_exactly_as_many_requests_pass_as_are_allowed(api: ApiServer) -> None:
    with api.client(new_key(api, requests_per_minute=5)) as http:
        answers = at_once(12, lambda: http.get("/v1/models"))
    passed = [answer for answer in answers if answer.status_code == 200]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert (len(passed), len(refused)) == (5, 7)
    assert {int(answer.headers["x-ratelimit-remaining-requests"]) for answer in passed} == {0, 1, 2, 3, 4}
    for answer in refused:
        error = answer.json()["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
        assert re.search(r"Limit 5, Used 5, Requested 1\. Please try again in [\d.]+m?s\.", error["message"])
        assert 1 <= int(answer.headers["retry-after"]) <= 12
        assert "x-should-retry" not in answer.headers


def test_keys_of_a_project_share_its_limit(api: ApiServer) -> None:
    project = new_project(api, requests_per_minute=4)
    codes = []
    for key in (new_key(api, project), new_key(api, project, requests_per_minute=100)):
        with api.client(key) as http:
            answers = [http.get("/v1/files") for _ in range(3)]
        codes += [answer.status_code for answer in answers]
        assert answers[0].headers["x-ratelimit-limit-requests"] == "4"
    assert codes == [200, 200, 200, 200, 429, 429]


def test_request_that_the_project_refuses_is_not_taken_from_the_key(redis_url: str) -> None:
    async def story(client: Client) -> None:
        limits = LimitStore(client)
        own = Bucket(key=keys.request_bucket("key"), owner="key", per_minute=10)
        shared = Bucket(key=keys.request_bucket("project"), owner="project", per_minute=1)
        assert (await limits.take([own, shared], 1)).taken
        refused = await limits.take([own, shared], 1)
        assert not refused.taken and refused.retry_in_ms is not None and 59_000 < refused.retry_in_ms <= 60_000
        assert [level.left for level in refused.levels] == [9, 0]

    with_store(redis_url, story)


def test_bucket_fills_evenly_and_is_forgotten_when_full(redis_url: str) -> None:
    async def story(client: Client) -> None:
        limits = LimitStore(client)
        bucket = Bucket(key=keys.token_bucket("key"), owner="key", per_minute=600_000)  # 10 in a millisecond
        first = await limits.take([bucket], 1000)
        assert (first.levels[0].left, first.levels[0].full_in_ms) == (599_000, 100)
        while await client.call("EXISTS", bucket.key):
            await asyncio.sleep(0.01)
        assert (await limits.take([bucket], 600_000)).taken
        late = await limits.take([bucket], 600_000)
        assert not late.taken and late.retry_in_ms is not None
        assert (await limits.take([bucket], 600_001)).retry_in_ms is None

    with_store(redis_url, story)


def test_headers_are_on_every_answer_to_a_limited_caller_and_on_no_other(api: ApiServer) -> None:
    with api.client() as http:
        assert rate_headers(http.get("/v1/models")) == {}
    with api.client(new_key(api, requests_per_minute=60, tokens_per_minute=1000)) as http:
        answers = [
            http.get("/v1/models"),
            http.get("/v1/files/file-no"),
            http.post("/v1/fine_tuning/jobs", json={}),
            http.get(PROJECTS),
            http.get("/v1/files", params={"limit": "x"}),
        ]
        generated = http.post("/v1/chat/completions", json={"model": "no", "messages": []})
    assert [answer.status_code for answer in [*answers, generated]] == [200, 404, 400, 403, 400, 404]
    for answer in answers:
        assert set(rate_headers(answer)) == {
            "x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests",
        }  # fmt: skip
    headers = rate_headers(generated)
    assert headers["x-ratelimit-limit-tokens"] == "1000"
    tokens = -(-len(generated.request.content) // 4)
    assert int(headers["x-ratelimit-remaining-tokens"]) == 1000 - tokens
    for unit in ("requests", "tokens"):
        assert DURATION.fullmatch(headers[f"x-ratelimit-reset-{unit}"])


def test_tokens_are_the_prompt_and_the_longest_answer(api: ApiServer) -> None:
    body = {"model": "no", "messages": [{"role": "user", "content": "hi"}], "max_completion_tokens": 400, "n": 2}
    with api.client(new_key(api, tokens_per_minute=2000)) as http:
        answers = [http.post("/v1/chat/completions", json=body) for _ in range(3)]
        too_large = http.post("/v1/chat/completions", json={**body, "n": 6})
    assert [answer.status_code for answer in answers] == [404, 404, 429]
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 60
    assert too_large.status_code == 429 and too_large.headers["x-should-retry"] == "false"
    assert "Request too large" in too_large.json()["error"]["message"]
    assert "retry-after" not in too_large.headers


COUNTING_ONLY = {"/v1/messages/count_tokens", "/v1/responses/input_tokens", "/v1/responses/compact"}
"""These have no model answer."""


def generating() -> list[str]:
    """Paths that have a model answer: POST to a route that needs `infer` alone and has no id in its path."""
    return sorted(
        path
        for handler in ROUTES
        if not handler.opt.get(PUBLIC) and "POST" in handler.http_methods
        for path in handler.paths
        if needed("POST", path) == {"infer"} and "{" not in path and path not in COUNTING_ONLY
    )


def test_every_generating_route_counts_tokens(api: ApiServer) -> None:
    with api.client(new_key(api, tokens_per_minute=10)) as http:
        answers = {path: http.post(path, json={"model": "m" * 100}) for path in generating()}
    assert {"/v1/chat/completions", "/v1/completions"} <= set(answers)
    uncounted = [path for path, answer in answers.items() if answer.status_code != 429]
    assert uncounted == [], "read these bodies with services.api.limits.read_prompt"


def test_sdk_waits_as_long_as_it_is_told(api: ApiServer) -> None:
    key = new_key(api, requests_per_minute=60)
    client = openai.OpenAI(base_url=f"{api.url}/v1", api_key=key, max_retries=2)
    with api.client(key) as http:
        while http.get("/v1/models").status_code == 200:
            pass
    assert list(client.models.list()) == []


def test_unfinished_jobs_of_a_project_are_limited(api: ApiServer, redis_url: str) -> None:
    with_store(redis_url, lambda client: Registry(client).put_base(make_base()))
    client = openai.OpenAI(
        base_url=f"{api.url}/v1", api_key=new_key(api, new_project(api, concurrent_jobs=3)), max_retries=2
    )
    file = client.files.create(file=("a.jsonl", b"{}\n"), purpose="fine-tune").id

    def submit() -> str | None:
        try:
            return client.fine_tuning.jobs.create(model=BASE, training_file=file).id
        except openai.RateLimitError as error:
            assert error.code == "concurrent_jobs_exceeded"
            assert error.response.headers["x-should-retry"] == "false"
            return None

    made = [job for job in at_once(8, submit) if job]
    assert len(made) == 3 and len(list(client.fine_tuning.jobs.list())) == 3
    client.fine_tuning.jobs.cancel(made[0])
    assert [bool(submit()), bool(submit())] == [True, False]


def test_storage_of_a_project_is_limited(api: ApiServer, redis_url: str) -> None:
    project = new_project(api, storage_bytes=2500)
    client = openai.OpenAI(base_url=f"{api.url}/v1", api_key=new_key(api, project), max_retries=2)
    before = {path.name for path in api.paths.files.iterdir()}

    def upload() -> str | None:
        try:
            return client.files.create(file=("a.jsonl", b"x" * 1000), purpose="fine-tune").id
        except openai.RateLimitError as error:
            assert (error.code, error.response.headers["x-should-retry"]) == ("storage_limit_exceeded", "false")
            return None

    made = [file for file in at_once(6, upload) if file]
    assert len(made) == 2
    assert {path.name for path in api.paths.files.iterdir()} - before == set(made)
    assert with_store(redis_url, lambda store: FileStore(store).used_bytes(project)) == 2000
    client.files.delete(made[0])
    assert with_store(redis_url, lambda store: FileStore(store).used_bytes(project)) == 1000
    assert [bool(upload()), bool(upload())] == [True, False]


def test_upload_that_cannot_fit_is_refused_before_it_is_read(api: ApiServer) -> None:
    key = new_key(api, new_project(api, storage_bytes=1000))
    head = (
        f"POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: {300 << 20}\r\n"
        "content-type: multipart/form-data; boundary=b\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", api.settings.port), timeout=10) as connection:
        connection.sendall(head.encode())
        answer = connection.recv(65536).decode()
    assert answer.startswith("HTTP/1.1 429 ") and "x-should-retry: false" in answer


def test_uploads_in_parts_count_as_storage(api: ApiServer, redis_url: str) -> None:
    project = new_project(api, storage_bytes=1000)
    client = openai.OpenAI(base_url=f"{api.url}/v1", api_key=new_key(api, project), max_retries=0)
    announced: Any = {"filename": "a.jsonl", "purpose": "fine-tune", "mime_type": "text/jsonl"}

    def used() -> int:
        return with_store(redis_url, lambda store: FileStore(store).used_bytes(project))

    def send(upload: str, size: int) -> str | None:
        try:
            return client.uploads.parts.create(upload, data=b"x" * size).id
        except openai.RateLimitError as error:
            assert error.code == "storage_limit_exceeded"
            return None

    with pytest.raises(openai.RateLimitError):
        client.uploads.create(**announced, bytes=1001)
    first, second = (client.uploads.create(**announced, bytes=600).id for _ in range(2))
    part = send(first, 600)
    assert part is not None and used() == 600
    assert send(second, 401) is None and used() == 600
    assert not api.paths.upload_folder(second).exists() or not list(api.paths.upload_folder(second).iterdir())
    assert sum(one is not None for one in at_once(5, lambda: send(second, 200))) == 2
    assert used() == 1000

    made = client.uploads.complete(first, part_ids=[part]).file
    assert made is not None and used() == 1000, "the file counts instead of its part"
    assert client.uploads.complete(first, part_ids=[part]).file == made and used() == 1000
    for _ in range(2):
        assert client.uploads.cancel(second).status == "cancelled"
        assert used() == 600
    client.files.delete(made.id)
    assert used() == 0


def test_parts_beyond_the_project_are_refused_before_they_are_read(api: ApiServer) -> None:
    key = new_key(api, new_project(api, storage_bytes=1))
    client = openai.OpenAI(base_url=f"{api.url}/v1", api_key=key, max_retries=0)
    upload = client.uploads.create(filename="a", purpose="fine-tune", mime_type="text/jsonl", bytes=1).id
    head = (
        f"POST /v1/uploads/{upload}/parts HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n"
        f"content-length: {60 << 20}\r\ncontent-type: multipart/form-data; boundary=b\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", api.settings.port), timeout=10) as connection:
        connection.sendall(head.encode())
        answer = connection.recv(65536).decode()
    assert answer.startswith("HTTP/1.1 429 ") and "x-should-retry: false" in answer


def an_upload(number: int) -> UploadRecord:
    return UploadRecord(
        id=f"upload_{number}", project="p", filename="a", purpose="batch", size_bytes=100, created_at=1, expires_at=2,
        file_id=f"file-{number}",
    )  # fmt: skip


def a_part(name: str, size_bytes: int) -> PartRecord:
    return PartRecord(id=name, upload_id="", size_bytes=size_bytes, created_at=1)


def test_parts_are_counted_once_and_given_back_once(redis_url: str) -> None:
    async def story(client: Client) -> None:
        files, uploads = FileStore(client, project_bytes=100), UploadStore(client, project_bytes=100)
        one, two, three = map(an_upload, (1, 2, 3))
        for upload in (one, two, three):
            await uploads.add(upload)
        for _ in range(2):
            await uploads.add_part(one, a_part("a", 60))
            await uploads.add_part(two, a_part("b", 30))
        assert await files.used_bytes("p") == 90
        with pytest.raises(RateLimited):
            await uploads.add_part(two, a_part("c", 11))

        # A process that dies after it has recorded the file has given the parts back with it.
        await files.add(a_file(1, 70), upload_id=one.id)
        assert await files.used_bytes("p") == 100
        for _ in range(2):
            await files.add(a_file(1, 70), upload_id=one.id)
            await uploads.end(one, "completed")
            await uploads.end(two, "cancelled")
            await uploads.forget_parts(two.id)
            assert await files.used_bytes("p") == 70

        await uploads.add_part(three, a_part("d", 30))
        for _ in range(2):
            await uploads.forget_parts(three.id)
            assert await files.used_bytes("p") == 70
        with pytest.raises(InvalidRequest):  # it arrives after its upload was swept
            await uploads.add_part(three, a_part("e", 1))
        assert await files.remove(a_file(1, 70))
        assert await files.used_bytes("p") == 0

    with_store(redis_url, story)


def a_file(number: int, size_bytes: int) -> FileRecord:
    return FileRecord(
        id=f"file-{number}", project="p", filename="a", purpose="batch", size_bytes=size_bytes, sha256="0", created_at=1
    )


def test_files_from_before_counting_are_counted(redis_url: str) -> None:
    async def story(client: Client) -> None:
        files = FileStore(client, project_bytes=100)
        for number in (1, 2):
            await files.add(a_file(number, 40))
        await client.call("DEL", keys.project_bytes("p"))
        with pytest.raises(RateLimited):
            await files.add(a_file(3, 40))
        await files.add(a_file(4, 20))
        await files.add(a_file(4, 20))
        assert await files.used_bytes("p") == 100
        assert await files.remove(a_file(1, 40)) and not await files.remove(a_file(1, 40))
        assert await files.used_bytes("p") == 60
        await FileStore(client).add(a_file(5, 500))
        await files.add(a_file(6, 500), produced=True)
        assert await files.used_bytes("p") == 1060

    with_store(redis_url, story)


def test_models_are_counted_where_the_sum_is_lost(redis_url: str) -> None:
    async def story(client: Client) -> None:
        files, registry = FileStore(client), Registry(client)
        for number in (1, 2):
            model = make_adapter(f"ft:{BASE}:acme::AbCdEfG{number}", project="p", size_bytes=300)
            await registry.publish(model)
        await client.call("DEL", keys.project_bytes("p"))  # as after a restore
        assert await registry.retire(f"ft:{BASE}:acme::AbCdEfG1")
        assert await client.call("GET", keys.project_bytes("p")) is None
        await files.add(a_file(1, 70))
        assert await files.used_bytes("p") == 370
        await client.call("DEL", keys.project_bytes("p"))
        await UploadStore(client, project_bytes=0).add(an_upload(2))
        await UploadStore(client, project_bytes=0).add_part(an_upload(2), a_part("a", 30))
        assert await files.used_bytes("p") == 400

    with_store(redis_url, story)


def test_stored_answers_count_until_they_are_deleted_or_expire(redis_url: str) -> None:
    async def story(client: Client) -> None:
        files = FileStore(client, project_bytes=1000)
        completions = CompletionStore(client, keep_days=1, project_bytes=1000)
        responses = ResponseStore(client, keep_days=1, max_conversation_bytes=1000, project_bytes=1000)
        await files.add(a_file(1, 400))
        completion = StoredCompletion(id="chatcmpl-1", project="p", model="m", metadata={}, body=b"x" * 100)
        response = StoredResponse(id="resp_1", project="p", body=b"x" * 200, items=b"[]")
        one, two = len("p") + len("m") + len("{}") + 100 + len("[]"), len("p") + 200 + len("[]")
        for _ in range(2):
            await completions.keep(completion, messages=b"[]")
            await responses.keep(response)
            assert await files.used_bytes("p") == 400 + one + two
        await client.call("DEL", keys.project_bytes("p"))  # as after a restore
        assert await files.used_bytes("p") == 400 + one + two
        await completions.check_room("p", 600 - one - two)
        with pytest.raises(RateLimited) as refused:
            await responses.check_room("p", 601 - one - two)
        assert (refused.value.code, refused.value.param) == ("storage_limit_exceeded", "store")
        with pytest.raises(RateLimited):
            await files.add(a_file(2, 600 - two))
        await completions.remove("chatcmpl-1", project="p")
        with pytest.raises(NotFound):
            await completions.remove("chatcmpl-1", project="p")
        assert await files.used_bytes("p") == 400 + two

        expiry = await client.call("EXPIRETIME", keys.response("resp_1"))
        [member, scored] = await client.call("ZRANGE", keys.answers("p"), 0, -1, "WITHSCORES")
        assert float(scored) == pytest.approx(expiry, abs=2)
        await client.call("DEL", keys.response("resp_1"))  # as when it has expired
        await client.call("ZADD", keys.answers("p"), 1, member)
        await files.add(a_file(2, 600))
        assert await files.used_bytes("p") == 1000
        await completions.keep(completion, messages=b"[]")  # the model has answered
        assert await files.used_bytes("p") == 1000 + one

    with_store(redis_url, story)


def test_what_would_be_stored_is_refused_where_there_is_no_room(api: ApiServer) -> None:
    client = openai.OpenAI(
        base_url=f"{api.url}/v1", api_key=new_key(api, new_project(api, storage_bytes=10)), max_retries=0
    )

    def chat(*, store: bool) -> object:
        return client.chat.completions.create(model="nobody", messages=[{"role": "user", "content": "hi"}], store=store)

    calls: list[Callable[[], object]] = [
        lambda: client.responses.create(model="nobody", input="hi"),
        lambda: chat(store=True),
    ]
    for call in calls:
        with pytest.raises(openai.RateLimitError) as refused:
            call()
        assert (refused.value.code, refused.value.param) == ("storage_limit_exceeded", "store")
        assert "'store': false" in str(refused.value)
    for call in (lambda: client.responses.create(model="nobody", input="hi", store=False), lambda: chat(store=False)):
        with pytest.raises(openai.NotFoundError):
            call()


def a_batch(number: int, file: FileRecord) -> BatchRecord:
    return BatchRecord(
        id=f"batch_{number}", project="p", endpoint="/v1/embeddings", input_file_id=file.id, planned_output="file-o",
        planned_error="file-e", created_at=1, expires_at=2,
    )  # fmt: skip


def test_input_of_batches_counts_once_until_the_last_has_ended(redis_url: str) -> None:
    async def story(client: Client) -> None:
        files, batches = FileStore(client, project_bytes=100), BatchStore(client)
        file = a_file(1, 60)
        await files.add(file)
        await client.call("DEL", keys.project_bytes("p"))  # as before storage was counted
        for number in (1, 2, 2):
            await batches.create(a_batch(number, file), held=file)
        assert await files.used_bytes("p") == 60

        async def end(number: int) -> int:
            await batches.update(f"batch_{number}", lambda one: replace(one, status=BatchState.FAILED))
            return await files.used_bytes("p")

        assert await end(1) == 60
        assert await files.remove(file) and not await files.remove(file)
        assert await files.used_bytes("p") == 60
        with pytest.raises(RateLimited):
            await files.add(a_file(2, 41))
        with pytest.raises(NotFound):
            await batches.create(a_batch(3, file), held=file)
        await files.add(file)  # by an upload that is completed again
        assert await files.used_bytes("p") == 60 and await files.remove(file)
        assert [await end(2), await end(2)] == [0, 0]

        await files.add(file)
        await batches.create(a_batch(4, file), held=file)
        assert await end(4) == 60
        assert await files.remove(file) and await files.used_bytes("p") == 0
        assert not await client.call("EXISTS", keys.file_batches(file.id))

    with_store(redis_url, story)


def test_deleting_the_input_of_a_batch_makes_no_room(api: ApiServer, redis_url: str) -> None:
    with_store(redis_url, lambda store: Registry(store).put_base(make_base()))
    client = openai.OpenAI(
        base_url=f"{api.url}/v1", api_key=new_key(api, new_project(api, storage_bytes=1000)), max_retries=0
    )
    body = {"model": BASE, "input": "x" * 500}
    text = json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": body})

    def send() -> str:
        return client.files.create(file=("a.jsonl", text.encode()), purpose="batch").id

    file = send()
    batch = client.batches.create(input_file_id=file, endpoint="/v1/embeddings", completion_window="24h")
    client.files.delete(file)
    with pytest.raises(openai.RateLimitError):
        send()
    wait_until(lambda: client.batches.retrieve(batch.id).status == "in_progress")
    client.batches.cancel(batch.id)
    wait_until(lambda: client.batches.retrieve(batch.id).status == "cancelled")
    left = client.batches.retrieve(batch.id)
    client.files.delete(str(left.error_file_id))
    assert send()


def test_own_limit_of_zero_lifts_the_default(redis_url: str) -> None:
    async def story(client: Client) -> None:
        projects, files = ProjectStore(client), FileStore(client, project_bytes=100)
        free = await projects.create("free", Limits(storage_bytes=0))
        await files.check_room(free.id, 1000)
        with pytest.raises(RateLimited):
            await files.check_room((await projects.create("bound", Limits())).id, 101)

    with_store(redis_url, story)


def test_defaults_of_the_server_hold_where_a_project_has_none(redis_url: str, tmp_path: Path) -> None:
    server = ApiServer(
        tmp_path, redis_url, organization="acme", project_requests_per_minute=600, project_tokens_per_minute=50,
        refuse_foreign_ids=True,
    )  # fmt: skip
    try:
        with server.client() as http:
            assert http.get("/v1/models").headers["x-ratelimit-limit-requests"] == "600"
            (limit,) = http.get(f"{PROJECTS}/proj_default/rate_limits").json()["data"]
            assert (limit["max_requests_per_1_minute"], limit["max_tokens_per_1_minute"]) == (600, 50)
            assert http.post("/v1/completions", json={"model": "m", "max_tokens": 99}).status_code == 429
            http.post(f"{PROJECTS}/proj_default", json={"selftune": {"limits": {"requests_per_minute": 0}}})
            assert "x-ratelimit-limit-requests" not in http.get("/v1/models").headers
            for name, value, code in (
                ("openai-organization", "org-acme", None),
                ("openai-organization", "acme", None),
                ("openai-organization", "org-else", "mismatched_organization"),
                ("openai-project", "proj_default", None),
                ("openai-project", "proj_of_openai", "mismatched_project"),
            ):
                answer = http.get("/v1/models", headers={name: value})
                assert answer.status_code == (401 if code else 200)
                assert not code or answer.json()["error"]["code"] == code
    finally:
        server.stop()


def test_key_stored_before_scopes_and_projects_works_as_before(api: ApiServer, redis_url: str) -> None:
    async def downgrade(client: Client) -> None:
        (name,) = await client.call("KEYS", keys.api_key("*"))
        await client.call("SET", name, b'{"project":"proj_of_old","name":"admin","created_at":7}')

    with_store(redis_url, downgrade)
    with api.client() as http:
        assert http.get("/v1/models").status_code == 200
        assert http.get(PROJECTS).status_code == 200
    know_key(redis_url, api.key)
    with api.client() as http:
        assert [key["created_at"] for key in http.get("/v1/organization/admin_api_keys").json()["data"]] == [7]
