"""What attempts take of devices: shared evenly, added up over attempts in the record and in the project's usage."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from services.api.costs.usage import UsageCosts
from services.trainer.device_clock import DeviceClock
from services.trainer.jobs import attempt_record
from services.trainer.jobs.device_time import DeviceTime
from services.trainer.launch.launching import Launcher
from services.trainer.stores import Stores
from shared.prices import TokenPrice
from shared.records import DEFAULT_PROJECT, JobRecord
from shared.schemas.methods import SupervisedHyperparameters
from shared.settings import Settings
from shared.states import JobState
from shared.store.client import Client
from shared.store.projects import ProjectStore
from shared.store.registry import Registry
from shared.store.usage import REST, Day, Pace, UsageStore, Used, today
from tests.api_server import NO_METRICS, with_store
from tests.integration.trainer_stack import Client as TrainerClient
from tests.integration.trainer_stack import with_client


class Clock:
    """A clock that is put forward by hand."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_jobs_that_train_together_share_the_device_evenly() -> None:
    now = Clock()
    clock = DeviceClock(now)
    now.seconds += 7  # nobody's
    clock.enter("a")
    now.seconds += 4
    clock.enter("b")
    now.seconds += 6
    assert (clock.spent("a"), clock.spent("b")) == (7.0, 3.0)
    clock.leave("a")
    now.seconds += 1
    assert clock.spent("b") == 4.0
    clock.leave("b")
    now.seconds += 50
    clock.enter("b", devices=4)
    now.seconds += 2
    assert clock.spent("b") == 8.0


def test_attempts_add_up_and_a_death_costs_what_was_written_last(tmp_path: Path, redis_url: str) -> None:
    settings = Settings(
        data_dir=str(tmp_path), redis_url=redis_url, device_hour_price=36.0, currency="EUR", **NO_METRICS
    )
    record = JobRecord(
        id="ftjob-a", project=DEFAULT_PROJECT, organization="o", created_at=int(time.time()), model="base",
        training_file="file-a", seed=1, requested=SupervisedHyperparameters(), model_name="ft:base:o::a",
        status=JobState.QUEUED,
    )  # fmt: skip

    async def story(client: TrainerClient) -> None:
        stores, now = client.stores, Clock()
        launcher = Launcher(settings)
        launcher.clock = DeviceClock(now)
        await stores.jobs.create(record, [])

        async def begin() -> tuple[str, DeviceTime]:
            token = await stores.leases.claim(record.id)
            assert token is not None
            return token, DeviceTime(stores, launcher, await attempt_record.begin(stores, record.id, token))

        async def used_ms(stores: Stores) -> int:
            day = Day(DEFAULT_PROJECT, today())
            return (await stores.usage.read([day]))[day][Used("device_ms", record.model_name)]

        token, first = await begin()
        now.seconds += 10
        await attempt_record.note_time(stores, record.id, token, first)
        await first.tell()
        now.seconds += 3  # of which the worker's death keeps nothing
        first.leave()
        await stores.leases.release(record.id, token)
        token, second = await begin()
        now.seconds += 5
        await second.tell()
        now.seconds += 5
        await second.tell()
        await attempt_record.hand_back(stores, record.id, token, second)
        second.leave()
        await stores.leases.release(record.id, token)
        left = await stores.jobs.get(record.id)
        assert (left.status, left.device_seconds) == (JobState.QUEUED, 20.0)
        assert (left.cost.price, left.cost.currency) == (0.2, "EUR")
        assert left.public().selftune.cost == left.cost
        assert await used_ms(stores) == 20_000
        third_token, third = await begin()
        now.seconds += 1
        await stores.jobs.finish(record.id, JobState.CANCELLED)
        assert not await attempt_record.put_down(stores, record.id, third_token, third)
        assert (await stores.jobs.get(record.id)).device_seconds == 21.0

    with_client(settings, story)


def test_a_day_has_so_many_models_and_the_rest_counts_together(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.store.usage._MOST_FIELDS", 2)

    async def story(client: Client) -> None:
        usage, day = UsageStore(client), Day("p", "2026-11-28")
        for model in ("a", "b c", "d", "e", "a"):
            await usage.add({day: {Used("requests", model): 2}})
        found = await usage.read([day, Day("p", "2026-11-27")])
        assert found == {day: {Used("requests", "a"): 4, Used("requests", "b c"): 2, Used("requests", REST): 4}}
        assert await usage.of_model([day, Day("p", "2026-11-27")], "b c") == {
            "requests": 2, "input_tokens": 0, "cached_tokens": 0, "output_tokens": 0,
        }  # fmt: skip
        assert 0 < await client.call("TTL", "selftune:usage:p 2026-11-28") <= 400 * 86_400
        assert await usage.pace("base", "dpo/lora/none") == Pace()
        job = Pace(jobs=1, tokens=100, device_ms=50, file_bytes=40, file_tokens=10, memory_bytes=7)
        for memory in (7, 9):
            await usage.add_pace("base", "dpo/lora/none", replace(job, memory_bytes=memory))
        assert await usage.pace("base", "dpo/lora/none") == Pace(
            jobs=2, tokens=200, device_ms=100, file_bytes=80, file_tokens=20, memory_bytes=9
        )

    with_store(redis_url, story)


def test_deleted_model_costs_what_its_base_does_where_the_base_is_known(redis_url: str) -> None:
    async def story(client: Client) -> None:
        prices = {"base": TokenPrice(input=1.0, output=2.0), "*": TokenPrice(input=9.0, output=9.0)}
        costs = UsageCosts(Settings(model_prices=prices), UsageStore(client), Registry(client), ProjectStore(client))
        assert await costs.price("ft:base:o::gone", base="base") == prices["base"]
        assert await costs.price("ft:base:o::gone") == prices["*"]

    with_store(redis_url, story)
