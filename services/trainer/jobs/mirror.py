"""A job's folder in an object store, so that a worker on another host can go on: resume points and what goes with them.

A point is put after everything that a process that goes on from it needs: the adapters of the epochs before it, then
the small files, among them the metrics of every step up to it. Whoever takes the job over fetches them, and trains what
came later once more, with the same result. Where the data folder is the store nothing moves.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import structlog

from services.trainer.protocol import CHECKPOINTS_FOLDER, TrainSpec
from services.trainer.stores import Stores, persist
from services.trainer.training.history import History
from shared.errors import LeaseLost, StorageUnavailable
from shared.rollout_records import ROLLOUTS_FOLDER

LOOK_S = 1.0
LAST_ROUND_S = 60.0
"""How long the end of an attempt waits for the store to take its last resume point."""
_Stamp = tuple[int, int]

log = structlog.get_logger()


class Mirror:
    """What one attempt puts; `adapters` is where its exports lie."""

    def __init__(self, stores: Stores, folder: Path, adapters: Path, token: str) -> None:
        self._stores = stores
        self._token = token
        self._blobs = stores.blobs
        self._folder = folder
        self._points = folder / CHECKPOINTS_FOLDER
        self._history = History(folder, adapters)
        self._kept: dict[Path, _Stamp] = {}
        self._exports: set[Path] = set()
        self._kept_points: set[Path] | None = None
        self._turn = asyncio.Lock()

    async def keep_forever(self) -> None:
        """Look every second for a new resume point; runs until cancelled, or the lease is lost."""
        if self._blobs.is_local:
            return
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                if await asyncio.to_thread(_points_in, self._points) != self._kept_points:
                    await self._round()
            except (StorageUnavailable, OSError) as error:
                log.warning("mirror.behind", reason=type(error).__name__)
            except LeaseLost:
                return

    async def close(self) -> None:
        """Put what the attempt has left, as far as the store takes it soon."""
        if self._blobs.is_local:
            return
        try:
            async with asyncio.timeout(LAST_ROUND_S):
                await self._round()
        except (TimeoutError, StorageUnavailable, OSError, LeaseLost) as error:
            log.warning("mirror.behind", reason=type(error).__name__)

    async def _round(self) -> None:
        async with self._turn:
            await persist(lambda: self._stores.leases.renew(self._folder.name, self._token))
            points = await asyncio.to_thread(_points_in, self._points)
            await self._keep_exports()
            await self._keep_small()
            kept = {one.folder for one in await self._blobs.folders(self._points, depth=1)}
            for point in sorted(points - kept):
                with suppress(FileNotFoundError):  # a newer one has taken its place
                    await self._blobs.keep(point)
            for point in kept - points:
                if point.name < max((one.name for one in points), default=""):
                    await self._blobs.remove(point)
            self._kept_points = points

    async def _keep_exports(self) -> None:
        for exported in await asyncio.to_thread(self._history.exports):
            folder = Path(exported.folder)
            if folder not in self._exports:
                with suppress(FileNotFoundError):  # one that is not here keeps the others from nothing
                    await self._blobs.keep(folder)
                    self._exports.add(folder)

    async def _keep_small(self) -> None:
        for file, stamp in (await asyncio.to_thread(_small_files, self._folder)).items():
            if self._kept.get(file) != stamp:
                with suppress(FileNotFoundError):
                    await self._blobs.keep_file(file)
                    self._kept[file] = stamp


@asynccontextmanager
async def mirroring(stores: Stores, folder: Path, spec: TrainSpec, token: str) -> AsyncIterator[None]:
    """Keep a job's folder up with its training, and once more at the end of the block, while the lease is held."""
    mirror = Mirror(stores, folder, Path(spec.adapters_folder), token)
    keeping = asyncio.create_task(mirror.keep_forever())
    try:
        yield
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await mirror.close()


