"""The fine-tuned model that a job goes on from: its adapter, found in the registry by name and on disk by digest."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec import Struct

from services.trainer.failures import TrainingFailed
from services.trainer.stores import Stores
from shared.adapters import CONFIG_NAME, verify_adapter
from shared.errors import AdapterRejected
from shared.paths import Paths
from shared.records import AdapterRecord, BaseRecord, JobRecord
from shared.schemas.options import TargetModule


class AdapterShape(Struct, frozen=True, kw_only=True, rename={"rank": "r", "alpha": "lora_alpha"}):
    """What adapter_config.json says about an adapter's form."""

    rank: int
    alpha: float
    target_modules: tuple[TargetModule, ...]
    use_rslora: bool = False
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, float] = {}


async def find_parent(stores: Stores, record: JobRecord) -> AdapterRecord | None:
    """Return the record of a job's parent, None for a job that starts at the base.

    Raises TrainingFailed(model_not_found) when the parent was deleted, or is not shared with the project any more.
    """
    if record.parent is None:
        return None
    parent = await stores.registry.usable(record.parent, record.project)
    if parent is None:
        raise TrainingFailed(
            f"The fine-tuned model {record.parent}, which the job was to go on from, was deleted before training.",
            code="model_not_found",
            param="model",
        )
    with suppress(FileNotFoundError):  # whoever reads it says so
        await stores.blobs.fetch(parent_folder(stores.paths, parent))
    return parent


def parent_folder(paths: Paths, parent: AdapterRecord) -> Path:
    return paths.adapter_folder(parent.base, parent.sha256)


def read_shape(paths: Paths, parent: AdapterRecord) -> AdapterShape:
    """Read the form of an adapter from its folder.

    Raises TrainingFailed when it is not to be read, or is one that other programs make: layers of different ranks.
    """
    try:
        shape = msgspec.json.decode((parent_folder(paths, parent) / CONFIG_NAME).read_bytes(), type=AdapterShape)
    except (OSError, msgspec.MsgspecError) as error:
        raise _unreadable(parent) from error
    if shape.rank_pattern or shape.alpha_pattern:
        raise TrainingFailed(
            f"Training cannot go on from {parent.name}: its layers differ in rank or alpha.",
            code="invalid_parent_model",
            param="model",
        )
    return shape


def check_parent(paths: Paths, parent: AdapterRecord, base: BaseRecord) -> None:
    """Check the adapter's bytes against its digest and its tensors against the base. Raises TrainingFailed."""
    if parent.base_fingerprint != base.fingerprint:
        raise TrainingFailed(
            f"Training cannot go on from {parent.name}: it was trained on other weights of {base.id} than these.",
            code="invalid_parent_model",
            param="model",
        )
    folder = parent_folder(paths, parent)
    try:
        verify_adapter(
            folder,
            base_folder=Path(base.path),
            base_id=base.id,
            max_rank=parent.rank,
            expected_sha256=parent.sha256,
        )
    except AdapterRejected as error:
        raise TrainingFailed(
            f"Training cannot go on from {parent.name}: {error.message}.", code="invalid_parent_model", param="model"
        ) from error


def _unreadable(parent: AdapterRecord) -> TrainingFailed:
    return TrainingFailed(
        f"The adapter of {parent.name} cannot be read from the data folder.", code="model_not_found", param="model"
    )
