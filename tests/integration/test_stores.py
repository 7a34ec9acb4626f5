"""The stores on a real Valkey: compare-and-set, fences, paging, change streams."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw
from msgspec.structs import replace

from shared import keys
from shared.alias_records import AliasRecord
from shared.errors import Conflict, LeaseLost, NotAuthenticated, NotFound, StoreUnavailable, TransitionRefused
from shared.key_hash import KeyHash
from shared.records import AdapterRecord, FileRecord, JobRecord, ReplicaRecord, Residency
from shared.schemas.aliases import AliasRevision, Shadow, ShadowAnswer
from shared.schemas.checkpoints import Checkpoint, CheckpointMetrics
from shared.schemas.methods import SupervisedHyperparameters
from shared.states import JobState
from shared.store.adapter_uses import AdapterUses
from shared.store.alias_traffic import Count, Place, TrafficStore, slot_of
from shared.store.aliases import AliasStore
from shared.store.api_keys import KeyStore
from shared.store.client import Client
from shared.store.files import FileStore
from shared.store.jobs import JobStore, event
from shared.store.leases import LeaseStore
from shared.store.lock import Hold, Lock
from shared.store.presence import REMEMBERED_S, Presence
from shared.store.registry import CursorLost, Registry
from shared.store.shadow_pairs import PairStore, StoredPair
from shared.store.storage import Storage


def run(redis_url: str, story: Callable[[Client], Awaitable[None]]) -> None:
    async def main() -> None:
        client = Client(redis_url)
        try:
            await story(client)
        finally:
            await client.close()

    asyncio.run(main())


def a_job(number: int = 1, project: str = "p") -> JobRecord:
    return JobRecord(
        id=f"ftjob-{number}", project=project, organization="o", created_at=number, model="base",
        training_file="file-1", seed=1, requested=SupervisedHyperparameters(), model_name=f"ft:base:o::{number}",
    )  # fmt: skip


def an_adapter(name: str = "ft:base:o::1", sha256: str = "a" * 64, **more: Any) -> AdapterRecord:
    return AdapterRecord(
        name=name, base="base", base_fingerprint="f", folder="adapters/base/a", sha256=sha256, rank=8, project="p",
        job_id="ftjob-1", created_at=1, **more,
    )  # fmt: skip


def to(state: JobState) -> Callable[[JobRecord], JobRecord]:
    return lambda job: replace(job, status=state)


def test_racing_ends_leave_one_and_its_event(redis_url: str) -> None:
    async def story(client: Client) -> None:
        jobs = JobStore(client)
        await jobs.create(a_job(), [event("created")])
        await jobs.update("ftjob-1", to(JobState.QUEUED))
        await jobs.update("ftjob-1", to(JobState.RUNNING))
        ends = [JobState.SUCCEEDED, JobState.CANCELLED, JobState.FAILED] * 5
        await asyncio.gather(*(jobs.finish("ftjob-1", end, events=[event(end)]) for end in ends))
        final = (await jobs.get("ftjob-1")).status
        events, _ = await jobs.events("ftjob-1")
        assert [item.message for item in events] == [final.value, "created"]
        assert await jobs.active() == []
        with pytest.raises(TransitionRefused):
            await jobs.update("ftjob-1", to(JobState.RUNNING))

    run(redis_url, story)


def test_concurrent_changes_are_all_kept(redis_url: str) -> None:
    async def story(client: Client) -> None:
        jobs = JobStore(client)
        await jobs.create(a_job(), [])
        await asyncio.gather(
            *(jobs.update("ftjob-1", lambda job: replace(job, attempts=job.attempts + 1)) for _ in range(20))
        )
        assert (await jobs.get("ftjob-1")).attempts == 20

    run(redis_url, story)


def test_database_that_takes_no_writes_is_away_for_each_kind_of_call(redis_url: str) -> None:
    async def story(client: Client) -> None:
        await client.call("CONFIG", "SET", "min-replicas-to-write", 1)  # refused as for a full disk
        try:
            with pytest.raises(StoreUnavailable):
                await client.call("SET", "a", 1)
            with pytest.raises(StoreUnavailable):
                await client.together([("SET", "a", 1), ("SET", "b", 1)])
            with pytest.raises(StoreUnavailable):
                await JobStore(client).create(a_job(), [])
        finally:
            await client.call("CONFIG", "SET", "min-replicas-to-write", 0)

    run(redis_url, story)


def test_worker_without_the_lease_cannot_write(redis_url: str) -> None:
    async def story(client: Client) -> None:
        jobs, leases = JobStore(client), LeaseStore(client, ttl_s=2)
        await jobs.create(a_job(), [])
        token = await leases.claim("ftjob-1")
        assert token is not None
        assert await leases.claim("ftjob-1") is None
        await leases.renew("ftjob-1", token)
        await jobs.append_events("ftjob-1", [event("mine")], fence=token)
        await client.call("DEL", keys.job_lease("ftjob-1"))  # as if it had expired
        assert await leases.claim("ftjob-1")
        with pytest.raises(LeaseLost):
            await leases.renew("ftjob-1", token)
        with pytest.raises(LeaseLost):
            await jobs.append_events("ftjob-1", [event("late")], fence=token)
        with pytest.raises(LeaseLost):
            await jobs.update("ftjob-1", to(JobState.QUEUED), fence=token)
        with pytest.raises(LeaseLost):
            await jobs.forget_checkpoints("ftjob-1", fence=token)
        await leases.release("ftjob-1", token)
        assert await leases.held("ftjob-1"), "the other one's lease is not given back"
        assert [item.message for item in (await jobs.events("ftjob-1"))[0]] == ["mine"]

    run(redis_url, story)


def test_leases_and_locks_of_the_dead_end_soon_also_when_the_clock_was_put_back(redis_url: str) -> None:
    async def story(client: Client) -> None:
        jobs, leases = JobStore(client), LeaseStore(client, ttl_s=2)
        await jobs.create(a_job(), [])
        assert await leases.claim("ftjob-1")
        held, other = Lock(client, "selftune:test_lock", ttl_s=2), Lock(client, "selftune:test_lock", ttl_s=2)
        assert await held.hold()
        for key in (keys.job_lease("ftjob-1"), "selftune:test_lock"):
            await client.call("PEXPIRE", key, 5_400_000)  # as if the clock had been put back by ninety minutes
        assert await leases.held("ftjob-1") and not await other.hold()
        for key in (keys.job_lease("ftjob-1"), "selftune:test_lock"):
            assert 0 < await client.call("PTTL", key) <= 2000
        await other.release()
        assert await held.hold() is Hold.RENEWED

    run(redis_url, story)


def test_lease_that_ran_out_is_taken_again_by_its_holder(redis_url: str) -> None:
    async def story(client: Client) -> None:
        jobs, leases = JobStore(client), LeaseStore(client, ttl_s=2)
        await jobs.create(a_job(), [])
        token = await leases.claim("ftjob-1")
        assert token is not None
        await client.call("DEL", keys.job_lease("ftjob-1"))  # as if it had expired
        await jobs.append_events("ftjob-1", [event("still mine")], fence=token)
        await leases.renew("ftjob-1", token)
        assert await leases.held("ftjob-1")
        await leases.release("ftjob-1", token)
        with pytest.raises(LeaseLost):
            await leases.renew("ftjob-1", token)
        assert await leases.claim("ftjob-2") is None, "there is no such job"

    run(redis_url, story)


def test_write_that_is_repeated_for_want_of_an_answer_is_done_once(redis_url: str) -> None:
    async def story(client: Client) -> None:
        jobs = JobStore(client)
        await jobs.create(a_job(), [])
        script = client.script

        async def answer_is_lost(*arguments: Any) -> Any:
            await script(*arguments)
            client.script = script  # type: ignore[method-assign]
            raise StoreUnavailable("no answer")

        def more(record: JobRecord) -> JobRecord:
            return replace(record, attempts=record.attempts + 1)

        for nonce in ("a" * 32, "b" * 32):
            client.script = answer_is_lost  # type: ignore[method-assign,assignment]
            with pytest.raises(StoreUnavailable):
                await jobs.append_events("ftjob-1", [event("told")], nonce=nonce)
            await jobs.append_events("ftjob-1", [event("told")], nonce=nonce)
        client.script = answer_is_lost  # type: ignore[method-assign,assignment]
        with pytest.raises(StoreUnavailable):
            await jobs.update("ftjob-1", more, [event("changed")], nonce="c" * 32)
        repeated = await jobs.update("ftjob-1", more, [event("changed")], nonce="c" * 32)
        assert repeated.attempts == (await jobs.get("ftjob-1")).attempts == 1
        for _ in range(10):
            await jobs.append_events("ftjob-1", [event("told")])
        messages = [item.message for item in (await jobs.events("ftjob-1"))[0]]
        assert messages == [*["told"] * 10, "changed", "told", "told"]
        assert len(await client.call("HGET", keys.job("ftjob-1"), "nonces")) == 8 * 33

    run(redis_url, story)


def test_lists_are_paged_newest_first_by_project(redis_url: str) -> None:
    async def story(client: Client) -> None:
        jobs = JobStore(client)
        for number in range(1, 6):
            await jobs.create(a_job(number), [event(f"e{n}") for n in range(3)])
        await jobs.create(a_job(6, project="other"), [])
        page, more = await jobs.list("p", after=None, limit=2)
        assert ([job.id for job in page], more) == (["ftjob-5", "ftjob-4"], True)
        page, more = await jobs.list("p", after="ftjob-4", limit=3)
        assert ([job.id for job in page], more) == (["ftjob-3", "ftjob-2", "ftjob-1"], False)
        with pytest.raises(NotFound):
            await jobs.list("p", after="ftjob-6", limit=1)
        with pytest.raises(NotFound):
            await jobs.get("ftjob-6", project="p")
        events, more = await jobs.events("ftjob-1", limit=2)
        assert ([item.message for item in events], more) == (["e2", "e1"], True)
        events, more = await jobs.events("ftjob-1", after=events[-1].id, limit=2)
        assert ([item.message for item in events], more) == (["e0"], False)
        for after in ("ftevent-nonsense", "ftevent-0-0", f"ftevent-{2**64}-0", "ftevent-1-2-3", "ftevent-1", ""):
            with pytest.raises(NotFound):
                await jobs.events("ftjob-1", after=after)
        for suffix in ("events", "checkpoints", "lease"):
            with pytest.raises(NotFound):
                await jobs.get(f"ftjob-1:{suffix}")

    run(redis_url, story)


def test_one_checkpoint_for_a_step(redis_url: str) -> None:
    def checkpoint(step: int) -> Checkpoint:
        return Checkpoint(
            id=f"ftckpt_{step}", created_at=1, fine_tuning_job_id="ftjob-1", fine_tuned_model_checkpoint=f"m{step}",
            step_number=step, metrics=CheckpointMetrics(train_loss=0.5),
        )  # fmt: skip

    async def story(client: Client) -> None:
        jobs = JobStore(client)
        await jobs.create(a_job(), [])
        for step in (3, 6, 3):
            await jobs.append_checkpoint(checkpoint(step))
        assert list(await jobs.checkpoints("ftjob-1")) == [checkpoint(6), checkpoint(3)]

    run(redis_url, story)


def test_files_are_filtered_by_purpose_across_pages(redis_url: str) -> None:
    async def story(client: Client) -> None:
        files = FileStore(client)
        for number in range(130):
            purpose = "batch" if number % 10 == 0 else "fine-tune"
            await files.add(
                FileRecord(
                    id=f"file-{number}", project="p", filename="f", purpose=purpose,  # type: ignore[arg-type]
                    size_bytes=1, sha256="", created_at=number,
                )
            )  # fmt: skip
        page, more = await files.list("p", after=None, limit=12, purpose="batch")
        assert ([file.id for file in page], more) == ([f"file-{n}" for n in range(120, 0, -10)], True)
        page, more = await files.list("p", after=page[-1].id, limit=12, purpose="batch")
        assert ([file.id for file in page], more) == (["file-0"], False)
        record = await files.get("file-7")
        assert await files.remove(record)
        assert not await files.remove(record)
        with pytest.raises(NotFound):
            await files.get("file-7")

    run(redis_url, story)


def test_name_stays_bound_to_its_bytes(redis_url: str) -> None:
    async def story(client: Client) -> None:
        registry = Registry(client)
        published = await registry.publish(an_adapter())
        assert 1 <= published.int_id < 2**31
        assert await registry.listed("p") == []
        listed = await registry.publish(published.as_listed())
        assert listed == replace(published, listed=True)
        assert await registry.listed("p") == [listed]
        with pytest.raises(Conflict):
            await registry.publish(an_adapter(sha256="b" * 64))
        other = await registry.publish(an_adapter("ft:base:o::2"))
        assert other.int_id != published.int_id
        assert await registry.retire(published.name)
        assert not await registry.retire(published.name)
        assert await registry.get(published.name) is None

    run(redis_url, story)


def test_replica_follows_changes_and_notices_a_gap(redis_url: str) -> None:
    async def story(client: Client) -> None:
        registry = Registry(client)
        cursor, known = await registry.snapshot("base")
        assert (cursor, list(known)) == ("0-0", [])
        await registry.publish(an_adapter())
        await registry.retire("ft:base:o::1")
        cursor, changes = await registry.changes(cursor, block_ms=10)
        assert [(change.action, change.name) for change in changes] == [
            ("published", "ft:base:o::1"), ("retired", "ft:base:o::1"),
        ]  # fmt: skip
        assert await registry.changes(cursor, block_ms=10) == (cursor, [])
        await client.call("XTRIM", keys.ADAPTER_CHANGES, "MAXLEN", 0)
        with pytest.raises(CursorLost):
            await registry.changes(cursor, block_ms=10)

    run(redis_url, story)


def test_uses_fade_by_the_hour_and_adapters_that_are_gone_are_not_counted(redis_url: str) -> None:
    async def story(client: Client) -> None:
        uses, key = AdapterUses(client), keys.adapter_uses("base")
        await client.call("SADD", keys.adapters("base"), "a", "b", "c")
        await uses.add("base", {"a": 100, "b": 3, "gone": 9})
        await uses.add("base", {"b": 2})
        assert await uses.most_used("base", 5) == ["a", "b"]
        await client.call("ZADD", key, -int(time.time()) + 10 * 3600 + 60, b"\0faded")  # ten hours ago
        await uses.add("base", {"c": 40})
        assert float(await client.call("ZSCORE", key, "a")) == pytest.approx(100 * 0.9**10)
        assert await uses.most_used("base", 1) == ["c"]
        await client.call("ZADD", key, -int(time.time()) + 100 * 3600, b"\0faded")
        await uses.add("base", {})
        assert await uses.most_used("base", 5) == []

    run(redis_url, story)


def test_a_replica_that_is_long_gone_is_no_word_on_an_adapter(redis_url: str) -> None:
    async def story(client: Client) -> None:
        registry = Registry(client)
        await registry.acknowledge("r1", {"m": Residency(state="warm")})
        old = b'{"state":"warm","at":%d}' % (time.time() - 2 * 86_400)
        await client.call("HSET", keys.residency("m"), "r0", old)
        assert list(await registry.residency("m")) == ["r1"]
        assert not await client.call("HEXISTS", keys.residency("m"), "r0")

    run(redis_url, story)


def test_residency_and_heartbeats(redis_url: str) -> None:
    async def story(client: Client) -> None:
        registry, presence = Registry(client), Presence(client)
        await registry.acknowledge("r1", {"m": Residency(state="failed", reason="too large")})
        assert (await registry.residency("m"))["r1"].reason == "too large"
        replica = ReplicaRecord(id="r1", url="http://127.0.0.1:1", base="base", state="ready")
        await presence.beat_replica(replica, ttl_s=0.2)
        assert list(await presence.replicas()) == [replica]
        assert 0 <= await presence.seconds_without_replica() < 5
        await asyncio.sleep(0.3)
        assert list(await presence.replicas()) == []

    run(redis_url, story)


def test_the_silent_are_forgotten_and_the_living_never(redis_url: str) -> None:
    async def story(client: Client) -> None:
        presence = Presence(client)
        one, other = (ReplicaRecord(id=name, url="http://127.0.0.1:1", base="base", state="ready") for name in "ab")
        for name in ("long silent", "just silent"):
            await client.call("ZADD", keys.REPLICAS, time.time() - REMEMBERED_S - 10, name)
        await client.call("ZADD", keys.REPLICAS, time.time() - 20, "just silent")
        await presence.beat_replica(one, ttl_s=600)
        await client.call("ZADD", keys.REPLICAS, time.time() - 9_999, "a")  # still starting; the clock was put on
        await presence.beat_replica(other)
        assert list(await presence.replicas()) == [one, other]
        assert sorted(await client.call("ZRANGE", keys.REPLICAS, 0, -1)) == [b"a", b"b", b"just silent"]
        await presence.forget_replica("b")
        assert 20 <= await presence.seconds_without_replica() < 50
        await client.call("ZADD", keys.REPLICAS, time.time() + 9_999, "just silent")  # the clock was put back
        await presence.beat_replica(other)
        assert 0 <= await presence.seconds_without_replica() < 5

    run(redis_url, story)


def test_keys_are_stored_as_hashes_only(redis_url: str) -> None:
    async def story(client: Client) -> None:
        store = KeyStore(client, KeyHash("secret"))
        await store.ensure("sk-selftune-secret", name="admin")
        assert (await store.authenticate("sk-selftune-secret")).key.name == "admin"
        with pytest.raises(NotAuthenticated) as caught:
            await store.authenticate("sk-selftune-guess")
        assert "guess" not in caught.value.message
        stored = b"".join(await client.call("KEYS", "*"))
        assert b"secret" not in stored
        assert hashlib.sha256(b"sk-selftune-secret").hexdigest().encode() not in stored

    run(redis_url, story)


def test_scripts_survive_a_server_that_forgot_them(redis_url: str) -> None:
    async def story(client: Client) -> None:
        jobs = JobStore(client)
        await jobs.create(a_job(), [])
        await jobs.append_events("ftjob-1", [event("one")])
        await client.call("SCRIPT", "FLUSH")
        await jobs.append_events("ftjob-1", [event("two")])
        assert len((await jobs.events("ftjob-1"))[0]) == 2

    run(redis_url, story)


def test_absent_server_is_one_clear_error(tmp_path: Any) -> None:
    async def story(client: Client) -> None:
        with pytest.raises(StoreUnavailable, match="does not answer"):
            await client.ping()
        with pytest.raises(StoreUnavailable):
            await client.together([("PING",)])

    run(f"unix://{tmp_path}/nothing.sock", story)


def test_cancelled_task_ends_even_in_the_middle_of_a_command(redis_url: str) -> None:
    async def forever(client: Client) -> None:
        while True:
            await client.ping()

    async def story(client: Client) -> None:
        for attempt in range(100):
            task = asyncio.create_task(forever(client))
            await asyncio.sleep(0.001 + 0.0001 * (attempt % 17))  # hits different places of the command
            task.cancel()
            done, _ = await asyncio.wait({task}, timeout=5)
            assert done, f"attempt {attempt}: the cancellation was lost"

    run(redis_url, story)


def test_silent_server_costs_one_timeout(tmp_path: Path) -> None:
    """A server that accepts and never answers, as a stopped process does."""

    async def story() -> float:
        server = await asyncio.start_unix_server(lambda _reader, _writer: None, tmp_path / "s")
        client = Client(f"unix://{tmp_path / 's'}", timeout_s=0.5)
        begun = asyncio.get_running_loop().time()
        with pytest.raises(StoreUnavailable):
            await client.ping()
        await client.close()
        server.close()
        return asyncio.get_running_loop().time() - begun

    assert asyncio.run(story()) < 2.0


ALIAS = AliasRecord(
    uid="alias_1", name="bot", project="p", target="v1", shadow=Shadow(model="v2", percent=100), created_at=1,
    updated_at=1,
)  # fmt: skip
CREATED = AliasRevision(id="1", revision=1, created_at=1, action="created", model="v1")


def make_pair(now: int, age_s: int = 0) -> StoredPair:
    """Make a pair of so many seconds ago that is kept for a minute."""
    return StoredPair(
        created_at=now - age_s, expires_at=now - age_s + 60, request_id="req", endpoint="/v1/completions",
        request=Raw(b"{}"), answer=ShadowAnswer(model="v1", total_ms=1), shadow=ShadowAnswer(model="v2", total_ms=1),
    )  # fmt: skip


def test_all_expired_answers_give_their_room_back_at_once(redis_url: str) -> None:
    async def story(client: Client) -> None:
        storage = Storage(client, project_bytes=30_000)
        expired = [part for number in range(2_500) for part in (1, f"chatcmpl-{number} 10")]
        await client.call("ZADD", keys.answers("p"), *expired, 0, "chatcmpl-kept 7")
        await client.call("SET", keys.project_bytes("p"), 25_007)
        await storage.check_room("p", 29_000)
        assert await storage.used_bytes("p") == 7
        await client.call("DEL", keys.project_bytes("p"))
        assert await storage.used_bytes("p") == 7

    run(redis_url, story)


def test_shadow_pairs_are_gone_when_their_time_is_over(redis_url: str) -> None:
    async def story(client: Client) -> None:
        pairs = PairStore(client)
        now = int(time.time())
        await AliasStore(client).create(ALIAS, CREATED)
        for age_s in (50, 0):
            await pairs.keep(ALIAS, make_pair(now, age_s), most=10, keep_s=60)
        kept, more = await pairs.list("alias_1", after=None, limit=10, now=now)
        assert [pair.expires_at - now for pair in kept] == [60, 10] and not more
        kept, _ = await pairs.list("alias_1", after=None, limit=10, now=now + 30)
        assert [pair.expires_at - now for pair in kept] == [60]
        assert 0 < await client.call("TTL", keys.shadow_pairs("alias_1")) <= 60
        with pytest.raises(NotFound):
            await pairs.list("alias_1", after="99999999999999999999-0", limit=10, now=now)

    run(redis_url, story)


def test_no_pair_is_kept_for_an_alias_that_is_gone_or_has_no_shadow(redis_url: str) -> None:
    async def story(client: Client) -> None:
        pairs, aliases, now = PairStore(client), AliasStore(client), int(time.time())

        async def kept() -> int:
            await pairs.keep(ALIAS, make_pair(now), most=10, keep_s=60)
            return len((await pairs.list("alias_1", after=None, limit=10, now=now))[0])

        assert await kept() == 0
        await aliases.create(ALIAS, CREATED)
        assert [await kept() for _ in range(2)] == [1, 2]
        await aliases.change("bot", lambda record: (replace(record, shadow=None), CREATED), project="p")
        assert await kept() == 2
        await aliases.delete("bot", project="p")
        await aliases.create(replace(ALIAS, uid="alias_2"), CREATED)
        assert await kept() == 0, "one of the same name is another"

    run(redis_url, story)


def test_counts_of_an_alias_add_up_over_slots_and_vanish(redis_url: str) -> None:
    async def story(client: Client) -> None:
        traffic, now = TrafficStore(client), time.time()
        count = Count(2, "failed", "a model: with spaces")
        for age_s, number in ((0, 1), (0, 2), (15, 4), (200, 8)):
            await traffic.add({Place("alias_1", slot_of(now - age_s)): {count: number}})
        assert await traffic.read("alias_1", window_s=60, now=now) == {count: 7}
        assert await traffic.read("alias_1", window_s=600, now=now) == {count: 15}
        assert await traffic.read("alias_2", window_s=600, now=now) == {}
        assert 0 < await client.call("TTL", keys.alias_traffic("alias_1", slot_of(now))) <= 4200

    run(redis_url, story)
