"""What handlers are given: stores, the gateway and the rest, opened once for the app."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from litestar.connection import Request
from litestar.datastructures import State
from litestar.di import Provide

from services.api.adapters.importing import AdapterImports
from services.api.aliases.parts import AliasParts
from services.api.audit.refusals import Refusals
from services.api.auth import Authenticator
from services.api.batches.creation import Batches
from services.api.batches.run import Tools
from services.api.batches.runner import Runner
from services.api.core import Core
from services.api.database import Database
from services.api.evals.parts import EvalParts
from services.api.files.chunked_uploads import ChunkedUploads
from services.api.files.sweeper import Sweeper
from services.api.flow_parts import FlowParts
from services.api.gateway.residency import Residencies
from services.api.model_settings.changes import ModelSettingsAdmin
from services.api.organization.admin_keys import AdminKeys
from services.api.organization.keys import KeyAdmin
from services.api.readiness import Readiness
from services.api.recorder import Recorder
from services.api.stores import Stores
from services.api.webhooks.dispatch import Dispatcher, families_of
from services.api.webhooks.endpoints import Webhooks
from services.api.webhooks.sender import WebhookSender
from shared.records import KeyRecord
from shared.settings import Settings
from shared.store.api_keys import Identity


@dataclass(frozen=True)
class Services:
    """Everything that lives as long as the app."""

    core: Core
    measured: EvalParts
    named: AliasParts
    flowing: FlowParts
    database: Database
    recorder: Recorder
    readiness: Readiness
    authenticator: Authenticator
    refusals: Refusals
    key_admin: KeyAdmin
    admin_keys: AdminKeys
    chunked: ChunkedUploads
    sweeper: Sweeper
    adapter_imports: AdapterImports
    residencies: Residencies
    model_settings: ModelSettingsAdmin
    batches: Batches
    batch_runner: Runner
    webhooks: Webhooks
    dispatcher: Dispatcher

    @property
    def stores(self) -> Stores:
        return self.core.stores

    @classmethod
    def open(cls, settings: Settings, drain: asyncio.Event) -> Services:
        """Prepare the data folder and build the clients; none connects before its first use."""
        core = Core.open(settings, drain)
        at, client, blobs, names = core.stores, core.client, core.blobs, core.names
        measured = EvalParts.open(core)
        named = AliasParts.open(core, measured)
        recorder = Recorder(client, blobs, interval_s=settings.records_interval_s)
        sender = WebhookSender(core.outgoing)
        return cls(
            core=core,
            measured=measured,
            named=named,
            flowing=FlowParts.open(core, measured, named),
            database=Database(client, settings),
            recorder=recorder,
            readiness=Readiness(settings, client, at, blobs, drain, record_objection=lambda: recorder.objection),
            authenticator=Authenticator(at.key_store, at.projects, core.paths, settings),
            refusals=Refusals(at.audit_store),
            key_admin=KeyAdmin(at.projects, at.service_accounts, at.key_store),
            admin_keys=AdminKeys(settings.organization, at.key_store),
            chunked=ChunkedUploads(at.upload_store, at.files, blobs, settings),
            sweeper=Sweeper(at.files, at.upload_store, core.uploads, blobs, at.audit_store),
            adapter_imports=AdapterImports(settings, at.files, at.registry, names, blobs),
            residencies=Residencies(names, at.registry, at.presence),
            model_settings=ModelSettingsAdmin(
                settings, names, at.registry, at.model_settings_store, at.key_store, at.permissions
            ),
            batches=Batches(at.batch_store, at.files, blobs),
            batch_runner=Runner(Tools.of(settings, at, blobs, core.gateway), core.leftovers(core.paths.batches), drain),
            webhooks=Webhooks(at.webhook_store, sender),
            dispatcher=Dispatcher(
                at.webhook_store,
                at.deliveries,
                sender,
                families_of(at.jobs, at.batch_store),
                retry_base_s=settings.webhook_retry_base_s,
                drain=drain,
            ),
        )

    async def start(self) -> None:
        await self.database.start(self._start_parts)

    async def _start_parts(self) -> None:
        self.sweeper.start()
        await self.authenticator.start()
        self.dispatcher.start()
        self.core.counting.start()
        self.batch_runner.start()
        self.measured.start()
        self.named.start()
        self.flowing.start()
        self.recorder.start()

    async def close(self) -> None:
        await self.database.close()
        await self.batch_runner.close()
        await self.flowing.close()
        await self.named.close()
        await self.measured.close()
        await self.sweeper.stop()
        await self.dispatcher.close()
        await self.recorder.close()
        await self.refusals.close()
        await self.core.close()


_GROUPS: dict[str, type[Any]] = {
    "core": Core, "measured": EvalParts, "named": AliasParts, "flowing": FlowParts, "stores": Stores,
}  # fmt: skip


def providers() -> dict[str, Provide]:
    """Providers by parameter name: each part of Services and of its groups, the `caller` and its `identity`."""
    provided = {
        "caller": Provide(provide_caller, sync_to_thread=False),
        "identity": Provide(provide_identity, sync_to_thread=False),
    }
    for name in Services.__dataclass_fields__:
        provided[name] = Provide(_part(name), sync_to_thread=False)
    for group, kind in _GROUPS.items():
        for name in kind.__dataclass_fields__:
            provided[name] = Provide(_part(name, group), sync_to_thread=False)
    return provided


def provide_caller(request: Request[Any, Identity, State]) -> KeyRecord:
    """The key that the guard has let in."""
    return request.auth.key


def provide_identity(request: Request[Any, Identity, State]) -> Identity:
    """The key that the guard has let in, and its project with the limits that hold."""
    return request.auth


def _part(name: str, group: str | None = None) -> Callable[[State], Any]:
    def provide(state: State) -> Any:
        return getattr(state.services if group is None else getattr(state.services, group), name)

    return provide
