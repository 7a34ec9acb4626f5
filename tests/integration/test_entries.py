"""A record is read with everything that belongs to it, and put back as it was."""

from __future__ import annotations

import redis

from shared import keys
from shared.store import entries
from shared.store.client import Client
from shared.store.entries import Entry
from tests.api_server import with_store

ODD = b"\xff\x00\xfe"


def read_all(url: str) -> list[Entry]:
    async def read(client: Client) -> list[Entry]:
        families = await entries.find(client)
        return [entry for family, names in families.items() async for entry in entries.read(client, family, names)]

    return with_store(url, read)


def test_entries_survive_json_and_an_empty_database(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.hset(keys.job("ftjob-1"), mapping={"record": '{"project":"p","status":"queued"}', "nonces": "a b"})
        client.zadd(keys.jobs("p"), {"ftjob-1": 7})
        client.sadd(keys.ACTIVE_JOBS, "ftjob-1")
        client.xadd(keys.job_events("ftjob-1"), {"event": ODD}, id="5-1")
        client.rpush(keys.job_checkpoints("ftjob-1"), "b", "a")
        client.set("selftune:unheard_of:x:y", ODD, px=3_600_000)
        client.hset("selftune:unheard_of_hash", mapping={"a": "1"})
        client.zadd("selftune:unheard_of_zset", {"m": 1.5})
        client.set(keys.job_lease("ftjob-1"), "token")
        client.xadd(keys.AUDIT, {"entry": "{}"}, id="6-1")
        client.hset(keys.AUDIT_PENDING, "token", "{}")
        client.set(keys.SEQUENCE, 9)
    found = [entries.decode(entries.encode(entry)) for entry in read_all(redis_url)]
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
        client.set(keys.SEQUENCE, 12)

    async def put_back(client: Client) -> list[bool]:
        return [await entries.put_back(client, entry) for entry in found]

    assert all(with_store(redis_url, put_back))
    assert [entry for entry in read_all(redis_url) if entry.key != keys.SEQUENCE] == [
        entry for entry in found if entry.key != keys.SEQUENCE
    ]
    assert [*with_store(redis_url, put_back)].count(False) == len(found) - 1
    with redis.Redis.from_url(redis_url) as client:
        assert client.get(keys.SEQUENCE) == b"12"
        assert client.xrange(keys.job_events("ftjob-1")) == [(b"5-1", {b"event": ODD})]
        assert client.xrange(keys.AUDIT) == [(b"6-1", {b"entry": b"{}"})]
        assert client.hgetall(keys.AUDIT_PENDING) == {b"token": b"{}"}
        assert client.lrange(keys.job_checkpoints("ftjob-1"), 0, -1) == [b"b", b"a"]
        assert client.zscore(keys.jobs("p"), "ftjob-1") == 7
        assert client.smembers(keys.ACTIVE_JOBS) == {b"ftjob-1"}
        assert client.hkeys(keys.job("ftjob-1")) == [b"record"]
        assert client.get("selftune:unheard_of:x:y") == ODD
        assert 0 < client.pttl("selftune:unheard_of:x:y") <= 3_600_000
        assert not client.exists(keys.job_lease("ftjob-1"))
