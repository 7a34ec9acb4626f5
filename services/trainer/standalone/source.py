"""From what somebody calls a model to its adapter and its base: a name in the registry, or an adapter's folder."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from services.trainer.base.description import describe_base
from services.trainer.base.prepare import resolve_base
from services.trainer.base.weights import weights_digest, whole_digest
from services.trainer.standalone import ExportRefused
from shared.adapters import CONFIG_NAME, adapter_digest
from shared.blobs.opening import open_blobs
from shared.errors import StoreUnavailable
from shared.ids import is_fine_tuned
from shared.paths import Paths
from shared.records import AdapterRecord, BaseRecord
from shared.settings import Settings
from shared.store.client import Client
from shared.store.registry import Registry

MANIFEST = "manifest.json"
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Source:
    """What is exported: an adapter whose bytes are those that were published, and the base that it was trained on.

    Of a whole model, the base is the model itself.
    """

    name: str
    """As clients call the model; a folder's name when it was given as a folder."""
    adapter: Path | None
    sha256: str
    base: Path
    base_id: str


class _Manifest(Struct):
    base_fingerprint: str = ""
    base_weights: str = ""


async def find(model: str, settings: Settings, paths: Paths, base: Path | None) -> Source:
    """Find a model; `base` is a folder to take instead of the base that this server would.

    Raises ExportRefused, TrainingFailed or StoreUnavailable that says what is missing.
    """
    folder = Path(model).expanduser()
    if (folder / CONFIG_NAME).is_file():
        return _in_folder(folder.resolve(), settings, paths, base)
    if folder.is_dir():
        raise ExportRefused(f"{folder} holds no {CONFIG_NAME}: it is no adapter")
    record, registered = await _look_up(settings.model_aliases.get(model, model), settings)
    with suppress(FileNotFoundError):  # whoever reads it says so
        await open_blobs(settings, paths).fetch(paths.home / record.folder)
        if registered.origin and base is None:
            await open_blobs(settings, paths).fetch(Path(registered.placed(paths.home).path))
    if record.kind == "reward":
        raise ExportRefused(
            f"{record.name} is a reward model, which is no model that writes; its adapter and its head are in "
            f"{paths.home / record.folder}, in PEFT's form"
        )
    if record.whole:
        return _whole(record, paths, base)
    adapter = paths.home / record.folder
    origin = msgspec.structs.replace(_origin(adapter), base_fingerprint=record.base_fingerprint)
    return _checked(
        record.name, adapter, record.sha256, origin, base or registered.placed(paths.home).path, record.base
    )


def _whole(record: AdapterRecord, paths: Paths, base: Path | None) -> Source:
    if base is not None:
        raise ExportRefused(f"{record.name} is a whole model, with which --base has nothing to do")
    folder = paths.home / record.folder
    try:
        digest = whole_digest(folder)
    except (OSError, ValueError) as error:
        raise ExportRefused(f"{record.name} cannot be read: {error}") from error
    if digest != record.sha256:
        raise ExportRefused(f"{folder}: its bytes are not those that were published: damaged or replaced")
    return Source(record.name, None, digest, folder, record.name)


async def _look_up(name: str, settings: Settings) -> tuple[AdapterRecord, BaseRecord]:
    client = Client(settings.database_url, connections=1)
    try:
        registry = Registry(client)
        adapter = await registry.get(name)
        if adapter is None or not adapter.listed:
            raise ExportRefused(f"there is no fine-tuned model {name!r}, and no folder of that name")
        base = await registry.base(adapter.base)
    except StoreUnavailable as error:
        raise ExportRefused(
            f"{name!r} is no folder, and the database that knows the models' names does not answer: start the stack, "
            f"or give the adapter's folder below {settings.home / 'adapters'}"
        ) from error
    finally:
        await client.close()
    if base is None:
        raise ExportRefused(f"the base {adapter.base!r} of {name} is not registered any more")
    return adapter, base


def _in_folder(folder: Path, settings: Settings, paths: Paths, base: Path | None) -> Source:
    base_id = _base_name(folder)
    if base is None and is_fine_tuned(base_id):
        raise ExportRefused(
            f"{folder} is an adapter on {base_id}; give the model's name instead of the folder, or --base with that "
            f"model's folder below {paths.models}"
        )
    if base is None and base_id == settings.public_base_id:
        base = Path(resolve_base(settings, paths).path)
    elif base is None and Path(base_id).is_dir():
        base = Path(base_id)
    if base is None:
        raise ExportRefused(f"{folder} is an adapter for {base_id!r}, which is not this server's base; give --base")
    expected = folder.name if _DIGEST.fullmatch(folder.name) else None
    return _checked(folder.name, folder, expected, _origin(folder), base, base_id)


def _checked(name: str, adapter: Path, sha256: str | None, origin: _Manifest, base: Path | str, base_id: str) -> Source:
    digest = adapter_digest(adapter)
    if sha256 not in (None, digest):
        raise ExportRefused(f"{adapter}: its bytes are not those that were published: damaged or replaced")
    base = Path(base).expanduser().resolve()
    other_shape = origin.base_fingerprint and describe_base(base, base_id).fingerprint != origin.base_fingerprint
    if other_shape or (origin.base_weights and weights_digest(base) != origin.base_weights):
        raise ExportRefused(f"{name} was trained on another base than the one in {base}")
    return Source(name, adapter, digest, base, base_id)


def _base_name(folder: Path) -> str:
    config = _read(folder / CONFIG_NAME, dict[str, Any])
    return str(config.get("base_model_name_or_path") or "")


def _origin(folder: Path) -> _Manifest:
    manifest: _Manifest = _read(folder / MANIFEST, _Manifest) if (folder / MANIFEST).is_file() else _Manifest()
    return manifest


def _read(path: Path, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ExportRefused(f"{path} cannot be read: {error}") from error
