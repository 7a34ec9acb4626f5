"""What handlers are given: stores, the gateway and the rest, opened once for the app."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from litestar.connection import Request
from litestar.datastructures import State
from litestar.di import Provide

from services.api import metrics
from services.api.adapters.importing import AdapterImports
from services.api.aliases.counting import Counting
from services.api.aliases.guard import Guard
from services.api.aliases.management import Aliases
from services.api.aliases.shadowing import Shadowing
from services.api.aliases.traffic import Traffic
from services.api.aliases.warming import Warming
from services.api.audit.refusals import Refusals
from services.api.auth import Authenticator
from services.api.batches.answering import Answering
from services.api.batches.creation import Batches
from services.api.batches.output_files import OutputFiles
from services.api.batches.run import Tools
from services.api.batches.runner import Runner
from services.api.batches.slots import Slots
from services.api.database import Database
from services.api.evals.comparison import Comparisons
from services.api.evals.creation import EvalRuns
from services.api.evals.definitions import Evals
from services.api.evals.run import Tools as EvalTools
from services.api.evals.runner import EvalRunner
from services.api.evals.sources import Sources
from services.api.files.chunked_uploads import ChunkedUploads
from services.api.files.sweeper import Sweeper
from services.api.files.uploads import Uploads
from services.api.gateway.forwarding import Gateway
from services.api.gateway.model_names import ModelNames
from services.api.gateway.replicas import Replicas
from services.api.gateway.residency import Residencies
from services.api.graders.judges import Judges
from services.api.graders.outside import OutsideJudges
from services.api.graders.running import Graders
from services.api.jobs.control import JobControl
from services.api.jobs.submission import Submission
from services.api.model_settings.changes import ModelSettingsAdmin
from services.api.organization.admin_keys import AdminKeys
from services.api.organization.keys import KeyAdmin
from services.api.organization.projects import ProjectAdmin
from services.api.readiness import Readiness
from services.api.recorder import Recorder
from services.api.webhooks.dispatch import Dispatcher, Family, batches_ending, jobs_ending
from services.api.webhooks.endpoints import Webhooks
from services.api.webhooks.sender import WebhookSender
from shared import keys
from shared.blobs.interface import Blobs
from shared.blobs.opening import open_blobs
from shared.key_hash import KeyHash
from shared.outgoing import Outgoing
from shared.paths import Paths, internal_key, key_secret
from shared.queue import Queue
from shared.records import KeyRecord
from shared.settings import Settings
from shared.store.alias_traffic import TrafficStore
from shared.store.aliases import AliasStore
from shared.store.api_keys import Identity, KeyStore
from shared.store.audit import AuditStore
from shared.store.batches import BatchStore
from shared.store.client import Client
from shared.store.completions import CompletionStore
from shared.store.eval_runs import EvalRunStore
from shared.store.evals import EvalStore
from shared.store.files import FileStore
from shared.store.idempotency import IdempotencyStore
from shared.store.jobs import JobStore
from shared.store.leases import LeaseStore
from shared.store.limits import LimitStore
from shared.store.model_settings import ModelSettingsStore
from shared.store.permissions import PermissionStore
from shared.store.presence import Presence
from shared.store.projects import ProjectStore, ServiceAccountStore
from shared.store.registry import Registry
from shared.store.responses import ResponseStore
from shared.store.shadow_pairs import PairStore
from shared.store.uploads import UploadStore
from shared.store.webhooks import DeliveryStore, WebhookStore


@dataclass(frozen=True)
class Services:
    """Everything that lives as long as the app."""

    settings: Settings
    paths: Paths
    blobs: Blobs
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
    adapter_imports: AdapterImports
    model_settings: ModelSettingsAdmin
    residencies: Residencies
    alias_store: AliasStore
    aliases: Aliases
    alias_traffic: TrafficStore
    shadow_pairs: PairStore
    counting: Counting
    shadowing: Shadowing
    completions: CompletionStore
    responses: ResponseStore
    gateway: Gateway
    graders: Graders
    readiness: Readiness
    batch_store: BatchStore
    batches: Batches
    batch_runner: Runner
    eval_store: EvalStore
    eval_run_store: EvalRunStore
    evals: Evals
    eval_runs: EvalRuns
    eval_comparisons: Comparisons
    eval_runner: EvalRunner
    drain: asyncio.Event
    webhook_store: WebhookStore
    webhooks: Webhooks
    dispatcher: Dispatcher
    limits: LimitStore
    project_admin: ProjectAdmin
    key_admin: KeyAdmin
    admin_keys: AdminKeys
    database: Database
    recorder: Recorder
    projects: ProjectStore
    audit_store: AuditStore
    refusals: Refusals

    @classmethod
    def open(cls, settings: Settings, drain: asyncio.Event) -> "Services":
        """Prepare the data folder and build the clients; none connects before its first use."""
        paths = Paths(settings.home)
        paths.prepare()
        blobs = open_blobs(settings, paths)
        client = Client(settings.database_url, watch=metrics.note_store_call)
        files = FileStore(client, project_bytes=settings.project_storage_bytes)
        jobs, registry, presence = JobStore(client), Registry(client), Presence(client)
        batch_store = BatchStore(client)
        audit_store = AuditStore(client)
        kept_days = settings.stored_completion_days
        completions = CompletionStore(client, keep_days=kept_days, project_bytes=settings.project_storage_bytes)
        responses = ResponseStore(
            client, keep_days=kept_days, max_conversation_bytes=settings.max_body_bytes,
            project_bytes=settings.project_storage_bytes,
        )  # fmt: skip
        key_hash = KeyHash(key_secret(settings.key_secret, paths))
        key_store, projects = KeyStore(client, key_hash), ProjectStore(client)
        uploads = Uploads(files, blobs, max_file_bytes=settings.max_file_bytes)
        upload_store = UploadStore(client, project_bytes=settings.project_storage_bytes)
        queue = Queue(settings.database_url)
        outgoing = Outgoing(settings.outgoing_hosts, allow_private=settings.webhook_allow_private)
        webhook_store, sender = WebhookStore(client), WebhookSender(outgoing)
        permissions = PermissionStore(client)
        alias_store, alias_traffic, shadow_pairs = AliasStore(client), TrafficStore(client), PairStore(client)
        names = ModelNames(registry, alias_store, settings.model_aliases, organization=settings.organization)
        counting = Counting(alias_traffic, Guard(alias_store, alias_traffic, registry, audit_store))
        shadowing = Shadowing(alias_store, shadow_pairs, counting)
        reachable = Replicas(presence, internal_key=internal_key(settings.internal_key, paths))
        salt_of = key_hash.cache_salt if settings.prefix_cache_sharing == "project" else lambda _: ""
        gateway = Gateway(names, reachable, Traffic(counting, shadowing), salt_of=salt_of)
        tools = Tools(
            batches=batch_store,
            leases=LeaseStore(client, ttl_s=settings.lease_ttl_s, key=keys.batch_lease, owned=keys.batch),
            answering=Answering(gateway, completions, responses, Slots(settings.batch_concurrency)),
            files=OutputFiles(files, blobs),
            blobs=blobs,
            concurrency=settings.batch_concurrency,
            max_line_bytes=settings.max_body_bytes,
        )
        graders = Graders(
            Judges(gateway, OutsideJudges(settings.judge_endpoints, outgoing), timeout_s=settings.judge_timeout_s)
        )
        eval_store, eval_slots = EvalStore(client), Slots(settings.eval_concurrency)
        eval_run_store = EvalRunStore(client, item_days=settings.eval_item_days)
        eval_runs = EvalRuns(eval_store, eval_run_store, Sources(files, completions, blobs), names, blobs)
        eval_tools = EvalTools(
            evals=eval_store,
            runs=eval_run_store,
            leases=LeaseStore(client, ttl_s=settings.lease_ttl_s, key=keys.eval_run_lease, owned=keys.eval_run),
            answering=Answering(gateway, completions, responses, eval_slots),
            graders=graders,
            slots=eval_slots,
            blobs=blobs,
            concurrency=settings.eval_concurrency,
        )
        recorder = Recorder(client, blobs, interval_s=settings.records_interval_s)
        return cls(
            settings=settings,
            paths=paths,
            blobs=blobs,
            client=client,
            authenticator=Authenticator(key_store, projects, paths, settings),
            files=files,
            uploads=uploads,
            chunked=ChunkedUploads(upload_store, files, blobs, settings),
            sweeper=Sweeper(files, upload_store, uploads, blobs, audit_store),
            jobs=jobs,
            queue=queue,
            submission=Submission(settings, files, jobs, registry, names, queue),
            control=JobControl(jobs, queue),
            idempotency=IdempotencyStore(client),
            permissions=permissions,
            registry=registry,
            names=names,
            adapter_imports=AdapterImports(settings, files, registry, names, blobs),
            residencies=Residencies(names, registry, presence),
            model_settings=ModelSettingsAdmin(
                settings, names, registry, ModelSettingsStore(client), key_store, permissions
            ),
            alias_store=alias_store,
            aliases=Aliases(alias_store, registry, names, Warming(registry, presence)),
            alias_traffic=alias_traffic,
            shadow_pairs=shadow_pairs,
            counting=counting,
            shadowing=shadowing,
            completions=completions,
            responses=responses,
            gateway=gateway,
            graders=graders,
            readiness=Readiness(
                client,
                blobs,
                registry,
                presence,
                drain,
                record_objection=lambda: recorder.objection,
                check_secret=key_store.check_secret,
                base_id=settings.public_base_id,
                merged_model=settings.merged_model,
            ),
            batch_store=batch_store,
            batches=Batches(batch_store, files, blobs),
            batch_runner=Runner(tools, drain),
            eval_store=eval_store,
            eval_run_store=eval_run_store,
            evals=Evals(eval_store, eval_runs, graders),
            eval_runs=eval_runs,
            eval_comparisons=Comparisons(eval_run_store),
            eval_runner=EvalRunner(eval_tools, drain),
            drain=drain,
            webhook_store=webhook_store,
            webhooks=Webhooks(webhook_store, sender),
            dispatcher=Dispatcher(
                webhook_store,
                DeliveryStore(client),
                sender,
                {
                    "ftjob-": Family("fine_tuning.job", jobs_ending(jobs)),
                    "batch_": Family("batch", batches_ending(batch_store)),
                },
                retry_base_s=settings.webhook_retry_base_s,
                drain=drain,
            ),
            limits=LimitStore(client),
            project_admin=ProjectAdmin(settings, projects),
            key_admin=KeyAdmin(projects, ServiceAccountStore(client), key_store),
            admin_keys=AdminKeys(settings.organization, key_store),
            database=Database(client, settings),
            recorder=recorder,
            projects=projects,
            audit_store=audit_store,
            refusals=Refusals(audit_store),
        )

    async def start(self) -> None:
        await self.database.start(self._start_parts)

    async def _start_parts(self) -> None:
        self.sweeper.start()
        await self.authenticator.start()
        self.dispatcher.start()
        self.counting.start()
        self.batch_runner.start()
        self.eval_runner.start()
        self.recorder.start()

    async def close(self) -> None:
        await self.database.close()
        await self.batch_runner.close()
        await self.eval_runner.close()
        await self.sweeper.stop()
        await self.dispatcher.close()
        await self.shadowing.close()
        await self.counting.close()
        await self.graders.close()
        await self.gateway.close()
        await self.recorder.close()
        await self.refusals.close()
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
