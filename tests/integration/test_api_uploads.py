"""Files that come in parts, and the housekeeping of files, through the real SDK."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import openai
import psutil
import pytest

from services.api.files.chunked_uploads import ChunkedUploads
from services.api.files.sweeper import Sweeper
from services.api.files.uploads import Uploads
from shared import keys
from shared.blobs.interface import Content
from shared.blobs.local import LocalBlobs
from shared.errors import Unavailable
from shared.paths import Paths
from shared.records import FileRecord
from shared.schemas.uploads import MAX_PART_BYTES, CompleteUpload, CreateUpload, Upload
from shared.settings import Settings
from shared.store.audit import AuditStore
from shared.store.client import Client
from shared.store.files import FileStore
from shared.store.uploads import PartRecord, UploadStore
from tests.api_server import ApiServer, know_key, with_store

CONTENT = os.urandom(300_000)
HALVES = CONTENT[:100_000], CONTENT[100_000:]


@pytest.fixture
def sdk(api: ApiServer) -> openai.OpenAI:
    for folder in api.paths.uploads.iterdir():  # of other tests; their records are gone
        shutil.rmtree(folder)
    return openai.OpenAI(base_url=f"{api.url}/v1", api_key=api.key, max_retries=0)


def begin(sdk: openai.OpenAI, **fields: Any) -> Any:
    wanted = {"filename": "a.jsonl", "purpose": "fine-tune", "bytes": len(CONTENT), "mime_type": "text/plain"}
    return sdk.uploads.create(**{**wanted, **fields})


def folders(api: ApiServer) -> list[str]:
    """What lies on disk of uploads, parts and partial files."""
    return sorted(path.name for folder in (api.paths.uploads, api.paths.partial) for path in folder.iterdir())


def refused(call: Callable[[], Any], kind: type[openai.APIStatusError] = openai.BadRequestError) -> tuple[Any, Any]:
    with pytest.raises(kind) as caught:
        call()
    return caught.value.param, caught.value.code


def test_parts_in_any_order_and_at_once_make_the_file(sdk: openai.OpenAI, api: ApiServer) -> None:
    upload = begin(sdk)
    assert (upload.status, upload.bytes, upload.expires_at - upload.created_at) == ("pending", len(CONTENT), 3600)
    pieces = [CONTENT[start : start + 40_000] for start in range(0, len(CONTENT), 40_000)]
    with ThreadPoolExecutor(8) as pool:
        sent = list(pool.map(lambda piece: sdk.uploads.parts.create(upload.id, data=piece).id, pieces[::-1]))
    order = sent[::-1]
    md5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest().upper()
    done = sdk.uploads.complete(upload.id, part_ids=order, md5=md5)
    assert done.status == "completed" and done.file is not None
    assert (done.file.bytes, done.file.filename, done.file.purpose) == (len(CONTENT), "a.jsonl", "fine-tune")
    assert sdk.files.content(done.file.id).read() == CONTENT
    assert sdk.uploads.complete(upload.id, part_ids=order).file == done.file, "asked twice, done once"
    assert [file.id for file in sdk.files.list()] == [done.file.id]
    assert folders(api) == []


def test_sdks_own_helper_works_sync_and_async(sdk: openai.OpenAI, api: ApiServer, tmp_path: Path) -> None:
    path = tmp_path / "whole.jsonl"
    path.write_bytes(CONTENT)
    whole = sdk.uploads.upload_file_chunked(file=path, mime_type="text/plain", purpose="batch", part_size=70_000)
    assert whole.file is not None and whole.file.expires_at == whole.file.created_at + 30 * 86_400

    async def upload() -> Any:
        async with openai.AsyncOpenAI(base_url=f"{api.url}/v1", api_key=api.key) as client:
            return await client.uploads.upload_file_chunked(
                file=b"", filename="empty", bytes=0, mime_type="text/plain", purpose="user_data"
            )

    empty = asyncio.run(upload())
    assert empty.file.bytes == 0 and sdk.files.content(empty.file.id).read() == b""


def test_same_part_twice_at_once_gives_two_ids(sdk: openai.OpenAI) -> None:
    upload = begin(sdk, bytes=5)
    with ThreadPoolExecutor(2) as pool:
        sent = [part.id for part in pool.map(lambda _: sdk.uploads.parts.create(upload.id, data=b"12345"), range(2))]
    assert len(set(sent)) == 2
    done = sdk.uploads.complete(upload.id, part_ids=sent[1:])
    assert done.file is not None and sdk.files.content(done.file.id).read() == b"12345"


def test_cancelled_upload_takes_nothing_more(sdk: openai.OpenAI, api: ApiServer) -> None:
    upload = begin(sdk)
    part = sdk.uploads.parts.create(upload.id, data=HALVES[0])
    assert sdk.uploads.cancel(upload.id).status == "cancelled"
    assert sdk.uploads.cancel(upload.id).status == "cancelled", "twice is the same as once"
    assert folders(api) == []
    assert refused(lambda: sdk.uploads.parts.create(upload.id, data=b"x")) == (None, "upload_not_pending")
    assert refused(lambda: sdk.uploads.complete(upload.id, part_ids=[part.id])) == (None, "upload_not_pending")
    assert folders(api) == [] and sdk.files.list().data == []


@pytest.mark.parametrize("same", [True, False])
def test_completing_again_records_what_the_first_attempt_stored(
    sdk: openai.OpenAI, api: ApiServer, redis_url: str, same: bool
) -> None:
    upload = begin(sdk, bytes=2)
    parts = [sdk.uploads.parts.create(upload.id, data=data).id for data in (b"1", b"2")]
    record = with_store(
        redis_url, lambda client: UploadStore(client, project_bytes=0).get(upload.id, project="proj_default")
    )
    content = b"12" if same else b"21"
    left = FileRecord(
        id=record.file_id, project=record.project, filename="a.jsonl", purpose="fine-tune", size_bytes=2,
        sha256=hashlib.sha256(content).hexdigest(), created_at=5,
    )  # fmt: skip
    folder = api.paths.file_folder(left.id)
    folder.mkdir()
    (folder / "content").write_bytes(content)
    (folder / "manifest.json").write_bytes(msgspec.json.encode(left))
    if same:
        done = sdk.uploads.complete(upload.id, part_ids=parts)
        assert done.file is not None and done.file.created_at == 5
        assert sdk.files.content(left.id).read() == content
    else:
        assert refused(lambda: sdk.uploads.complete(upload.id, part_ids=parts)) == (None, None)
        assert api.paths.unrecorded_mark(left.id).exists()
        assert sdk.files.list().data == []
        assert sdk.uploads.complete(upload.id, part_ids=parts[::-1]).status == "completed"
    assert not api.paths.unrecorded_mark(left.id).exists()


def test_cancelling_marks_the_file_that_it_takes_back(redis_url: str, tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    paths.prepare()

    class Dying(LocalBlobs):
        async def remove(self, folder: Path) -> None:
            raise OSError("dead")

    async def story(client: Client) -> None:
        store, settings = UploadStore(client), Settings(data_dir=str(tmp_path))
        wanted = CreateUpload(filename="a", purpose="fine-tune", bytes=1, mime_type="text/plain")
        uploads, dying = (
            ChunkedUploads(store, FileStore(client), blobs, settings) for blobs in (LocalBlobs(paths), Dying(paths))
        )
        upload = await uploads.begin(wanted, project="p")
        mark = paths.unrecorded_mark((await store.get(upload.id, project="p")).file_id)
        with pytest.raises(Unavailable):
            await dying.cancel(upload.id, project="p")
        assert mark.exists()
        await uploads.cancel(upload.id, project="p")
        assert not mark.exists()

    with_store(redis_url, story)


def test_completing_is_right_for_both_who_do_it_at_once(redis_url: str, tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    paths.prepare()

    async def story(client: Client) -> None:
        store, settings = UploadStore(client), Settings(data_dir=str(tmp_path))
        first = ChunkedUploads(store, FileStore(client), LocalBlobs(paths), settings)
        upload = await first.begin(
            CreateUpload(filename="a", purpose="fine-tune", bytes=1, mime_type="text/plain"), project="p"
        )
        part = PartRecord(id="part_1", upload_id=upload.id, size_bytes=1, created_at=1)
        folder = paths.upload_part(upload.id, part.id)
        folder.mkdir(parents=True)
        (folder / "content").write_bytes(b"x")
        await store.add_part(await store.get(upload.id, project="p"), part)
        wanted, others = CompleteUpload(part_ids=[part.id]), list[asyncio.Task[Upload]]()

        class Late(LocalBlobs):
            """Reads the parts while another request wants to complete the same upload."""

            async def read(self, file: Path) -> Content:
                if not others:
                    others.append(asyncio.create_task(first.complete(upload.id, wanted, project="p")))
                    await asyncio.sleep(0.5)
                    assert not others[0].done()
                return await super().read(file)

        second = ChunkedUploads(store, FileStore(client), Late(paths), settings)
        done = await second.complete(upload.id, wanted, project="p")
        assert await others[0] == done
        assert done.status == "completed" and done.file
        assert await client.call("EXISTS", keys.upload_lock(upload.id)) == 0

    with_store(redis_url, story)


def test_completed_upload_is_not_cancelled(sdk: openai.OpenAI) -> None:
    upload = begin(sdk, bytes=1)
    part = sdk.uploads.parts.create(upload.id, data=b"x")
    done = sdk.uploads.complete(upload.id, part_ids=[part.id])
    assert refused(lambda: sdk.uploads.cancel(upload.id)) == (None, "upload_not_pending")
    assert done.file is not None and sdk.files.retrieve(done.file.id).bytes == 1


def test_completing_against_cancelling_has_one_winner(sdk: openai.OpenAI, api: ApiServer) -> None:
    for _ in range(5):
        upload = begin(sdk, bytes=5)
        part = sdk.uploads.parts.create(upload.id, data=b"12345").id

        def attempt(call: Callable[[], Any]) -> str:
            try:
                return str(call().status)
            except openai.BadRequestError:
                return "refused"

        calls: list[Callable[[], Any]] = [
            partial(sdk.uploads.complete, upload.id, part_ids=[part]),
            partial(sdk.uploads.cancel, upload.id),
        ]
        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(attempt, calls))
        assert sorted(results) in (["cancelled", "refused"], ["completed", "refused"])
        files = [file.id for file in sdk.files.list()]
        assert len(files) == (results[0] == "completed") and folders(api) == []
        for file in files:
            sdk.files.delete(file)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"filename": ""}, "filename"), ({"filename": 5}, "filename"), ({"purpose": "magic"}, "purpose"),
        ({"bytes": -1}, "bytes"), ({"bytes": "5"}, "bytes"), ({"bytes": 1.5}, "bytes"), ({"bytes": 10**30}, "bytes"),
        ({"bytes": None}, "bytes"), ({"mime_type": None}, "mime_type"), ({"colour": 1}, "colour"),
        ({"expires_after": {"anchor": "created_at", "seconds": 1}}, "expires_after.seconds"),
        ({"expires_after": {"anchor": "never", "seconds": 3600}}, "expires_after.anchor"),
    ],
)  # fmt: skip
def test_wrong_field_is_named(sdk: openai.OpenAI, fields: dict[str, Any], param: str) -> None:
    body = {"filename": "a", "purpose": "fine-tune", "bytes": 1, "mime_type": "text/plain", **fields}
    assert refused(lambda: sdk.post("/uploads", body=body, cast_to=object))[0] == param


def test_file_over_the_limit_is_refused_at_once(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        begin(sdk, bytes=1 << 40)
    assert (caught.value.status_code, caught.value.param) == (413, "bytes")


@pytest.mark.parametrize(
    ("names", "body", "param"),
    [
        (["unknown"], {}, "part_ids[0]"), ([0, 0], {}, "part_ids"), ([0], {}, "part_ids"), ([], {}, "part_ids"),
        ([0, 1], {"md5": "0" * 32}, "md5"), ([0, 1], {"md5": "short"}, "md5"), ([0, 1], {"colour": 1}, "colour"),
        ([0, 1, "foreign"], {}, "part_ids[2]"), ([0, 5], {}, "part_ids[1]"), (None, {}, "part_ids"),
    ],
)  # fmt: skip
def test_parts_that_do_not_make_the_file_are_refused(
    sdk: openai.OpenAI, api: ApiServer, names: list[Any] | None, body: dict[str, Any], param: str
) -> None:
    upload, other = begin(sdk), begin(sdk)
    parts = [sdk.uploads.parts.create(upload.id, data=half).id for half in HALVES]
    known = {0: parts[0], 1: parts[1], "foreign": sdk.uploads.parts.create(other.id, data=b"x").id}
    ids = None if names is None else [known.get(name, name) for name in names]
    path = f"/uploads/{upload.id}/complete"
    assert refused(lambda: sdk.post(path, body={"part_ids": ids, **body}, cast_to=object))[0] == param
    done = sdk.uploads.complete(upload.id, part_ids=parts)
    assert done.file is not None and sdk.files.content(done.file.id).read() == CONTENT, "a refusal spoils nothing"


def test_part_over_64_mib_is_refused(sdk: openai.OpenAI, api: ApiServer) -> None:
    upload = begin(sdk, bytes=2 * MAX_PART_BYTES)
    assert sdk.uploads.parts.create(upload.id, data=bytes(MAX_PART_BYTES)).id
    with pytest.raises(openai.APIStatusError) as caught:
        sdk.uploads.parts.create(upload.id, data=bytes(MAX_PART_BYTES + 1))
    assert (caught.value.status_code, caught.value.param) == (413, "data")
    assert folders(api) == [upload.id]


def test_parts_do_not_fill_the_disk(sdk: openai.OpenAI, api: ApiServer) -> None:
    upload = begin(sdk, bytes=1)
    sdk.uploads.parts.create(upload.id, data=bytes(MAX_PART_BYTES))
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.uploads.parts.create(upload.id, data=b"1234")
    assert (caught.value.param, caught.value.code) == ("data", "upload_too_large")
    assert len(list(api.paths.upload_folder(upload.id).iterdir())) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"", b"no form", b'--b\r\nContent-Disposition: form-data; name="data"\r\n\r\ncut',
        b'--b\r\nContent-Disposition: form-data; name="colour"\r\n\r\n1\r\n--b--\r\n',
        b'--b\r\nContent-Disposition: form-data; name="data"\r\n\r\n1\r\n' * 2 + b"--b--\r\n", b"--b--\r\n",
    ],
)  # fmt: skip
def test_broken_part_leaves_nothing(sdk: openai.OpenAI, api: ApiServer, body: bytes) -> None:
    upload = begin(sdk)
    with api.client() as http:
        kind = {"content-type": "multipart/form-data; boundary=b"}
        answer = http.post(f"/v1/uploads/{upload.id}/parts", content=body, headers=kind)
    assert answer.status_code == 400 and answer.json()["error"]["type"] == "invalid_request_error"
    assert folders(api) == []


def test_unknown_and_foreign_uploads_are_404(sdk: openai.OpenAI, api: ApiServer, redis_url: str) -> None:
    upload = begin(sdk)
    key = know_key(redis_url, "sk-of-somebody-else", project="proj_other")
    foreign = openai.OpenAI(base_url=f"{api.url}/v1", api_key=key, max_retries=0)
    for client, upload_id in ((sdk, "upload_unknown"), (foreign, upload.id)):
        for call in (
            lambda c=client, u=upload_id: c.uploads.parts.create(u, data=b"x"),
            lambda c=client, u=upload_id: c.uploads.complete(u, part_ids=[]),
            lambda c=client, u=upload_id: c.uploads.cancel(u),
        ):
            assert refused(call, openai.NotFoundError)[0] == "upload_id"


def test_expired_upload_ends_and_is_swept(sdk: openai.OpenAI, api: ApiServer, redis_url: str) -> None:
    upload = begin(sdk, bytes=5)
    sdk.uploads.parts.create(upload.id, data=b"12345")
    file = sdk.files.create(file=b"x", purpose="user_data", expires_after={"anchor": "created_at", "seconds": 3600})
    kept = sdk.files.create(file=b"x", purpose="user_data")

    async def sweep(client: Client) -> None:
        files, uploads = FileStore(client), UploadStore(client)
        storage = Uploads(files, LocalBlobs(api.paths), max_file_bytes=1)
        sweeper = Sweeper(files, uploads, storage, LocalBlobs(api.paths), AuditStore(client))
        await sweeper.sweep(time.time() + 3601)

    with_store(redis_url, sweep)
    assert folders(api) == []
    assert not api.paths.file_folder(file.id).exists() and api.paths.file_folder(kept.id).exists()
    with pytest.raises(openai.NotFoundError):
        sdk.files.retrieve(file.id)
    assert [item.id for item in sdk.files.list()] == [kept.id]


def test_sweeping_tolerates_uploads_that_finish_meanwhile(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = Paths(tmp_path)
    paths.prepare()
    for name in ("finishing", "abandoned"):
        (paths.partial / name).mkdir()
    look = Path.glob

    def rename_first(folder: Path, pattern: str) -> Iterator[Path]:
        if folder.name == "finishing":
            folder.rename(tmp_path / "finished")
            raise FileNotFoundError(folder)
        return look(folder, pattern)

    async def sweep(client: Client) -> None:
        storage = Uploads(FileStore(client), LocalBlobs(paths), max_file_bytes=1)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "glob", rename_first)
            storage.discard_abandoned(before=time.time() + 1)

    with_store(redis_url, sweep)
    assert (tmp_path / "finished").is_dir() and list(paths.partial.iterdir()) == []


def test_upload_shows_that_it_has_expired(redis_url: str, tmp_path: Path) -> None:
    server = ApiServer(tmp_path, redis_url, upload_ttl_s=1)
    try:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0)
        upload = begin(client, bytes=1)
        while time.time() <= upload.expires_at:
            time.sleep(0.05)
        assert refused(lambda: client.uploads.parts.create(upload.id, data=b"x")) == (None, "upload_not_pending")
        assert refused(lambda: client.uploads.cancel(upload.id)) == (None, "upload_not_pending")
    finally:
        server.stop()


def test_memory_stays_flat(sdk: openai.OpenAI, api: ApiServer) -> None:
    part = bytes(50 << 20)
    upload = begin(sdk, bytes=4 * len(part))
    process = psutil.Process(api.process.pid)
    first = sdk.uploads.parts.create(upload.id, data=part).id
    before = process.memory_info().rss
    parts = [first, *(sdk.uploads.parts.create(upload.id, data=part).id for _ in range(3))]
    done = sdk.uploads.complete(upload.id, part_ids=parts)
    assert done.file is not None and done.file.bytes == 200 << 20
    assert process.memory_info().rss - before < 32 << 20
