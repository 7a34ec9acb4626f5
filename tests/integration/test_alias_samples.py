"""What is kept of an alias that has more traffic than there is room for, in a real Redis."""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec
import pytest
from msgspec.structs import replace

from services.api.aliases.changes import first_entry
from services.api.aliases.quality import compared
from shared import keys
from shared.alias_records import AliasRecord, SetBy
from shared.monitor_records import DueSample, Sample
from shared.records import KeyRecord
from shared.schemas.monitors import Baseline, DriftThresholds, Monitor
from shared.schemas.quality import QualityWindow
from shared.store import alias_samples
from shared.store.alias_samples import SampleStore
from shared.store.aliases import AliasStore
from shared.store.client import Client
from tests.api_server import with_store
from tests.unit.api.test_alias_quality import CODE_QUESTIONS, ORDER_QUESTIONS, POLITE

HOUR, DAY = 3600, 86_400
MONITOR = Monitor(
    sample_rate=1.0,
    graders=[POLITE],
    baseline=Baseline(training=False, first_s=7 * DAY),
    thresholds=DriftThresholds(min_samples=50),
)
ALIAS = AliasRecord(
    uid="u1", name="bot", project="proj_a", target="m", created_at=1, updated_at=1, monitor=MONITOR,
    monitor_set=SetBy(key_id="key_1", at=0),
)  # fmt: skip
CALLER = KeyRecord(id="key_1", name="ada", project="proj_a", created_at=1)


@pytest.fixture(autouse=True)
def little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alias_samples, "MOST_FIRST", 100)
    monkeypatch.setattr(alias_samples, "MOST_IN_WINDOW", 100)
    monkeypatch.setattr(alias_samples, "MOST_SAMPLES", 200)
    monkeypatch.setattr(alias_samples, "random", random.Random(3))


def a_day(number: int, drawing: random.Random, *, drifted: bool = False) -> list[Sample]:
    """Form answers of a day, 10 an hour: orders by day, code with worse answers by night."""
    found = []
    for place in range(240):
        at = number * DAY + place * DAY // 240
        is_night = at % DAY < 8 * HOUR
        asked = CODE_QUESTIONS if is_night or drifted else ORDER_QUESTIONS
        good = 0.4 if is_night or drifted else 0.9
        scores = {"polite": float(drawing.random() < good)}
        found.append(Sample(id=f"{at}", at=at, model="m", since=1, traits=drawing.choice(asked), scores=scores))
    return found


async def keep(client: Client, samples: Sequence[Sample], alias: AliasRecord = ALIAS) -> None:
    store = SampleStore(client)
    dues = [DueSample(id=one.id, at=one.at, model="m", since=one.since) for one in samples]
    await client.call("RPUSH", keys.alias_due_samples("u1"), *map(msgspec.json.encode, dues))
    for due, sample in zip(dues, samples, strict=True):
        is_first = due.at < 7 * DAY
        await store.keep(alias, due, sample, window=None if is_first else due.at // DAY * DAY)


async def window_of(client: Client, number: int) -> tuple[QualityWindow, list[Sample]]:
    store = SampleStore(client)
    inside = [one for one in await store.latest("u1", since=1) if number * DAY <= one.at < (number + 1) * DAY]
    empty = QualityWindow(
        id="1", model="m", starts_at=number * DAY, ends_at=(number + 1) * DAY, samples=0, status="too_few_samples"
    )
    first = await store.first("u1", since=1)
    return compared(empty, inside, first=first, training=[], monitor=MONITOR), inside


def test_a_rhythm_of_days_is_no_drift_and_drift_in_it_is_found(redis_url: str) -> None:
    async def story(client: Client) -> None:
        await AliasStore(client).create(ALIAS, first_entry(ALIAS, "", CALLER))
        drawing = random.Random(1)
        for number in range(9):
            await keep(client, a_day(number, drawing))
        first = await SampleStore(client).first("u1", since=1)
        assert len(first) == 100 and [one.at for one in first] == sorted(one.at for one in first)
        assert len({one.at // DAY for one in first}) == 7, "of every day of the week"
        for number in (7, 8):
            window, inside = await window_of(client, number)
            assert (window.status, window.alarms, len(inside)) == ("compared", [], 100)
            assert {one.at % DAY // (8 * HOUR) for one in inside} == {0, 1, 2}, "of the whole day"
        await keep(client, a_day(9, drawing, drifted=True))
        window, _ = await window_of(client, 9)
        assert any("words" in alarm for alarm in window.alarms) and any("'polite' fell" in one for one in window.alarms)
        newest = await SampleStore(client).latest("u1", since=1)
        assert len(newest) == 200 and newest[0].at == max(one.at for one in newest)

    with_store(redis_url, story)


def test_another_model_begins_anew(redis_url: str) -> None:
    async def story(client: Client) -> None:
        moved = replace(ALIAS, target_since=2)
        await AliasStore(client).create(moved, first_entry(moved, "", CALLER))
        samples = a_day(0, random.Random(2))
        await keep(client, samples)
        later = [replace(one, id=f"late {one.id}", since=2) for one in samples[:60]]
        await keep(client, later, moved)
        assert list(await SampleStore(client).first("u1", since=2)) == later, "what was seen before takes no place"

    with_store(redis_url, story)


def test_a_baseline_that_is_made_longer_after_many_windows_is_kept(redis_url: str) -> None:
    """Nothing came in its time, and eight windows had samples before there was more time for it."""

    async def story(client: Client) -> None:
        await AliasStore(client).create(ALIAS, first_entry(ALIAS, "", CALLER))
        samples = [replace(a_day(day, random.Random(day))[0], id=f"day {day}") for day in range(7, 15)]
        await keep(client, samples)
        early = [replace(a_day(0, random.Random(0))[0], id="early")]
        await keep(client, early)
        assert list(await SampleStore(client).first("u1", since=1)) == early

    with_store(redis_url, story)
