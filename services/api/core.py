"""What the API's other parts are built of: settings, storage, database, and the way to models, jobs and graders."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from services.api import metrics
from services.api.aliases.counting import Counting
from services.api.aliases.guard import Guard
from services.api.aliases.sampling import Sampling
from services.api.aliases.shadowing import Shadowing
from services.api.aliases.traffic import Traffic
from services.api.files.uploads import Uploads
from services.api.gateway.forwarding import Gateway
from services.api.gateway.model_names import ModelNames
from services.api.gateway.replicas import Replicas
from services.api.graders.judges import Judges
from services.api.graders.running import Graders
from services.api.jobs.control import JobControl
from services.api.jobs.submission import Submission
from services.api.leftovers import Leftovers
from services.api.organization.projects import ProjectAdmin
from services.api.stores import Stores
from shared.blobs.interface import Blobs
from shared.blobs.opening import open_blobs
from shared.grading.caging import Caging
from shared.grading.outside import OutsideJudges
from shared.key_hash import KeyHash
from shared.outgoing import Outgoing
from shared.paths import Paths, internal_key, key_secret
from shared.queue import Queue
from shared.reward_scoring import RewardScoring
from shared.settings import Settings
from shared.store.client import Client


@dataclass(frozen=True)
class Core:
    """Opened first and closed last."""

    settings: Settings
    paths: Paths
    blobs: Blobs
    client: Client
    drain: asyncio.Event
    stores: Stores
    queue: Queue
    outgoing: Outgoing
    uploads: Uploads
    names: ModelNames
    counting: Counting
    shadowing: Shadowing
    sampling: Sampling
    gateway: Gateway
    graders: Graders
    project_admin: ProjectAdmin
    submission: Submission
    control: JobControl

    @classmethod
    def open(cls, settings: Settings, drain: asyncio.Event) -> Core:
        """Prepare the data folder and build the clients; none connects before its first use."""
        paths = Paths(settings.home)
        paths.prepare()
        blobs = open_blobs(settings, paths)
        client = Client(settings.database_url, watch=metrics.note_store_call)
        key_hash = KeyHash(key_secret(settings.key_secret, paths))
        at = Stores.on(client, settings, key_hash)
        queue = Queue(settings.database_url)
        names = ModelNames(at.registry, at.alias_store, settings.model_aliases, organization=settings.organization)
        counting = Counting(at.alias_traffic, Guard(at.alias_store, at.alias_traffic, at.registry, at.audit_store))
        shadowing = Shadowing(at.alias_store, at.shadow_pairs, counting)
        sampling = Sampling(at.alias_samples, at.completions)
        replicas = Replicas(at.presence, internal_key=internal_key(settings.internal_key, paths))
        traffic = Traffic(counting, shadowing, sampling)
        gateway = Gateway(names, replicas, traffic, salt_of=_salts(settings, key_hash))
        outgoing = Outgoing(settings.outgoing_hosts, allow_private=settings.webhook_allow_private)
        outside = OutsideJudges(settings.judge_endpoints, outgoing)
        graders = Graders(
            Judges(gateway, outside, timeout_s=settings.judge_timeout_s),
            Caging(turned_on=settings.python_graders),
            RewardScoring(client, timeout_s=settings.judge_timeout_s),
        )
        return cls(
            settings=settings,
            paths=paths,
            blobs=blobs,
            client=client,
            drain=drain,
            stores=at,
            queue=queue,
            outgoing=outgoing,
            uploads=Uploads(at.files, blobs, max_file_bytes=settings.max_file_bytes),
            names=names,
            counting=counting,
            shadowing=shadowing,
            sampling=sampling,
            gateway=gateway,
            graders=graders,
            project_admin=ProjectAdmin(settings, at.projects),
            submission=Submission(settings, at.files, at.jobs, at.registry, names, graders, queue),
            control=JobControl(at.jobs, queue),
        )

    def leftovers(self, folder: Path) -> Leftovers:
        """Return what tidies a folder of long work."""
        return Leftovers(self.client, self.blobs, folder)

    async def close(self) -> None:
        await self.shadowing.close()
        await self.sampling.close()
        await self.counting.close()
        await self.graders.close()
        await self.gateway.close()
        await self.queue.close()
        await self.client.close()


def _salts(settings: Settings, key_hash: KeyHash) -> Callable[[str], str]:
    """Return what a project's corner of the engines' prefix caches is called."""
    return key_hash.cache_salt if settings.prefix_cache_sharing == "project" else lambda _: ""
