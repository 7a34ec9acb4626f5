"""One replica's life from the engine on: start it, load adapters, answer, drain, stop. Imports vLLM."""

from __future__ import annotations

import asyncio
import logging
import socket
from argparse import Namespace
from typing import Any, Literal

import structlog
import uvicorn
import vllm
from vllm.entrypoints.launchers.api_server import entry
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.platforms import current_platform
from vllm.utils.argparse_utils import FlexibleArgumentParser

from services.inference import metrics, tasks
from services.inference.adapters import copies
from services.inference.adapters.agent import AdapterAgent
from services.inference.adapters.loader import AdapterLoader
from services.inference.adapters.merged_model import MergedAgent
from services.inference.adapters.ownership import Ownership
from services.inference.adapters.reports import Reports
from services.inference.adapters.turns import Turns
from services.inference.adapters.uses import Uses
from services.inference.engine import arguments as engine_args
from services.inference.engine import process as engine_process
from services.inference.engine import self_test
from services.inference.engine.link import EngineLink
from services.inference.engine.self_test import EngineFailed
from services.inference.http import server
from services.inference.http.admission import Traffic
from services.inference.http.usage import UsageCounts
from services.inference.launcher import interrupt_on_signals, stop_on_signals, until_stopped
from services.inference.replica import STARTUP_TTL_S, Replica
from shared.blobs.opening import open_blobs
from shared.logging import configure
from shared.paths import Paths, internal_key
from shared.records import AdapterRecord, BaseRecord
from shared.settings import Settings
from shared.store.adapter_uses import AdapterUses
from shared.store.client import Client
from shared.store.presence import Presence
from shared.store.registry import Registry
from shared.store.usage import UsageStore

log = structlog.get_logger()

_CHECK_S = 2.0
_ENGINE_DEADLINE_S = 30.0
_TURN_S = 2.0
"""How long an adapter gets new requests into the engine while others wait for its place."""


async def serve(
    settings: Settings,
    base: BaseRecord,
    client: Client,
    replica: Replica,
    stop: asyncio.Event,
    merged: AdapterRecord | None = None,
) -> int:
    """Serve `base`, or `merged` on it, until `stop` is set (0) or a part ends (1)."""
    _check_version()
    if current_platform.is_cpu():
        engine_process.use_in_vllm()
    args = _parse(settings, base, merged)
    with server.bind(settings.inference_host, settings.inference_port) as sock:
        replica.set("starting", "starting the engine")
        await replica.beat(STARTUP_TTL_S)
        if stop.is_set():
            return 0
        interrupt_on_signals()
        async with entry.build_async_engine_client(args) as engine:
            stop_on_signals(stop)
            log.info("engine.started", pid=engine_pid(engine))
            return await _Server(settings, base, client, replica, engine, merged).serve(args, sock, stop)


