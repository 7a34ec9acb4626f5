from __future__ import annotations

import asyncio

from services.inference.adapters.leases import Lease, Residents


def lease(int_id: int) -> Lease:
    return Lease(f"model-{int_id}", 1, int_id, f"/adapters/{int_id}")


def residents(*int_ids: int, capacity: int = 3) -> Residents:
    table = Residents(capacity)
    table.replace(int_ids)
    return table


def test_the_least_recently_used_idle_adapter_goes_first() -> None:
    table = residents(1, 2, 3)
    used = lease(1)
    table.add(used)
    table.release(used)
    assert table.make_room() == [2]
    assert table.ids() == [3, 1]


def test_leased_adapters_stay() -> None:
    table = residents(1, 2, 3)
    table.add(lease(1))
    table.add(lease(2))
    assert table.make_room() == [3]
    table.replace([1, 2, 4])
    table.add(lease(4))
    assert not table.has_room()
    assert table.make_room() is None


def test_no_adapter_goes_while_there_is_room() -> None:
    assert residents(1, capacity=2).make_room() == []


def test_releasing_twice_counts_once() -> None:
    table = residents(1)
    first, second = lease(1), lease(1)
    table.add(first)
    table.add(second)
    table.release(first)
    table.release(first)
    assert table.leased(1)


def test_waiters_wake_when_the_last_lease_ends() -> None:
    async def story() -> None:
        table = residents(1)
        first, second = lease(1), lease(1)
        table.add(first)
        table.add(second)
        change = table.next_change()
        table.release(first)
        assert not change.is_set()
        table.release(second)
        assert change.is_set()
        assert not table.next_change().is_set()

    asyncio.run(story())


def test_the_engines_word_replaces_the_table_but_not_the_order() -> None:
    table = residents(3, 1, 2)
    table.replace([1, 2, 9])
    assert table.ids() == [1, 2, 9]


def test_versions_have_different_names_in_the_engine() -> None:
    assert Lease("ft:a", 2, 7, "/x").engine_name == "ft:a@v2"
