"""What a job's training process is told: the spec, and the names its checkpoints have."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Literal

import msgspec
import structlog
from msgspec.structs import asdict, replace

from services.trainer.base.weights import weights_digest
from services.trainer.failures import TrainingFailed
from services.trainer.jobs.hyperparameters import resolve
from services.trainer.jobs.mirror import fetch_sources, restore
from services.trainer.jobs.options import offered_base, options_of, resolve_beta
from services.trainer.jobs.parents import check_parent, find_parent, read_shape
from services.trainer.protocol import (
    CHECKPOINTS_FOLDER,
    SPEC_FILE,
    ReinforcementSpec,
    TrainSpec,
    encoder,
    spec_decoder,
)
from services.trainer.stores import Stores
from shared import ids, tracing
from shared.errors import InvalidTrainingData, NotFound, StorageUnavailable
from shared.paths import write_atomic
from shared.records import AdapterRecord, BaseRecord, FileRecord, JobRecord
from shared.schemas.methods import LabelWeights, SupervisedHyperparameters
from shared.schemas.options import ReinforcementOptions, TrainingOptions
from shared.training_data import validate

_RESULT_FILE = "result_file"
NAMES_FILE = "checkpoint_names.json"
_TOLD_FILE = "checkpoints_told.json"
_FINAL = 0
"""Stands for the final model among the steps; an early epoch may be it, under its checkpoint's name too."""

log = structlog.get_logger()


async def prepare(stores: Stores, record: JobRecord) -> tuple[Path, TrainSpec]:
    """Write spec.json, or bring the one of an earlier attempt up to date, and return the folder and it.

    What decides the numbers (hyperparameters, seed, LoRA sizes) stays as the first attempt had it; paths may move.
    A parent has to be there for the first attempt; later ones find its adapter on disk by its digest.
    """
    base = await offered_base(stores, record)
    training = await _file(stores, record, record.training_file)
    if record.validation_file:
        await _file(stores, record, record.validation_file)
    folder = stores.paths.job_folder(record.id)
    await restore(stores, record.id)
    if not (folder / SPEC_FILE).exists():
        parent = await find_parent(stores, record)
        await asyncio.to_thread(_write_first_spec, stores, record, base, training, parent, folder)
    spec = await asyncio.to_thread(_update_spec, stores, record, base, folder)
    await fetch_sources(stores, spec)
    return folder, spec


async def _file(stores: Stores, record: JobRecord, file_id: str) -> FileRecord:
    try:
        found = await stores.files.get(file_id, project=record.project)
        await stores.blobs.fetch(stores.paths.file_folder(file_id))
        return found
    except (NotFound, FileNotFoundError) as error:
        param = "training_file" if file_id == record.training_file else "validation_file"
        raise InvalidTrainingData(f"The file {file_id} was deleted before training.", param=param) from error


def _write_first_spec(
    stores: Stores,
    record: JobRecord,
    base: BaseRecord,
    training: FileRecord,
    parent: AdapterRecord | None,
    folder: Path,
) -> None:
    if parent is not None:
        check_parent(stores.paths, parent, base)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / SPEC_FILE, encoder.encode(_first_spec(stores, record, base, training, parent)))


def _update_spec(stores: Stores, record: JobRecord, base: BaseRecord, folder: Path) -> TrainSpec:
    """Put the paths of today into spec.json."""
    spec = spec_decoder.decode((folder / SPEC_FILE).read_bytes())
    _check_base(spec, base)
    validation = record.validation_file
    parent = spec.parent_sha256
    adapters = stores.paths.adapter_folder(base.id, "0").parent
    spec = replace(
        spec,
        base_folder=base.path,
        tokens_folder=str(stores.paths.tokens),
        adapters_folder=str(stores.paths.whole_model_folder(record.id) if spec.finetuning_type == "full" else adapters),
        training_path=str(stores.paths.file_content(record.training_file)),
        validation_path=str(stores.paths.file_content(validation)) if validation else None,
        traceparent=tracing.traceparent(),
        parent_folder=str(stores.paths.adapter_folder(base.id, parent)) if parent else None,
    )
    write_atomic(folder / SPEC_FILE, encoder.encode(spec))
    return spec


def _check_base(spec: TrainSpec, base: BaseRecord) -> None:
    """Raise TrainingFailed unless the base is the one that the job's first attempt trained on."""
    same = spec.base_fingerprint == base.fingerprint
    if same and spec.base_weights:
        same = spec.base_weights == weights_digest(Path(base.path))
    if not same:
        raise TrainingFailed(
            f"The base model {base.id} is another one than when this job began: its shape or its weights have changed. "
            "Put the earlier one back, or create the job again to train on this one.",
            code="base_model_changed",
        )


async def drop_points(stores: Stores, job_id: str) -> None:
    """Delete a job's resume points, as far as that can be done now."""
    points = stores.paths.job_folder(job_id) / CHECKPOINTS_FOLDER
    await asyncio.to_thread(shutil.rmtree, points, ignore_errors=True)
    try:
        await stores.blobs.remove(points)
    except StorageUnavailable:
        log.warning("points.left_to_sweep", job_id=job_id)


