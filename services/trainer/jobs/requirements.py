"""What a job needs of a worker, estimated when its files have been read, and told."""

from __future__ import annotations

import asyncio
from pathlib import Path

import structlog
from msgspec.structs import replace

from services.trainer.memory.capacity import prefers_bfloat16, trains_on_gpu
from services.trainer.memory.estimate import Piece, Plan, estimate
from services.trainer.memory.shape import read_base_shape
from shared.errors import AdapterRejected
from shared.records import JobRecord
from shared.schemas.events import Event
from shared.schemas.options import TrainingOptions
from shared.store.jobs import event

log = structlog.get_logger()


async def with_estimate(
    record: JobRecord, base_folder: str, heaviest: Piece | None, *, processes: int = 1
) -> JobRecord:
    """Note on a settled job what a training process of it will need; unchanged where that cannot be told.

    The job goes on all the same then: what it needs shows when it is trained.
    """
    if heaviest is None:
        return record
    try:
        shape = await asyncio.to_thread(read_base_shape, Path(base_folder))
    except (OSError, ValueError, AdapterRejected) as error:
        log.warning("memory.not_estimated", job_id=record.id, reason=str(error))
        return record
    plan = replace(await asyncio.to_thread(plan_for, record.options), processes=processes)
    found = estimate(shape, plan, heaviest)
    return replace(record, estimated_memory_bytes=found.total, memory_parts=found.parts())


def memory_event(record: JobRecord) -> Event | None:
    """Tell what the job needs; None when that is unknown."""
    if record.estimated_memory_bytes is None:
        return None
    data = {"estimated_memory_bytes": record.estimated_memory_bytes, "parts": record.memory_parts}
    return event(f"Training is expected to need {gigabytes(record.estimated_memory_bytes)} of memory", data=data)


def gigabytes(size_bytes: int) -> str:
    return f"about {size_bytes / 1e9:.1f} GB"


def plan_for(options: TrainingOptions) -> Plan:
    """Take from effective options what decides a job's memory, on this machine. Blocks for a moment at first."""
    halved = options.dtype == "bfloat16" or (options.dtype != "float32" and prefers_bfloat16())
    return Plan(
        rank=options.rank or 0,
        targets=tuple(options.target_modules or ()),
        quantization=options.quantization or "none",
        number_bytes=2 if halved else 4,
        dropout=bool(options.dropout),
        plain=options.neftune_noise_alpha is not None,
        on_gpu=trains_on_gpu(),
        full=options.finetuning_type == "full",
    )