class _Server:
    """One replica's parts around an engine that is up."""

    def __init__(
        self,
        settings: Settings,
        base: BaseRecord,
        client: Client,
        replica: Replica,
        engine: Any,
        merged: AdapterRecord | None,
    ) -> None:
        self._settings = settings
        self._replica = replica
        self._engine = engine
        self._link = EngineLink(engine)
        self._loader = make_loader(settings, base, self._link)
        self._reports = Reports(Registry(client), replica.record.id)
        self._uses = Uses(AdapterUses(client), base.id)
        self._usage = UsageCounts(UsageStore(client))
        self._merged = merged
        self._agent = self._make_agent(client)
        self._traffic = Traffic()

    async def serve(self, args: Namespace, sock: socket.socket, stop: asyncio.Event) -> int:
        """Get ready and answer until `stop` is set (0), also before it is ready, or a part ends (1)."""
        http = await until_stopped(self._get_ready(args, sock), stop)
        if http is None:
            return 0
        parts = [
            asyncio.create_task(http.serve(sockets=[sock]), name="http"),
            asyncio.create_task(self._agent.follow(), name="registry"),
            asyncio.create_task(self._reports.run(), name="reports"),
            asyncio.create_task(self._uses.run(), name="uses"),
            asyncio.create_task(self._usage.run(), name="usage"),
            asyncio.create_task(self._watch_engine(), name="engine"),
            asyncio.create_task(copies.drop_forever(self._settings), name="copies"),
        ]
        self._replica.set("ready")
        await self._replica.beat()
        metrics.READY.set(1)
        log.info("replica.ready", url=self._replica.record.url, base=self._replica.record.base)
        failed = await _first_to_end(parts, stop)
        await self._wind_down(http, parts, gracefully=failed is None or failed.exception() is None)
        return 0 if failed is None else 1

    async def _get_ready(self, args: Namespace, sock: socket.socket) -> uvicorn.Server:
        settings, replica, agent, traffic = self._settings, self._replica, self._agent, self._traffic
        app = await server.build(
            args, self._engine, agent, traffic, settings, internal_key(settings.internal_key, Paths(settings.home)),
            is_ready=lambda: replica.record.state == "ready", note_usage=self._usage.note,
        )  # fmt: skip
        configure("inference", level=settings.log_level)  # a library behind build() has taken the root logger
        _adopt_lines_of_vllm()
        able = tuple(await self._engine.get_supported_tasks())
        replica.set("starting", "testing the engine", engine_pid=engine_pid(self._engine), tasks=able)
        await self_test.prove(
            self._engine, self._link, _ENGINE_DEADLINE_S, generates="generate" in able, max_tokens=args.max_model_len,
            takes_adapters=self._merged is None,
        )  # fmt: skip
        replica.set("starting", "learning the adapters", url=server.address(settings, sock))
        metrics.install(names=agent.names, numbers=lambda: {**agent.numbers(), "requests_running": traffic.running})
        replica.describe_with(lambda: {"resident": agent.names(), "running": traffic.running})
        await agent.start()
        return server.make_server(app)

    def _make_agent(self, client: Client) -> AdapterAgent | MergedAgent:
        registry = Registry(client)
        if self._merged is not None:
            return MergedAgent(self._merged, registry=registry, reports=self._reports)
        return AdapterAgent(
            base_id=self._replica.record.base,
            registry=registry,
            reports=self._reports,
            loader=self._loader,
            turns=Turns(self._settings.max_loras, turn_s=_TURN_S, patience_s=self._settings.adapter_queue_s),
            uses=self._uses,
            is_owner=Ownership(Presence(client), self._replica).includes,
        )

    async def _wind_down(self, http: uvicorn.Server, parts: list[asyncio.Task[None]], *, gracefully: bool) -> None:
        """Leave the registry first, answer what is inside, then stop the parts."""
        self._replica.set("draining")
        metrics.READY.set(0)
        await self._replica.leave()
        if gracefully:
            await server.drain(self._traffic)
        http.should_exit = True
        serving, *others = parts
        await asyncio.wait([serving], timeout=10)
        await tasks.end([*others, serving])
        await self._usage.tell()

    async def _watch_engine(self) -> None:
        """Prove every two seconds that the engine's loop turns. Raises when the engine is dead."""
        while True:
            await asyncio.sleep(_CHECK_S)
            if self._engine.errored:
                raise EngineFailed("the engine process has ended")
            try:
                await self._loader.check(_ENGINE_DEADLINE_S)
            except TimeoutError:
                self._tell("starting", f"the engine has not answered for {_ENGINE_DEADLINE_S:g} s")
            else:
                self._tell("ready")

    def _tell(self, state: Literal["starting", "ready"], reason: str = "") -> None:
        if self._replica.record.state != "draining":
            self._replica.set(state, reason)


def make_loader(settings: Settings, base: BaseRecord, link: EngineLink) -> AdapterLoader:
    """Make the engine's loader; one of the engine's places stays spare, for a step that lacks its adapter."""
    return AdapterLoader(
        engine=link,
        base=base,
        blobs=open_blobs(settings, Paths(settings.home)),
        capacity=engine_args.cached_adapters(settings) - 1,
        max_rank=settings.max_lora_rank,
    )


async def _first_to_end(parts: list[asyncio.Task[None]], stop: asyncio.Event) -> asyncio.Task[None] | None:
    """Wait for `stop` or for a part to end; returns that part. Without an error one ends for a retired model alone."""
    stopping = asyncio.create_task(stop.wait())
    done, _ = await asyncio.wait({*parts, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    failed = next((part for part in parts if part in done), None)
    if failed is None:
        return None
    if failed.exception() is not None:
        log.error("replica.failed", part=failed.get_name(), exc_info=failed.exception())
    return failed


def engine_pid(engine: Any) -> int | None:
    """Return the process id of the (first) EngineCore."""
    manager = engine.engine_core.resources.engine_manager
    return manager.processes[0].pid if manager is not None and manager.processes else None


def _parse(settings: Settings, base: BaseRecord, merged: AdapterRecord | None) -> Namespace:
    parser = make_arg_parser(FlexibleArgumentParser())
    arguments = engine_args.arguments(settings, base, on_cpu=current_platform.is_cpu(), merged=merged)
    args: Namespace = parser.parse_args(arguments)
    validate_parsed_serve_args(args)
    return args


def _adopt_lines_of_vllm() -> None:
    """Have this process's part of vLLM log as we do, with the ids of the request at hand."""
    theirs = logging.getLogger("vllm")
    theirs.handlers.clear()
    theirs.propagate = True


def _check_version() -> None:
    if vllm.__version__.split("+")[0] != engine_args.SUPPORTED_VLLM:
        raise EngineFailed(f"vLLM {engine_args.SUPPORTED_VLLM} is needed, {vllm.__version__} is installed")
