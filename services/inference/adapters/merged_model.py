"""One fine-tuned model on an engine of its own: its adapter is part of the weights, and costs nothing when it answers.

The server waits for the model as an ordinary one does for its base, checks it the same way, and answers for its name
alone. When the model is retired the process ends; the next one waits for it.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import structlog
from msgspec import Struct

from services.inference.adapters.leases import Lease
from services.inference.adapters.loader import stage, verify_record
from services.inference.adapters.reports import Reports
from services.inference.replica import Replica
from shared.adapter_form import read_form
from shared.adapter_values import check_values
from shared.adapters import CONFIG_NAME, WEIGHTS_NAME
from shared.blobs.opening import open_blobs
from shared.errors import AdapterRejected, NotFound, StoreUnavailable, Unavailable
from shared.paths import Paths
from shared.records import AdapterRecord, BaseRecord, Residency
from shared.settings import Settings
from shared.store.registry import CursorLost, Registry

log = structlog.get_logger()

_POLL_S = 0.5
_RETRY_REJECTED_S = 10.0
_BLOCK_MS = 1000


class Found(Struct, frozen=True):
    """What an engine is to serve: a base with its adapters, or one adapter merged into it."""

    base: BaseRecord
    merged: AdapterRecord | None = None


async def wait_for_merged(settings: Settings, registry: Registry, replica: Replica) -> Found:
    """Wait until `settings.merged_model` is there and fit to be merged; the replica's record says what is missing."""
    while True:
        try:
            return await _find(settings, registry)
        except Unavailable as missing:
            replica.set("waiting", missing.message)
            await asyncio.sleep(_POLL_S)
        except AdapterRejected as refusal:
            replica.set("waiting", f"{settings.merged_model} cannot be merged: {refusal.message}")
            await asyncio.sleep(_RETRY_REJECTED_S)


async def _find(settings: Settings, registry: Registry) -> Found:
    name = settings.merged_model
    record = await registry.get(name)
    if record is None or not record.listed:
        raise Unavailable(f"waiting for the fine-tuned model {name}, which is not here")
    if record.whole:
        raise AdapterRejected("it is a whole model; set base_model to its name instead")
    base = await registry.base(record.base)
    placed = None if base is None else base.placed(settings.home)
    if placed is None or not (Path(placed.path) / "config.json").is_file():
        raise Unavailable(f"waiting for base model {record.base}")
    await stage(record, open_blobs(settings, Paths(settings.home)))
    await asyncio.to_thread(_verify, record, placed, settings.home)
    return Found(placed, record)


def _verify(record: AdapterRecord, base: BaseRecord, home: Path) -> None:
    """Check as for loading, though for any rank, and that base plus s·B·A is all there is to it."""
    try:
        config = msgspec.json.decode((Path(base.path) / "config.json").read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise AdapterRejected(f"the config.json of its base {base.id} cannot be read") from error
    if config.get("quantization_config"):
        raise AdapterRejected("its base is stored quantised, where sums would be rounded away")
    verify_record(record, base, home, max_rank=record.rank)
    read_form((home / record.folder / CONFIG_NAME).read_bytes())
    check_values(home / record.folder / WEIGHTS_NAME)


class MergedAgent:
    """Stands in for an AdapterAgent where no adapter is taken. All methods run on one event loop."""

    def __init__(self, record: AdapterRecord, *, registry: Registry, reports: Reports) -> None:
        self.base_id = record.name
        self._record = record
        self._registry = registry
        self._reports = reports
        self._cursor = "0-0"

    async def start(self) -> None:
        """Report that the model is in memory; it was loaded with the engine."""
        self._reports.note(self._record.name, Residency(state="warm", reason="merged into the weights"))

    async def follow(self) -> None:
        """Return when the model is retired."""
        while True:
            try:
                self._cursor, _ = await self._registry.snapshot(self._record.base)
                if not await self._is_there():
                    break
                await self._wait_for_news()
            except CursorLost:
                continue
            except StoreUnavailable:
                await asyncio.sleep(_POLL_S)
        log.info("model.retired", model=self._record.name)
        self._reports.note(self._record.name, Residency(state="gone"))

    async def acquire(self, name: str) -> Lease:
        """Refuse every name: the one that this server answers for needs no lease. Raises NotFound."""
        raise NotFound(
            f"The model '{name}' is not served here: this inference server answers for '{self.base_id}' alone.",
            code="model_not_found",
            param="model",
        )

    def release(self, lease: Lease) -> None:
        """There is none to give back."""

    def names(self) -> list[str]:
        return [self._record.name]

    def numbers(self) -> dict[str, int]:
        """There are no adapters to count."""
        return {}

    async def _is_there(self) -> bool:
        current = await self._registry.get(self._record.name)
        return current is not None and current.int_id == self._record.int_id

    async def _wait_for_news(self) -> None:
        while True:
            self._cursor, changes = await self._registry.changes(self._cursor, block_ms=_BLOCK_MS)
            if any(change.name == self._record.name for change in changes):
                return
