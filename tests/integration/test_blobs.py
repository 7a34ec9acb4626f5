"""The two stores of blobs: what holds for both, and what an object store adds. The S3 server is real."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from services.api.rollouts.files import RolloutFiles
from shared.blobs.interface import Blobs, read_whole
from shared.blobs.objects import WHOLE
from shared.blobs.opening import open_blobs
from shared.errors import InvalidRequest, StorageUnavailable
from shared.paths import Paths
from shared.rollout_records import (
    Place,
    RolloutGroup,
    RolloutHeader,
    RolloutSample,
    RolloutStats,
    rollout_file,
    write_rollouts,
)
from shared.settings import Settings
from tests.object_store import BUCKET, ObjectStore, object_store, running_store

__all__ = ["object_store"]

ODD = "org--base model%2F~ü"


@pytest.fixture(params=["local", "objects"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    return open_local(tmp_path) if request.param == "local" else open_objects(request, tmp_path)


def open_local(home: Path) -> Blobs:
    paths = Paths(home)
    paths.prepare()
    return open_blobs(Settings(data_dir=str(home)), paths)


def open_objects(request: pytest.FixtureRequest, home: Path) -> Blobs:
    store: ObjectStore = request.getfixturevalue("object_store")
    return second_host(store, home, prefix=home.name)


def second_host(store: ObjectStore, home: Path, *, prefix: str) -> Blobs:
    paths = Paths(home)
    paths.prepare()
    return open_blobs(Settings(data_dir=str(home), **store.settings(prefix)), paths)


def staged(blobs: Blobs, content: bytes = b"weights") -> Path:
    folder = blobs.paths.partial / "staged"
    (folder / "deeper").mkdir(parents=True)
    (folder / "content").write_bytes(content)
    (folder / "deeper" / "manifest.json").write_bytes(b"{}")
    (folder / "empty").touch()
    return folder


def play(story: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        async with asyncio.timeout(120):
            await story()

    asyncio.run(run())


def test_a_published_folder_is_there_as_it_was_and_its_draft_is_gone(blobs: Blobs) -> None:
    final = blobs.paths.adapters / ODD / ("a" * 64)

    async def story() -> None:
        draft = staged(blobs)
        assert not await blobs.exists(final)
        with pytest.raises(FileNotFoundError):
            await blobs.fetch(final)
        await blobs.publish(draft, final)
        assert not draft.exists()
        assert await blobs.exists(final)
        await blobs.fetch(final)
        assert (final / "content").read_bytes() == b"weights"
        assert (final / "deeper" / "manifest.json").read_bytes() == b"{}"
        assert (final / "empty").read_bytes() == b""
        assert await read_whole(blobs, final / "content") == b"weights"
        [kept] = await blobs.folders(blobs.paths.adapters, depth=2)
        assert (kept.folder, kept.is_aside) == (final, False)
        assert abs(kept.changed_at - final.stat().st_mtime) < 5
        await blobs.publish(staged(blobs), final)
        assert len(await blobs.folders(blobs.paths.adapters, depth=2)) == 1
        await blobs.remove(final)
        await blobs.remove(final)
        assert not final.exists() and not await blobs.exists(final)
        with pytest.raises(FileNotFoundError):
            await blobs.read(final / "content")

    play(story)


def test_what_was_set_aside_is_hidden_and_comes_back_or_goes(blobs: Blobs) -> None:
    final = blobs.paths.file_folder("file-1")

    async def story() -> None:
        assert await blobs.set_aside(final) is None
        await blobs.publish(staged(blobs), final)
        changed_at = await blobs.changed_at(final)
        assert await blobs.set_aside(final) == changed_at
        assert not await blobs.exists(final)
        assert [kept.is_aside for kept in await blobs.folders(blobs.paths.files, depth=1)] == [True]
        await blobs.put_back(final)
        await blobs.put_back(final)
        assert await blobs.exists(final)
        assert await read_whole(blobs, final / "content") == b"weights"
        await blobs.set_aside(final)
        await blobs.remove(final)
        await blobs.put_back(final)
        assert not await blobs.exists(final)
        assert await blobs.folders(blobs.paths.files, depth=1) == []

    play(story)


def test_marks_and_single_files(blobs: Blobs) -> None:
    mark = blobs.paths.unrecorded_mark("file-1")
    source = blobs.paths.batches / "b" / "input.jsonl"

    async def story() -> None:
        await blobs.mark(mark)
        await blobs.mark(mark)
        assert list(await blobs.files(blobs.paths.unrecorded)) == ["file-1"]
        await blobs.delete(mark)
        await blobs.delete(mark)
        assert await blobs.files(blobs.paths.unrecorded) == {}
        assert await blobs.changed_at(mark) is None
        source.parent.mkdir()
        source.write_bytes(b"one\n")
        await blobs.keep_file(source)
        copy = blobs.paths.batches / "c" / "input.jsonl"
        await blobs.copy_file(source, copy)
        await blobs.copy_file(source, copy)
        await blobs.fetch_file(copy)
        assert copy.read_bytes() == b"one\n"
        assert set(await blobs.children(blobs.paths.batches)) == {"b", "c"}
        with pytest.raises(FileNotFoundError):
            await blobs.copy_file(copy.with_name("none"), source)
        await blobs.check()

    play(story)


def test_small_files_are_written_read_and_deleted_together(blobs: Blobs) -> None:
    folder = blobs.paths.records / "alias"
    files = {folder / f"=a%2F{ODD}-{number}.json": b"%d" % number for number in range(40)}
    [first, second, *_] = files

    async def story() -> None:
        await blobs.write_files(files)
        await blobs.write_files({first: b"again"})
        assert await blobs.read_files([*files, folder / "no.json"]) == {**files, first: b"again"}
        assert set(await blobs.children(blobs.paths.records)) == {"alias"}
        assert set(await blobs.files(folder)) == {file.name for file in files}
        if blobs.is_local:
            assert first.stat().st_mode & 0o777 == 0o600
        await blobs.delete(first, second, folder / "no.json")
        await blobs.delete(first)
        assert (await blobs.read_files(files)).keys() == files.keys() - {first, second}

    play(story)


def test_another_host_fetches_once_what_it_lacks_and_compares_it(object_store: ObjectStore, tmp_path: Path) -> None:
    content = os.urandom(20_000_000)  # three pieces

    async def story() -> None:
        here = second_host(object_store, tmp_path / "a", prefix="fetching")
        there = second_host(object_store, tmp_path / "b", prefix="fetching")
        final, copy = (each.paths.adapters / "x" / "1" for each in (here, there))
        await here.publish(staged(here, content), final)
        assert not final.exists()
        await asyncio.gather(*[there.fetch(copy) for _ in range(5)])
        assert (copy / "content").read_bytes() == content
        assert not (copy / WHOLE).exists()
        assert list(there.paths.fetching.iterdir()) == []
        async with here.borrow(final) as lent:
            assert hashlib.sha256((lent / "content").read_bytes()).digest() == hashlib.sha256(content).digest()
        assert not lent.exists() and not final.exists()
        stored = await here.read(final / "content")
        assert (stored.size_bytes, b"".join([block async for block in stored.blocks])) == (len(content), content)

    play(story)


def test_a_folder_without_its_list_is_not_there_and_a_damaged_one_is_refused(
    object_store: ObjectStore, tmp_path: Path
) -> None:
    async def story() -> None:
        here = second_host(object_store, tmp_path / "a", prefix="damage")
        final = here.paths.adapters / "x" / "1"
        await here.publish(staged(here), final)
        (tmp_path / "other").write_bytes(b"weightz")
        await here._bucket.put(here._key(final / "content"), tmp_path / "other")  # type: ignore[attr-defined]
        with pytest.raises(OSError, match="damaged"):
            await here.fetch(final)
        assert not final.exists() and list(here.paths.fetching.iterdir()) == []
        await here._bucket.delete([here._key(final / WHOLE)])  # type: ignore[attr-defined]
        assert not await here.exists(final)
        with pytest.raises(FileNotFoundError):
            await here.fetch(final)
        await here.remove(final)
        assert object_store.keys("damage/") == []

    play(story)


@pytest.mark.parametrize("is_new", [True, False])
def test_a_folder_that_is_deleted_while_it_is_put_is_put_again(
    object_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_new: bool
) -> None:
    async def story() -> None:
        here = second_host(object_store, tmp_path / "a", prefix=f"race-{is_new}")
        final = here.paths.adapters / "x" / "1"
        bucket = here._bucket  # type: ignore[attr-defined]
        put, deletions = bucket.put, 1

        async def put_while_another_deletes(key: str, data: bytes | Path) -> None:
            nonlocal deletions
            if key.endswith(WHOLE) and deletions:
                deletions -= 1
                await bucket.delete([here._key(final / "content")])  # type: ignore[attr-defined]
            await put(key, data)

        if not is_new:
            await here.publish(staged(here), final)
        monkeypatch.setattr(bucket, "put", put_while_another_deletes)
        await here.publish(staged(here), final)
        await here.fetch(final)
        assert (final / "content").read_bytes() == b"weights"
        deletions = 1000
        with pytest.raises(StorageUnavailable):
            await here.keep(final)
        assert not await here.exists(final)

    play(story)


def test_a_store_that_is_away_or_refuses_is_told_apart_from_what_is_missing(tmp_path: Path) -> None:
    async def story() -> None:
        with running_store() as store:
            here = second_host(store, tmp_path, prefix="away")
            paths = Paths(tmp_path)
            elsewhere = open_blobs(
                Settings(data_dir=str(tmp_path), storage_url="s3://no-such-bucket", storage_endpoint=store.url), paths
            )
            with pytest.raises(StorageUnavailable):
                await elsewhere.mark(paths.unrecorded_mark("x"))
            with pytest.raises(StorageUnavailable):
                await elsewhere.check()
            store.process.send_signal(signal.SIGKILL)
            store.process.wait()
            for call in (here.exists(tmp_path / "files" / "x"), here.check(), here.fetch(tmp_path / "files" / "x")):
                with pytest.raises(StorageUnavailable):
                    await call
            with pytest.raises(StorageUnavailable):
                await here.publish(staged(here), tmp_path / "files" / "x")

    play(story)


def test_settings_that_would_send_data_in_the_clear_are_refused(tmp_path: Path) -> None:
    for url in ("http://8.8.8.8:9000", "http://no-such-host.invalid"):
        with pytest.raises(InvalidRequest, match="storage_endpoint"):
            open_blobs(
                Settings(data_dir=str(tmp_path), storage_url=f"s3://{BUCKET}", storage_endpoint=url), Paths(tmp_path)
            )
    with pytest.raises(InvalidRequest, match="storage_url"):
        Settings.load({"storage_url": "s3://UPPER/x"}, environ={})
    with pytest.raises(InvalidRequest, match="storage_endpoint"):
        Settings.load({"storage_endpoint": "http://key:secret@10.0.0.1"}, environ={})


def test_rollouts_are_read_where_they_are_kept(blobs: Blobs) -> None:
    folder = blobs.paths.job_folder("ftjob-1")
    stats = RolloutStats(groups=2, samples=2, reward_mean=0.5, reward_std=0.5)
    header = RolloutHeader(step=3, validation=False, policy="00", stats=stats)
    groups = [
        RolloutGroup(
            line=line, prompt_tokens=[1], item={"messages": []},
            samples=[RolloutSample(tokens=[2] * 100_000, logprobs=[], text="x", reward=0.5)],
        )
        for line in (7, 70)
    ]  # fmt: skip

    async def story() -> None:
        path = rollout_file(folder, 3, validation=False)
        path.parent.mkdir(parents=True)
        path.write_bytes(write_rollouts(header, groups))
        await blobs.keep_file(path)
        if not blobs.is_local:
            path.unlink()  # the reader is another host
        files, place = RolloutFiles(blobs), Place(3, False)
        assert list(await files.places("ftjob-1")) == [place] and await files.places("ftjob-2") == {}
        assert await files.headers("ftjob-1") == [header]
        assert [group async for group in files.groups("ftjob-1", place)] == groups
        assert [group async for group in files.groups("ftjob-1", place, lines=[7])] == groups[:1]
        assert [group async for group in files.groups("ftjob-1", Place(4, True))] == []

    play(story)
