"""`python -m services.trainer.health`: tell by the exit status whether the trainer of this host works, for probes.

A trainer answers no requests; what it shows of itself is its heartbeat in the database. With `--alive` only a trainer
whose heartbeat is missing there fails: while the database is away nobody can tell, and training goes on without it.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Sequence

from shared.errors import SelftuneError, StoreUnavailable
from shared.records import WorkerRecord
from shared.settings import Settings
from shared.store.client import Client
from shared.store.presence import Presence

_TIMEOUT_S = 3.0
_ALIVE = "--alive"


def main(arguments: Sequence[str]) -> int:
    """Return 0 if this host's trainer works, 1 if not, 2 for other arguments than none or --alive."""
    if arguments not in ([], [_ALIVE]):
        sys.stderr.write(f"usage: python -m services.trainer.health [{_ALIVE}]\n")
        return 2
    try:
        problem = asyncio.run(_look(Settings.load(), only_alive=bool(arguments)))
    except SelftuneError as error:
        problem = error.message
    sys.stderr.write(f"{problem}\n" if problem else "")
    return 1 if problem else 0


async def _look(settings: Settings, *, only_alive: bool) -> str:
    """Say what is wrong with this host's trainer; empty when nothing is."""
    client = Client(settings.database_url, connections=1, timeout_s=_TIMEOUT_S)
    try:
        workers = await Presence(client).workers()
    except StoreUnavailable as error:
        return "" if only_alive else error.message
    finally:
        await client.close()
    return explain(workers, socket.gethostname(), only_alive=only_alive)


def explain(workers: Sequence[WorkerRecord], host: str, *, only_alive: bool) -> str:
    """Say why no trainer of `host` works, given all that are alive; empty when one does."""
    here = [worker for worker in workers if worker.id.rpartition("-")[0] == host]
    if not here:
        return f"no trainer of {host} has a heartbeat"
    if only_alive or any(worker.state != "preparing" for worker in here):
        return ""
    return here[0].reason or "preparing"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
