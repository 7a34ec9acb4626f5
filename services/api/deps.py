"""What handlers are given: stores, the gateway and the rest, opened once for the app."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from litestar.connection import Request
from litestar.datastructures import State
from litestar.di import Provide

from services.api.auth import Authenticator
from services.api.files.chunked_uploads import ChunkedUploads
from services.api.files.sweeper import Sweeper
from services.api.files.uploads import Uploads
from services.api.gateway.forwarding import Gateway
from services.api.gateway.model_names import ModelNames
from services.api.jobs.control import JobControl
from services.api.jobs.submission import Submission
from services.api.organization.admin_keys import AdminKeys
from services.api.organization.keys import KeyAdmin
from services.api.organization.projects import ProjectAdmin
from services.api.readiness import Readiness
from services.api.webhooks.dispatch import Dispatcher, Family, jobs_ending
from services.api.webhooks.endpoints import Webhooks
from services.api.webhooks.sender import WebhookSender
from shared.paths import Paths, internal_key
from shared.queue import Queue
from shared.records import KeyRecord
from shared.settings import Settings
from shared.store.api_keys import Identity, KeyStore
from shared.store.client import Client
from shared.store.completions import CompletionStore
from shared.store.files import FileStore
from shared.store.idempotency import IdempotencyStore
from shared.store.jobs import JobStore
from shared.store.limits import LimitStore
from shared.store.permissions import PermissionStore
from shared.store.presence import Presence
from shared.store.projects import ProjectStore, ServiceAccountStore
from shared.store.registry import Registry
from shared.store.responses import ResponseStore
from shared.store.uploads import UploadStore
from shared.store.webhooks import DeliveryStore, WebhookStore


@dataclass(frozen=True)
class Services:
    """Everything that lives as long as the app."""

    settings: Settings
    paths: Paths
    client: Client
    authenticator: Authenticator
    files: FileStore
    uploads: Uploads
    chunked: ChunkedUploads
    sweeper: Sweeper
    jobs: JobStore
    queue: Queue
    submission: Submission
    control: JobControl
    idempotency: IdempotencyStore
    permissions: PermissionStore
    registry: Registry
    names: ModelNames
    completions: CompletionStore
    responses: ResponseStore
    gateway: Gateway
    readiness: Readiness
    drain: asyncio.Event
    webhook_store: WebhookStore
    webhooks: Webhooks
    dispatcher: Dispatcher
    limits: LimitStore
    project_admin: ProjectAdmin
    key_admin: KeyAdmin
    admin_keys: AdminKeys

    @classmethod
    def open(cls, settings: Settings, drain: asyncio.Event) -> "Services":
        """Prepare the data folder and build the clients; none connects before its first use."""
        paths = Paths(settings.home)
        paths.prepare()
        client = Client(settings.redis_url)
        files = FileStore(client, project_bytes=settings.project_storage_bytes)
        jobs, registry, presence = JobStore(client), Registry(client), Presence(client)
        key_store, projects = KeyStore(client), ProjectStore(client)
        uploads, upload_store = Uploads(files, paths, max_file_bytes=settings.max_file_bytes), UploadStore(client)
        queue = Queue(settings.redis_url)
        webhook_store, sender = WebhookStore(client), WebhookSender(allow_private=settings.webhook_allow_private)
        names = ModelNames(registry, settings.model_aliases, organization=settings.organization)
        return cls(
            settings=settings,
            paths=paths,
            client=client,
            authenticator=Authenticator(key_store, projects, paths, settings),
            files=files,
            uploads=uploads,
            chunked=ChunkedUploads(upload_store, files, paths, settings),
            sweeper=Sweeper(files, upload_store, uploads, paths),
            jobs=jobs,
            queue=queue,
            submission=Submission(settings, files, jobs, registry, names, queue),
            control=JobControl(jobs, queue),
            idempotency=IdempotencyStore(client),
            permissions=PermissionStore(client),
            registry=registry,
            names=names,
            completions=CompletionStore(client, keep_days=settings.stored_completion_days),
            responses=ResponseStore(client, keep_days=settings.stored_completion_days),
            gateway=Gateway(names, presence, internal_key=internal_key(settings.internal_key, paths)),
            readiness=Readiness(client, paths, registry, presence, drain),
            drain=drain,
            webhook_store=webhook_store,
            webhooks=Webhooks(webhook_store, sender),
            dispatcher=Dispatcher(
                webhook_store,
                DeliveryStore(client),
                sender,
                {"ftjob-": Family("fine_tuning.job", jobs_ending(jobs))},
                retry_base_s=settings.webhook_retry_base_s,
                drain=drain,
            ),
            limits=LimitStore(client),
            project_admin=ProjectAdmin(settings, projects),
            key_admin=KeyAdmin(projects, ServiceAccountStore(client), key_store),
            admin_keys=AdminKeys(settings.organization, key_store),
        )

    async def start(self) -> None:
        self.sweeper.start()
        await self.authenticator.start()
        self.dispatcher.start()

    async def close(self) -> None:
        await self.sweeper.stop()
        await self.dispatcher.close()
        await self.gateway.close()
        await self.queue.close()
        await self.client.close()


def providers() -> dict[str, Provide]:
    """Providers by parameter name: each part of Services, and the `caller`."""
    named = {name: Provide(_part(name), sync_to_thread=False) for name in Services.__dataclass_fields__}
    return {
        **named,
        "caller": Provide(provide_caller, sync_to_thread=False),
        "identity": Provide(provide_identity, sync_to_thread=False),
    }


def provide_caller(request: Request[Any, Identity, State]) -> KeyRecord:
    """The key that the guard has let in."""
    return request.auth.key


def provide_identity(request: Request[Any, Identity, State]) -> Identity:
    """The key that the guard has let in, and its project with the limits that hold."""
    return request.auth


def _part(name: str) -> Callable[[State], Any]:
    def provide(state: State) -> Any:
        return getattr(state.services, name)

    return provide
