"""What a job's training process is told: the spec, and the names its checkpoints have."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
from msgspec.structs import replace

from services.trainer.failures import TrainingFailed
from services.trainer.hyperparameters import resolve
from services.trainer.protocol import SPEC_FILE, TrainSpec, encoder, spec_decoder
from services.trainer.stores import Stores
from shared import ids
from shared.errors import InvalidTrainingData, NotFound
from shared.paths import write_atomic
from shared.records import BaseRecord, FileRecord, JobRecord
from shared.schemas.methods import SupervisedHyperparameters
from shared.training_data import validate

_NAMES_FILE = "checkpoint_names.json"


async def prepare(stores: Stores, record: JobRecord) -> tuple[Path, TrainSpec]:
    """Write spec.json, or bring the one of an earlier attempt up to date, and return the folder and it.

    What decides the numbers (hyperparameters, seed, LoRA sizes) stays as the first attempt had it; paths may move.
    """
    base = await stores.registry.base(record.model)
    if base is None:
        raise TrainingFailed(f"The base model {record.model} is not offered here any more.", code="model_not_found")
    training = await _file(stores, record, record.training_file)
    if record.validation_file:
        await _file(stores, record, record.validation_file)
    folder = stores.paths.job_folder(record.id)
    spec = await asyncio.to_thread(_write_spec, stores, record, base, training, folder)
    return folder, spec


async def _file(stores: Stores, record: JobRecord, file_id: str) -> FileRecord:
    try:
        return await stores.files.get(file_id, project=record.project)
    except NotFound as error:
        param = "training_file" if file_id == record.training_file else "validation_file"
        raise InvalidTrainingData(f"The file {file_id} was deleted before training.", param=param) from error


def _write_spec(stores: Stores, record: JobRecord, base: BaseRecord, training: FileRecord, folder: Path) -> TrainSpec:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / SPEC_FILE
    spec = spec_decoder.decode(path.read_bytes()) if path.exists() else _first_spec(stores, record, base, training)
    validation = record.validation_file
    spec = replace(
        spec,
        base_folder=base.path,
        adapters_folder=str(stores.paths.adapter_folder(base.id, "0").parent),
        training_path=str(stores.paths.file_content(record.training_file)),
        validation_path=str(stores.paths.file_content(validation)) if validation else None,
    )
    write_atomic(path, encoder.encode(spec))
    return spec


def _first_spec(stores: Stores, record: JobRecord, base: BaseRecord, training: FileRecord) -> TrainSpec:
    chosen = record.resolved or _resolve_now(stores, record)
    assert chosen.n_epochs != "auto" and chosen.batch_size != "auto" and chosen.learning_rate_multiplier != "auto"
    return TrainSpec(
        job_id=record.id,
        base_id=base.id,
        base_folder=base.path,
        base_fingerprint=base.fingerprint,
        adapters_folder="",
        training_path="",
        training_sha256=training.sha256,
        n_epochs=chosen.n_epochs,
        batch_size=chosen.batch_size,
        learning_rate_multiplier=chosen.learning_rate_multiplier,
        seed=record.seed,
        rank=stores.settings.lora_rank,
        alpha=2 * stores.settings.lora_rank,
        max_length=min(stores.settings.max_model_len, base.context_length),
    )


def _resolve_now(stores: Stores, record: JobRecord) -> SupervisedHyperparameters:
    census = validate(stores.paths.file_content(record.training_file))
    return resolve(record.requested, census.examples)


class CheckpointNames:
    """The public names of a job's checkpoints, kept in its folder: a second attempt gives a step the same name."""

    def __init__(self, folder: Path, model_name: str) -> None:
        self._path = folder / _NAMES_FILE
        self._model_name = model_name
        known = self._path.read_bytes() if self._path.exists() else b"{}"
        self._names = msgspec.json.decode(known, type=dict[int, str])

    def of(self, step: int, *, final: bool) -> tuple[str, bool]:
        """Return the name of the checkpoint at `step`, and whether it was given just now."""
        is_new = step not in self._names
        if is_new:
            self._names[step] = self._model_name if final else ids.checkpoint_name(self._model_name, step)
            write_atomic(self._path, msgspec.json.encode(self._names))
        return self._names[step], is_new

    def all(self) -> list[str]:
        """List the names given so far."""
        return list(self._names.values())
