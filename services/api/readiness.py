"""Whether the stack can do its job, part by part."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal

from msgspec import Struct

from services.api.stores import Stores
from shared.blobs.interface import Blobs
from shared.errors import StorageUnavailable, StoreUnavailable, Unavailable
from shared.paths import write_atomic
from shared.settings import Settings
from shared.store.client import Client
from shared.store.persistence import look_for_losses

_PROBE_S = 0.5
_WARN_AGAIN_S = 60.0
_STORAGE_S = 3.0


class Part(Struct, frozen=True, kw_only=True):
    """One part of the stack."""

    ready: bool
    reason: str = ""
    """Why it is not ready, or what to look after although it is."""


class TrainerPart(Part, frozen=True, kw_only=True):
    """The trainers."""

    memory_bytes: int | None = None
    """Most that a training process may need on one of them; larger jobs wait. None where none says."""


class Report(Struct, frozen=True, kw_only=True):
    """Answer of GET /readyz."""

    status: Literal["ready", "not_ready"]
    redis: Part
    storage: Part
    trainer: TrainerPart
    inference: Part


class Health(Struct, frozen=True, kw_only=True):
    """Answer of GET /healthz."""

    status: Literal["ok"] = "ok"


class Readiness:
    """Looks at every part."""

    def __init__(
        self,
        settings: Settings,
        client: Client,
        stores: Stores,
        blobs: Blobs,
        drain: asyncio.Event,
        *,
        record_objection: Callable[[], str],
    ) -> None:
        self._client = client
        self._blobs = blobs
        self._registry = stores.registry
        self._presence = stores.presence
        self._drain = drain
        self._record_objection = record_objection
        self._check_secret = stores.key_store.check_secret
        self._base_id = settings.public_base_id
        self._merged_model = settings.merged_model
        self._warned: tuple[float, str] | None = None
        self._probed: tuple[float, Part] | None = None

    async def report(self) -> Report:
        """Ask all parts at once; each answer is yes, or no with the reason."""
        redis, storage, trainer, inference = await asyncio.gather(
            _guarded(self._redis()), self._storage(), self._trainer_or_why_not(), _guarded(self._inference())
        )
        ready = all(part.ready for part in (redis, storage, trainer, inference)) and not self._drain.is_set()
        status: Literal["ready", "not_ready"] = "ready" if ready else "not_ready"
        return Report(status=status, redis=redis, storage=storage, trainer=trainer, inference=inference)

    async def _redis(self) -> Part:
        await self._client.ping()
        await self._check_secret()
        return Part(ready=True, reason="; ".join(filter(None, (self._record_objection(), await self._warning()))))

    async def _warning(self) -> str:
        """Say what the database may lose, looking once a minute."""
        now = time.monotonic()
        if self._warned is None or now - self._warned[0] > _WARN_AGAIN_S:
            self._warned = now, "; ".join(await look_for_losses(self._client))
        return self._warned[1]

    async def _storage(self) -> Part:
        """Write to the data folder and ask the object store, a few times a second at most: anybody may ask."""
        now = time.monotonic()
        if self._probed is None or now - self._probed[0] > _PROBE_S:
            self._probed = now, await self._write()
        return self._probed[1]

    async def _write(self) -> Part:
        try:
            await asyncio.to_thread(_probe, self._blobs.paths.home)
            async with asyncio.timeout(_STORAGE_S):
                await self._blobs.check()
        except TimeoutError:
            return Part(ready=False, reason=f"the object storage has not answered for {_STORAGE_S:g} s")
        except StorageUnavailable as error:
            return Part(ready=False, reason=error.message)
        except OSError as error:
            return Part(ready=False, reason=f"the data folder cannot be written: {error.strerror}")
        return Part(ready=True)

    async def _trainer_or_why_not(self) -> TrainerPart:
        try:
            return await self._trainer()
        except StoreUnavailable as error:
            return TrainerPart(ready=False, reason=error.message)

    async def _trainer(self) -> TrainerPart:
        workers = await self._presence.workers()
        working = [worker for worker in workers if worker.state in ("idle", "training")]
        if working:
            sizes = [worker.memory_bytes for worker in working if worker.memory_bytes is not None]
            return TrainerPart(ready=True, memory_bytes=max(sizes, default=None))
        states = sorted({_phrase(worker.state, worker.reason) for worker in workers})
        return TrainerPart(ready=False, reason=", ".join(states) or "no trainer is running")

    async def _inference(self) -> Part:
        own = await self._registry.base(self._base_id)
        # One that a model is merged into answers for that alone; it counts where the operator wants nothing else.
        replicas = [one for one in await self._presence.replicas() if one.merged in ("", self._merged_model)]
        served = {replica.base for replica in replicas if replica.state == "ready" and replica.url}
        # One that the operator has changed for another stays registered: its models may come back, and nobody waits.
        wanted = [own] if own is not None else await self._registry.bases()
        missing = [base.id for base in wanted if base.id not in served]
        if wanted and not missing:
            return Part(ready=True)
        states = sorted({_phrase(replica.state, replica.reason) for replica in replicas if replica.state != "ready"})
        what = f"nothing serves {', '.join(missing)}" if missing else "no base model is registered yet"
        return Part(ready=False, reason=": ".join([what, *states]) if replicas else f"{what}; no replica is running")


def _phrase(state: str, reason: str) -> str:
    return f"{state} ({reason})" if reason else state


def _probe(folder: Path) -> None:
    probe = folder / ".writable"
    write_atomic(probe, b"")
    probe.unlink(missing_ok=True)


async def _guarded(part: Awaitable[Part]) -> Part:
    try:
        return await part
    except Unavailable as error:
        return Part(ready=False, reason=error.message)