async def keep_decisions(stores: Stores, folder: Path) -> None:
    """Put the small files of a job folder at once: names and ids that a later attempt must not choose anew."""
    if not stores.blobs.is_local:
        files = await asyncio.to_thread(_small_files, folder)
        for file in (file for file in files if file.parent == folder):
            await persist(lambda file=file: stores.blobs.keep_file(file))  # type: ignore[misc]


async def restore(stores: Stores, job_id: str) -> None:
    """Have a job's folder here as the last attempt left it, wherever that was.

    What this host has of a later point than the store stays. Raises StorageUnavailable, OSError.
    """
    blobs, folder = stores.blobs, stores.paths.job_folder(job_id)
    if blobs.is_local:
        return
    points = [kept.folder for kept in await blobs.folders(folder / CHECKPOINTS_FOLDER, depth=1)]
    here = await asyncio.to_thread(newest_point, folder)
    is_behind = here <= max(map(_step, points), default=0)
    for file in await _stored_files(stores, folder):
        if await _is_to_fetch(stores, file, is_behind=is_behind):
            await blobs.fetch_file(file)
    for point in points:
        await blobs.fetch(point)


async def _is_to_fetch(stores: Stores, file: Path, *, is_behind: bool) -> bool:
    """Tell whether the store's file is wanted here; of rollouts, of which a job has many, one of another size."""
    size = await asyncio.to_thread(lambda: file.stat().st_size if file.exists() else None)
    if size is None or not is_behind:
        return size is None
    if file.parent.name != ROLLOUTS_FOLDER:
        return True
    return (await stores.blobs.read(file)).size_bytes != size


async def fetch_sources(stores: Stores, spec: TrainSpec) -> None:
    """Have here what training goes on from: the parent, and the epochs' adapters."""
    if stores.blobs.is_local:
        return
    found = [Path(spec.parent_folder)] if spec.parent_folder else []
    history = History(stores.paths.job_folder(spec.job_id), Path(spec.adapters_folder))
    found += [Path(exported.folder) for exported in await asyncio.to_thread(history.exports)]
    for folder in found:
        with suppress(FileNotFoundError):  # the process says what it lacks
            await stores.blobs.fetch(folder)


async def reached_step(stores: Stores, job_id: str) -> int:
    """Return the step of the newest resume point that any host may go on from; 0 if there is none."""
    folder = stores.paths.job_folder(job_id)
    here = await asyncio.to_thread(newest_point, folder)
    if stores.blobs.is_local:
        return here
    kept = await persist(lambda: stores.blobs.folders(folder / CHECKPOINTS_FOLDER, depth=1))
    return max([here, *(_step(one.folder) for one in kept)])


def newest_point(folder: Path) -> int:
    """Return the step of a job folder's newest resume point, whole or not; 0 if there is none."""
    return max(map(_step, _points_in(folder / CHECKPOINTS_FOLDER)), default=0)


async def _stored_files(stores: Stores, folder: Path) -> list[Path]:
    """List a job's stored files but for its resume points, with those in its other folders."""
    found = [folder / name for name in await stores.blobs.files(folder)]
    for name in await stores.blobs.children(folder):
        if name != CHECKPOINTS_FOLDER and folder / name not in found:
            found += [folder / name / file for file in await stores.blobs.files(folder / name)]
    return found


def _step(point: Path) -> int:
    return int(point.name.removeprefix("step-"))


def _points_in(points: Path) -> set[Path]:
    return set(points.glob("step-*"))


def _small_files(folder: Path) -> dict[Path, _Stamp]:
    """List the files of a job folder and of the folders in it, but for resume points, drafts and rollouts.

    Each of the latter is put when it is made, before a step learns from it.
    """
    found = {}
    for path in (*folder.glob("*"), *folder.glob("*/*")):
        is_apart = any(path.is_relative_to(folder / name) for name in (CHECKPOINTS_FOLDER, ROLLOUTS_FOLDER))
        if not is_apart and not path.name.startswith(".") and path.is_file():
            stat = path.stat()
            found[path] = (stat.st_mtime_ns, stat.st_size)
    return found
