"""Making a fine-tuned model of a PEFT adapter whose two files a project has uploaded."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from pathlib import Path

import msgspec
import structlog

from services.api.adapters.staging import Staged, publish, staged
from services.api.bodies import decode
from services.api.gateway.model_names import ModelNames
from shared import ids
from shared.blobs.interface import Blobs
from shared.errors import AdapterRejected, InvalidRequest, NotFound, Unavailable
from shared.model_records import Access
from shared.paths import folder_bytes
from shared.records import AdapterRecord, BaseRecord, FileRecord
from shared.schemas.models import ImportedModel, ImportModel
from shared.settings import Settings
from shared.store.files import FileStore
from shared.store.registry import Registry

_log = structlog.get_logger()

_PURPOSE = "user_data"
_CONTENT = "content"
_PICKLE = "files.adapter_model.bin"
_DECODER = msgspec.json.Decoder(ImportModel)
_AT_ONCE = 2
"""Adapters that are checked at a time: it takes memory and, for most of it, the interpreter."""
_NAMED_CHARS = 200


def read_import(body: bytes) -> ImportModel:
    """Decode a request. Raises InvalidRequest that names the field."""
    try:
        return decode(body, _DECODER)
    except InvalidRequest as error:
        if error.param != _PICKLE:
            raise
        raise InvalidRequest(
            "adapter_model.bin is a pickle, which runs code when it is read, and is not taken. Load the adapter with "
            "PEFT where it was made, and save it again with safe_serialization=True.",
            code="pickled_weights",
            param=_PICKLE,
        ) from error


class AdapterImports:
    """Takes adapters in; everything that can be wrong with one is found before anybody sees it."""

    def __init__(
        self, settings: Settings, files: FileStore, registry: Registry, names: ModelNames, blobs: Blobs
    ) -> None:
        self._settings = settings
        self._files = files
        self._registry = registry
        self._names = names
        self._blobs = blobs
        self._paths = blobs.paths
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def new_name(self, wanted: ImportModel, *, access: Access) -> str:
        """Form a name for the model. Raises NotFound for a base that the key does not see, InvalidRequest."""
        base = await self._base(wanted.base, access)
        return ids.model_name(base.origin or base.id, self._settings.organization, wanted.suffix)

    async def create(self, wanted: ImportModel, *, name: str, access: Access) -> ImportedModel:
        """Check an adapter and publish it as `name`; a model of that name that is there already is returned as it is.

        Raises NotFound for an unknown base or file, or a base that is deleted meanwhile, InvalidRequest,
        AdapterRejected with the reason, RateLimited without room in the project's storage, Unavailable.
        """
        known = await self._registry.get(name)
        if known is not None:
            return self._public(known)
        base = await self._base(wanted.base, access)
        config = await self._input(wanted.files.config, "files.adapter_config.json", access.project)
        weights = await self._input(wanted.files.weights, "files.adapter_model.safetensors", access.project)
        await self._files.check_room(access.project, weights.size_bytes)
        folders = [self._paths.file_folder(file.id) for file in (config, weights)]
        try:
            async with self._turns, self._blobs.borrow(folders[0]) as one, self._blobs.borrow(folders[1]) as other:
                adapter, folder = await self._place(one / _CONTENT, other / _CONTENT, base)
        except AdapterRejected as error:
            raise AdapterRejected(
                f"The adapter cannot be served on '{base.id}': {error.message}.", param="files"
            ) from error
        except FileNotFoundError as error:
            raise NotFound("The content of a file is gone from this server's storage.", param="files") from error
        except OSError as error:
            raise Unavailable("The server's storage does not take the adapter.", code="storage_unavailable") from error
        record = AdapterRecord(
            name=name,
            base=base.id,
            base_fingerprint=base.fingerprint,
            folder=self._paths.relative(folder),
            sha256=adapter.sha256,
            rank=adapter.rank,
            project=access.project,
            job_id="",
            created_at=int(time.time()),
            listed=True,
            named_base=adapter.named_base[:_NAMED_CHARS],
            size_bytes=await asyncio.to_thread(folder_bytes, folder),
        )
        await self._registry.publish(record)
        await self._check_base_again(record)
        _log.info("model.imported", model=name, base=base.id, sha256=adapter.sha256)
        return self._public(record)

    async def _check_base_again(self, record: AdapterRecord) -> None:
        """Take the model back if its base, a whole model, was deleted meanwhile, and raise NotFound."""
        if await self._registry.base(record.base) is None:
            await self._registry.retire(record.name)
            raise NotFound(f"The model '{record.base}' was deleted.", code="model_not_found", param="base")

    async def _base(self, name: str, access: Access) -> BaseRecord:
        try:
            found = (await self._names.look_up(name, access)).model
        except NotFound as error:
            raise NotFound(error.message, code=error.code, param="base") from error
        if not isinstance(found, BaseRecord):
            raise InvalidRequest(
                f"'{name}' is an adapter itself; adapters are imported onto the base '{found.base}'.",
                code="invalid_base",
                param="base",
            )
        placed = found.placed(self._paths.home)
        if found.origin:
            with suppress(FileNotFoundError):
                await self._blobs.fetch(Path(placed.path))
        if not await asyncio.to_thread((Path(placed.path) / "config.json").is_file):
            raise InvalidRequest(
                f"The files of '{name}' are not where this server can compare an adapter with them.",
                code="invalid_base",
                param="base",
            )
        return placed

    async def _input(self, file_id: str, param: str, project: str) -> FileRecord:
        try:
            record: FileRecord = await self._files.get(file_id, project=project)
        except NotFound as error:
            raise NotFound(error.message, code=error.code, param=param) from error
        if record.purpose != _PURPOSE:
            raise InvalidRequest(
                f"File {file_id} was uploaded with purpose '{record.purpose}'; upload it with purpose '{_PURPOSE}'.",
                code="invalid_file_purpose",
                param=param,
            )
        return record

    async def _place(self, config: Path, weights: Path, base: BaseRecord) -> tuple[Staged, Path]:
        limit = self._settings.max_lora_rank
        async with staged(config, weights, base=base, max_rank=limit, paths=self._paths) as adapter:
            return adapter, await publish(adapter, base, self._blobs)

    def _public(self, record: AdapterRecord) -> ImportedModel:
        shown = record.public(self._settings.organization)
        return ImportedModel(
            id=shown.id,
            created=shown.created,
            owned_by=shown.owned_by,
            base=record.base,
            rank=record.rank,
            sha256=record.sha256,
            warning=_warning(record),
        )


def _warning(record: AdapterRecord) -> str | None:
    """Say that the adapter calls its base by another name. Shapes fit; only who made it knows if the weights do."""
    named = record.named_base.rstrip("/")
    if not named or named.rpartition("/")[2] == record.base.rpartition("/")[2]:
        return None
    return (
        f"The adapter says that it was trained on '{named}'. Its shapes fit '{record.base}'; whether the weights are "
        "the same, they do not tell."
    )