def _first_spec(
    stores: Stores, record: JobRecord, base: BaseRecord, training: FileRecord, parent: AdapterRecord | None
) -> TrainSpec:
    chosen = record.resolved or _resolve_now(stores, record)
    assert chosen.n_epochs != "auto" and chosen.batch_size != "auto" and chosen.learning_rate_multiplier != "auto"
    shape = None if parent is None else read_shape(stores.paths, parent)
    options = options_of(record, stores.settings, base.context_length, shape)
    assert options.max_length is not None and options.quantization is not None
    assert options.lr_schedule is not None and options.warmup_ratio is not None
    assert options.weight_decay is not None and options.max_grad_norm is not None
    assert options.gradient_accumulation_steps is not None and options.dtype is not None
    spec = TrainSpec(
        job_id=record.id,
        base_id=base.id,
        base_folder=base.path,
        base_fingerprint=base.fingerprint,
        base_weights=weights_digest(Path(base.path)),
        adapters_folder="",
        training_path="",
        training_sha256=training.sha256,
        n_epochs=chosen.n_epochs,
        batch_size=chosen.batch_size,
        learning_rate_multiplier=chosen.learning_rate_multiplier,
        seed=record.seed,
        method=record.method,
        beta=resolve_beta(record.requested_beta) if record.resolved_beta is None else record.resolved_beta,
        desirable_weight=_weight(record.resolved_weights, "desirable"),
        undesirable_weight=_weight(record.resolved_weights, "undesirable"),
        parent_sha256=None if parent is None else parent.sha256,
        quantization=options.quantization,
        packing=bool(options.packing),
        max_length=options.max_length,
        overlong=options.overlong or "refuse",
        lr_schedule=options.lr_schedule,
        warmup_ratio=options.warmup_ratio,
        weight_decay=options.weight_decay,
        max_grad_norm=options.max_grad_norm,
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        neftune_noise_alpha=options.neftune_noise_alpha,
        dtype=options.dtype,
        checkpoint_interval=options.checkpoint_interval,
        evaluation_interval=options.evaluation_interval,
        early_stopping=options.early_stopping,
        memory_parts=record.memory_parts,
        reinforcement=_reinforcement(record, options.reinforcement),
    )
    return replace(spec, finetuning_type="full") if options.finetuning_type == "full" else _with_adapter(spec, options)


def _reinforcement(record: JobRecord, options: ReinforcementOptions | None) -> ReinforcementSpec | None:
    """Put hyperparameters and options of reinforcement together, all of them numbers; None for another method."""
    if record.method != "reinforcement":
        return None
    chosen = record.resolved_reinforcement
    assert chosen is not None and options is not None
    assert chosen.eval_interval != "auto" and chosen.eval_samples != "auto"
    return ReinforcementSpec(**asdict(options), eval_interval=chosen.eval_interval, eval_samples=chosen.eval_samples)


def _weight(weights: LabelWeights | None, label: Literal["desirable", "undesirable"]) -> float:
    """Return the weight of KTO's rows with a label; it is settled before a job is queued."""
    weight: float | Literal["auto"] = "auto" if weights is None else getattr(weights, label)
    return 1.0 if weight == "auto" else weight


def _with_adapter(spec: TrainSpec, options: TrainingOptions) -> TrainSpec:
    assert options.rank is not None and options.alpha is not None
    assert options.dropout is not None and options.target_modules is not None
    return replace(
        spec,
        rank=options.rank,
        alpha=options.alpha,
        use_rslora=bool(options.use_rslora),
        dropout=options.dropout,
        targets=tuple(options.target_modules),
    )


def _resolve_now(stores: Stores, record: JobRecord) -> SupervisedHyperparameters:
    census = validate(stores.paths.file_content(record.training_file), method=record.method)
    return resolve(record.requested, census.examples, record.method)


class CheckpointNames:
    """The public names of a job's checkpoints, kept in its folder: a second attempt gives a step the same name."""

    def __init__(self, folder: Path, model_name: str) -> None:
        self._path = folder / NAMES_FILE
        self._told_path = folder / _TOLD_FILE
        self._model_name = model_name
        known = self._path.read_bytes() if self._path.exists() else b"{}"
        self._names = msgspec.json.decode(known, type=dict[int, str])

    def of(self, step: int, *, final: bool) -> tuple[str, bool]:
        """Return the name of the checkpoint at `step`, and whether it was given just now."""
        place = _FINAL if final else step
        is_new = place not in self._names
        if is_new:
            self._names[place] = self._model_name if final else ids.checkpoint_name(self._model_name, step)
            write_atomic(self._path, msgspec.json.encode(self._names))
        return self._names[place], is_new

    def is_told(self, step: int, *, final: bool) -> bool:
        """Whether the story was noted to have the checkpoint's event."""
        return (_FINAL if final else step) in self._told()

    def note_told(self, step: int, *, final: bool) -> None:
        write_atomic(self._told_path, msgspec.json.encode([*self._told(), _FINAL if final else step]))

    def _told(self) -> list[int]:
        return msgspec.json.decode(self._told_path.read_bytes(), type=list[int]) if self._told_path.exists() else []

    def all(self) -> list[str]:
        """List the names given so far."""
        return list(dict.fromkeys(self._names.values()))


def result_file_id(folder: Path) -> str:
    """Return the id of the job's result file, chosen at the first call: a second conclusion makes no second file."""
    path = folder / _RESULT_FILE
    if not path.exists():
        write_atomic(path, ids.new_file_id().encode())
    return path.read_text(encoding="utf-8")
