"""One run: the undisturbed trainings first, then clients and faults side by side, then the verdict."""

from __future__ import annotations

import asyncio
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from shared.store.client import Client as StoreClient
from shared.store.registry import Registry
from tests.faults import plugs
from tests.faults.calls import Calls
from tests.faults.clients import Client
from tests.faults.ledger import KnownJob, Ledger
from tests.faults.plan import PROCESSES, Fault, Kind, draw
from tests.faults.recipes import RECIPES
from tests.faults.site import Site, site
from tests.faults.verdict import Verdict

Say = Callable[[str], None]
WATCH_S = 0.5
BACK_S = 180.0
"""How long a process may be away that was killed; without jobs there is no training process, either."""


@dataclass(frozen=True)
class Outcome:
    """What a run has shown; `wrong` is empty if it is good."""

    pulled: Counter[str]
    ledger: Ledger
    ends: Counter[str]
    took_s: float

    @property
    def wrong(self) -> Sequence[str]:
        return self.ledger.wrong

    def summary(self) -> str:
        known = self.ledger
        lines = [
            f"{sum(self.pulled.values())} faults in {self.took_s:.0f} s: "
            + ", ".join(f"{count} {what}" for what, count in self.pulled.most_common()),
            (
                f"acknowledged: {len(known.files)} files, {len(known.jobs)} jobs ({dict(self.ends)}), "
                f"{sum(len(job.events) for job in known.jobs.values())} events, {len(known.batches)} batches "
                f"({dict(Counter(batch.ended_as for batch in known.batches.values()))}), {len(known.uploads)} uploads "
                f"in parts, {len(known.aliases)} aliases, {known.answers} chats; {known.unavailable} tries met a "
                f"fault, {known.given_up} requests were given up"
            ),
            f"wrong: {len(self.wrong)}",
        ]
        return "\n".join([*lines, *(f"  {text}" for text in self.wrong)])


def run(count: int, *, seed: int, n_clients: int, say: Say, kept_logs: Path | None = None) -> Outcome:
    """Pull `count` plugs. Raises AssertionError where the stack does not come back; logs go to `kept_logs` then."""
    begun = time.monotonic()
    with site() as place:
        without = frozenset({Kind.FILL_DISK} if not place.can_fill else ()) | (
            frozenset({Kind.MOVE_CLOCK}) if not place.can_move else frozenset()
        )
        if without:
            say(f"not possible here: {', '.join(sorted(without))}")
        ledger, pulled = Ledger(), Counter[str]()
        try:
            place.start()
            place.wait_until_ready()
            digests = asyncio.run(_undisturbed(place, ledger, say))
            asyncio.run(_disturb(place, ledger, draw(seed, count, without=without), seed, n_clients, pulled, say))
            ends = _judge(place, ledger, digests, say, disk_was_full=bool(pulled[Kind.FILL_DISK.value]))
        except BaseException:
            _keep_logs(place, kept_logs, say)
            raise
        if ledger.wrong:
            _keep_logs(place, kept_logs, say)
        return Outcome(pulled, ledger, ends, time.monotonic() - begun)


async def _undisturbed(place: Site, ledger: Ledger, say: Say) -> dict[int, str]:
    """Train every recipe once in peace; returns the digests of the models, by the recipe's number."""
    calls = Calls("peace", place.urls, place.key, ledger, random.Random(0))
    store = StoreClient(place.redis_url)
    digests: dict[int, str] = {}
    for recipe in RECIPES:
        file_id = await calls.upload(recipe.content(), purpose="fine-tune")
        made = await calls.ask("POST", "/fine_tuning/jobs", json=recipe.job(file_id or "", f"peace-{recipe.number}"))
        assert made is not None, ledger.wrong
        ledger.jobs[made["id"]] = KnownJob(recipe.number, f"peace-{recipe.number}")
        while (job := await calls.ask("GET", f"/fine_tuning/jobs/{made['id']}")) and job["status"] != "succeeded":
            assert job["status"] not in ("failed", "cancelled"), job
            await asyncio.sleep(0.2)
        assert job is not None
        adapter = await Registry(store).get(job["fine_tuned_model"])
        assert adapter is not None
        digests[recipe.number] = adapter.sha256
    await calls.close()
    await store.close()
    say(f"undisturbed: {digests}")
    return digests


async def _disturb(
    place: Site, ledger: Ledger, faults: Sequence[Fault], seed: int, n_clients: int, pulled: Counter[str], say: Say
) -> None:
    stop = asyncio.Event()
    clients = [
        Client(str(number), place.urls, place.key, ledger, random.Random(f"{seed}-{number}"))
        for number in range(n_clients)
    ]
    working = [asyncio.create_task(client.work(stop)) for client in clients]
    watching = asyncio.create_task(_watch(place, stop))
    try:
        for number, fault in enumerate(faults, 1):
            await asyncio.sleep(fault.pause_s)
            ledger.clock_moves += fault.kind is Kind.MOVE_CLOCK
            await _pull(place, fault)
            pulled[f"{fault.kind.value} {fault.target}".strip()] += 1
            say(f"{number:4d} {fault}")
            for task in (*working, watching):
                if task.done():
                    task.result()
    finally:
        stop.set()
        await asyncio.gather(*working, watching)
        for client in clients:
            await client.close()


async def _pull(place: Site, fault: Fault) -> None:
    """Pull a plug; wait for what it is for, which may be being started."""
    deadline = time.monotonic() + BACK_S
    while not await plugs.pull(place, fault):
        assert time.monotonic() < deadline, f"not there for {BACK_S:.0f} s: {fault.target}"
        await asyncio.sleep(1)


async def _watch(place: Site, stop: asyncio.Event) -> None:
    """Be the operator's supervisor: start the launcher and what runs beside it again when they have ended."""
    while not stop.is_set():
        await asyncio.to_thread(place.start)
        await asyncio.sleep(WATCH_S)


def _judge(place: Site, ledger: Ledger, digests: dict[int, str], say: Say, *, disk_was_full: bool) -> Counter[str]:
    for target in PROCESSES:
        for process in place.processes(target):
            with suppress(psutil.NoSuchProcess):
                process.resume()
    place.start()
    place.wait_until_ready()
    verdict = Verdict(place, ledger, digests, disk_was_full=disk_was_full)
    try:
        verdict.settle()
        say("every job and batch is at its end")
        verdict.sweep()
        verdict.judge()
        for left in place.stop():
            ledger.blame("a process is left:", left)
        verdict.judge_disk()
        verdict.judge_rebuilt()
    finally:
        verdict.close()
    return Counter(job.ended_as for job in ledger.jobs.values())


def _keep_logs(place: Site, kept_logs: Path | None, say: Say) -> None:
    if kept_logs is not None:
        shutil.copytree(place.folder, kept_logs, ignore=lambda *_: {"disk", "tiny-llama"}, dirs_exist_ok=True)
        say(f"logs: {kept_logs}")
