"""One replica's life up to the engine: take a place among the living, load vLLM, wait for the base model, serve.

vLLM takes longest to import, so it is imported while the base model is waited for; nothing in this module needs it.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import secrets
import signal
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import structlog
from prometheus_client import REGISTRY

from services.inference.adapters.merged_model import Found, wait_for_merged
from services.inference.engine import arguments as engine_args
from services.inference.replica import Replica, new_record
from shared.blobs.opening import open_blobs
from shared.errors import InvalidRequest, StorageUnavailable, StoreUnavailable
from shared.ids import is_fine_tuned
from shared.metrics import serve as serve_metrics
from shared.paths import Paths
from shared.records import BaseRecord
from shared.settings import Settings
from shared.store.client import Client
from shared.store.presence import Presence
from shared.store.registry import Registry
from shared.store.schema import ensure_schema

log = structlog.get_logger()

T = TypeVar("T")

_POLL_S = 0.5


class Interrupted(BaseException):
    """Raised by a signal while the engine starts and the event loop stands still."""


async def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; returns 0 then, and 1 when a part has failed and a restart is due."""
    if settings.inference_host in ("0.0.0.0", "::") and not settings.inference_url:  # noqa: S104 - is compared
        raise InvalidRequest("setting inference_url: needed where inference_host is every address, for the gateway")
    serve_metrics(REGISTRY, host=settings.metrics_host, port=settings.inference_metrics_port)
    stop = asyncio.Event()
    stop_on_signals(stop)
    client = Client(settings.database_url)
    replica = Replica(
        Presence(client),
        new_record(
            f"replica-{secrets.token_hex(4)}",
            max_loras=0 if settings.merged_model else settings.max_loras,
            max_lora_rank=0 if settings.merged_model else engine_args.served_rank(settings),
            max_running=settings.max_num_seqs,
            merged=settings.merged_model,
        ),
    )
    replica.start()
    try:
        found = await until_stopped(_prepare(settings, client, replica), stop)
        if found is None:
            return 0
        serve = importlib.import_module("services.inference.serve")
        return int(await serve.serve(settings, found.base, client, replica, stop, found.merged))
    except Interrupted:
        return 0
    finally:
        await replica.leave()
        await client.close()


def stop_on_signals(stop: asyncio.Event) -> None:
    """Set `stop` at the first SIGTERM or SIGINT; the second ends the process, and the engine with it."""

    def handle() -> None:
        if stop.is_set():
            os._exit(1)
        log.info("stop.requested")
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, handle)


def interrupt_on_signals() -> None:
    """Raise Interrupted at SIGTERM or SIGINT, for stretches in which the event loop does not turn."""

    def interrupt(*_: object) -> None:
        raise Interrupted

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, interrupt)


async def _prepare(settings: Settings, client: Client, replica: Replica) -> Found:
    await ensure_schema(client, settings)
    registry, vllm = Registry(client), _import_in_background("services.inference.serve")
    if settings.merged_model:
        found = await wait_for_merged(settings, registry, replica)
    else:
        found = Found(await _wait_for_base(settings, registry, replica))
    replica.set("starting", "loading vLLM", base=found.base.id)
    await vllm
    return found


async def _wait_for_base(settings: Settings, registry: Registry, replica: Replica) -> BaseRecord:
    wanted = settings.public_base_id
    while True:
        try:
            base = await registry.base(wanted)
        except StoreUnavailable as away:
            replica.set("waiting", away.message)
        else:
            placed = None if base is None else base.placed(settings.home)
            if placed is not None and placed.origin:
                await _fetch(settings, placed)
            if placed is not None and (Path(placed.path) / "config.json").is_file():
                return placed
            replica.set("waiting", f"waiting for base model {wanted}{_why_in_vain(wanted)}")
        await asyncio.sleep(_POLL_S)


async def _fetch(settings: Settings, base: BaseRecord) -> None:
    """Have the files of a model whose every weight was trained on this disk, if its store has them."""
    try:
        await open_blobs(settings, Paths(settings.home)).fetch(Path(base.path))
    except (StorageUnavailable, OSError) as error:
        log.warning("base.not_fetched", base=base.id, reason=type(error).__name__)


def _why_in_vain(wanted: str) -> str:
    """Say what may be wrong with a base that nobody registers: only jobs do so with fine-tuned ones."""
    if not is_fine_tuned(wanted):
        return ""
    return ", which is not here: only a model whose every weight was trained is a base, and not when it was deleted"


def _import_in_background(module: str) -> asyncio.Future[None]:
    """Import in a daemon thread: unlike a pool's, it does not hold up the end of the process."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def settle(error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def work() -> None:
        error: BaseException | None = None
        try:
            importlib.import_module(module)
        except BaseException as caught:  # noqa: BLE001 - carried over to whoever awaits the import
            error = caught
        loop.call_soon_threadsafe(settle, error)

    threading.Thread(target=work, daemon=True, name="import").start()
    return done


async def until_stopped(work: Coroutine[Any, Any, T], stop: asyncio.Event) -> T | None:
    """Return the outcome of `work`, or None when `stop` is set before; the work is cancelled then."""
    task = asyncio.create_task(work)
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        task.cancel()
        stopping.cancel()
