"""What handlers are given: stores, the gateway and the rest, opened once for the app."""

from __future__ import annotations

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
from services.api.batches.creation import Batches
from services.api.batches.run import Tools
from services.api.batches.runner import Runner
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
from services.api.graders.running import Graders
from services.api.jobs.control import JobControl
from services.api.jobs.submission import Submission
from services.api.leftovers import Leftovers
from services.api.model_settings.changes import ModelSettingsAdmin
from services.api.organization.admin_keys import AdminKeys
from services.api.organization.keys import KeyAdmin
from services.api.organization.projects import ProjectAdmin
from services.api.readiness import Readiness
from services.api.recorder import Recorder
from services.api.rollouts.files import RolloutFiles
from services.api.rollouts.regraded import Regraded
from services.api.rollouts.regrading import Regrading
from services.api.stores import Stores
from services.api.webhooks.dispatch import Dispatcher, families_of
from services.api.webhooks.endpoints import Webhooks
from services.api.webhooks.sender import WebhookSender
from shared.blobs.interface import Blobs
from shared.blobs.opening import open_blobs
from shared.grading.caging import Caging
from shared.grading.outside import OutsideJudges
from shared.key_hash import KeyHash
from shared.outgoing import Outgoing
from shared.paths import Paths, internal_key, key_secret
from shared.queue import Queue
from shared.records import KeyRecord
from shared.reward_scoring import RewardScoring
from shared.settings import Settings
from shared.store.api_keys import Identity
from shared.store.client import Client


@dataclass(frozen=True)
class Services:
    """Everything that lives as long as the app."""

    settings: Settings
    paths: Paths
    blobs: Blobs
    client: Client
    drain: asyncio.Event
    stores: Stores
    queue: Queue
    database: Database
    recorder: Recorder
    readiness: Readiness
    authenticator: Authenticator
    refusals: Refusals
    project_admin: ProjectAdmin
    key_admin: KeyAdmin
    admin_keys: AdminKeys
    uploads: Uploads
    chunked: ChunkedUploads
    sweeper: Sweeper
    submission: Submission
    control: JobControl
    rollout_files: RolloutFiles
    regrading: Regrading
    regraded: Regraded
    names: ModelNames
    adapter_imports: AdapterImports
    residencies: Residencies
    model_settings: ModelSettingsAdmin
    aliases: Aliases
    counting: Counting
    shadowing: Shadowing
    gateway: Gateway
    graders: Graders
    batches: Batches
    batch_runner: Runner
    evals: Evals
    eval_runs: EvalRuns
    eval_comparisons: Comparisons
    eval_runner: EvalRunner
    webhooks: Webhooks
    dispatcher: Dispatcher

    @classmethod
    def open(cls, settings: Settings, drain: asyncio.Event) -> Services:
        """Prepare the data folder and build the clients; none connects before its first use."""
        paths = Paths(settings.home)
        paths.prepare()
        blobs = open_blobs(settings, paths)
        client = Client(settings.database_url, watch=metrics.note_store_call)
        key_hash = KeyHash(key_secret(settings.key_secret, paths))
        at = Stores.on(client, settings, key_hash)
        queue = Queue(settings.database_url)
        uploads = Uploads(at.files, blobs, max_file_bytes=settings.max_file_bytes)
        names = ModelNames(at.registry, at.alias_store, settings.model_aliases, organization=settings.organization)
        counting = Counting(at.alias_traffic, Guard(at.alias_store, at.alias_traffic, at.registry, at.audit_store))
        shadowing = Shadowing(at.alias_store, at.shadow_pairs, counting)
        replicas = Replicas(at.presence, internal_key=internal_key(settings.internal_key, paths))
        salt_of = key_hash.cache_salt if settings.prefix_cache_sharing == "project" else lambda _: ""
        gateway = Gateway(names, replicas, Traffic(counting, shadowing), salt_of=salt_of)
        outgoing = Outgoing(settings.outgoing_hosts, allow_private=settings.webhook_allow_private)
        sender = WebhookSender(outgoing)
        outside = OutsideJudges(settings.judge_endpoints, outgoing)
        judges = Judges(gateway, outside, timeout_s=settings.judge_timeout_s)
        reward_models = RewardScoring(client, timeout_s=settings.judge_timeout_s)
        graders = Graders(judges, Caging(turned_on=settings.python_graders), reward_models)
        rows = Sources(at.files, at.completions, blobs)
        eval_runs = EvalRuns(at.eval_store, at.eval_run_store, rows, names, judges, blobs)
        evals = Evals(at.eval_store, eval_runs, graders)
        rollout_files = RolloutFiles(blobs)
        recorder = Recorder(client, blobs, interval_s=settings.records_interval_s)
        return cls(
            settings=settings,
            paths=paths,
            blobs=blobs,
            client=client,
            drain=drain,
            stores=at,
            queue=queue,
            database=Database(client, settings),
            recorder=recorder,
            readiness=Readiness(settings, client, at, blobs, drain, record_objection=lambda: recorder.objection),
            authenticator=Authenticator(at.key_store, at.projects, paths, settings),
            refusals=Refusals(at.audit_store),
            project_admin=ProjectAdmin(settings, at.projects),
            key_admin=KeyAdmin(at.projects, at.service_accounts, at.key_store),
            admin_keys=AdminKeys(settings.organization, at.key_store),
            uploads=uploads,
            chunked=ChunkedUploads(at.upload_store, at.files, blobs, settings),
            sweeper=Sweeper(at.files, at.upload_store, uploads, blobs, at.audit_store),
            submission=Submission(settings, at.files, at.jobs, at.registry, names, graders, queue),
            control=JobControl(at.jobs, queue),
            rollout_files=rollout_files,
            regrading=Regrading(rollout_files, uploads, graders, names, evals, eval_runs, at.eval_run_store),
            regraded=Regraded(at.eval_store, at.eval_run_store),
            names=names,
            adapter_imports=AdapterImports(settings, at.files, at.registry, names, blobs),
            residencies=Residencies(names, at.registry, at.presence),
            model_settings=ModelSettingsAdmin(
                settings, names, at.registry, at.model_settings_store, at.key_store, at.permissions
            ),
            aliases=Aliases(at.alias_store, at.registry, names, Warming(at.registry, at.presence)),
            counting=counting,
            shadowing=shadowing,
            gateway=gateway,
            graders=graders,
            batches=Batches(at.batch_store, at.files, blobs),
            batch_runner=Runner(Tools.of(settings, at, blobs, gateway), Leftovers(client, blobs, paths.batches), drain),
            evals=evals,
            eval_runs=eval_runs,
            eval_comparisons=Comparisons(at.eval_run_store),
            eval_runner=EvalRunner(
                EvalTools.of(settings, at, blobs, gateway, graders), Leftovers(client, blobs, paths.evals), drain
            ),
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
    """Providers by parameter name: each part of Services, each store, the `caller` and its `identity`."""
    parts = {name: Provide(_part(name), sync_to_thread=False) for name in Services.__dataclass_fields__}
    stores = {name: Provide(_store(name), sync_to_thread=False) for name in Stores.__dataclass_fields__}
    return {
        **parts,
        **stores,
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


def _store(name: str) -> Callable[[State], Any]:
    def provide(state: State) -> Any:
        return getattr(state.services.stores, name)

    return provide
