"""Pulling one plug, and putting it in again."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import psutil
import redis

from tests.faults.plan import Fault, Kind
from tests.faults.site import Site


async def pull(site: Site, fault: Fault) -> bool:
    """Do it, and return when it is over; False where there was nothing to do it to."""
    match fault.kind:
        case Kind.KILL:
            return await _to_each(site, fault.target, "kill")
        case Kind.STOP:
            return await _to_each(site, fault.target, "terminate")
        case Kind.FREEZE:
            return await _freeze(site, fault)
        case Kind.FILL_DISK:
            await asyncio.to_thread(site.fill_disk)
            await asyncio.sleep(fault.lasts_s)
            await asyncio.to_thread(site.free_disk)
        case Kind.CUT_REDIS:
            return await asyncio.to_thread(_cut, site)
        case Kind.MOVE_CLOCK:
            site.move_clock(fault.seconds)
    return True


async def _to_each(site: Site, target: str, action: str) -> bool:
    processes = await asyncio.to_thread(site.processes, target)
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            getattr(process, action)()
    if target == "launcher" and processes:  # nothing else starts it again
        await asyncio.to_thread(processes[0].wait, 30)
    return bool(processes)


async def _freeze(site: Site, fault: Fault) -> bool:
    processes = await asyncio.to_thread(site.processes, fault.target)
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.suspend()
    await asyncio.sleep(fault.lasts_s if processes else 0)
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.resume()
    return bool(processes)


def _cut(site: Site) -> bool:
    try:
        with site.redis() as client:
            return bool(client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"))
    except redis.RedisError:
        return False
