"""Which process trains a job: one of its own, several of its own, or one shared with other jobs on the same base."""

from __future__ import annotations

from pathlib import Path

from services.trainer.device_clock import DeviceClock
from services.trainer.launch.child_process import ChildProcess
from services.trainer.launch.process_group import most_processes, process_count, start_group
from services.trainer.launch.shared_process import SharedProcess
from services.trainer.protocol import TrainSpec
from shared.records import JobRecord
from shared.schemas.options import TrainingOptions
from shared.settings import Settings


class Launcher:
    """Starts the processes of one worker."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._shared = SharedProcess(settings)
        self.clock = DeviceClock()

    @property
    def most_together(self) -> int:
        """How many jobs may train at a time; one where it takes several processes."""
        return 1 if most_processes(self._settings) > 1 else self._settings.jobs_together

    def company(self, record: JobRecord) -> str | None:
        """Name what jobs must have in common to be trained together; None for a job that has to be alone.

        A quantised base is not shared: its process needs a library that the others start faster without; nor is one
        that is trained itself. A job whose process died is tried alone: it may be what others died of.
        """
        if self.most_together == 1 or record.attempts or _has_own_base(record.options):
            return None
        return f"{record.model} {record.options.dtype or 'auto'}"

    def process_count(self, record: JobRecord) -> int:
        """Return how many processes train a job whose files were read."""
        assert record.resolved is not None and record.resolved.batch_size != "auto"
        return process_count(record.resolved.batch_size, self._settings)

    async def start(self, folder: Path, spec: TrainSpec, record: JobRecord, token: str = "") -> ChildProcess:
        """Have the job in `folder` trained; what its libraries print is appended to train.log there or to our log.

        `token` is that of the lease which the processes may write under.
        """
        if process_count(spec.batch_size, self._settings) > 1:
            return await start_group(folder, spec, self._settings, token)
        died_before = record.attempts > 1  # this one counts already
        if self.most_together > 1 and not _has_own_base(record.options) and not died_before:
            return await self._shared.join(folder)
        return await ChildProcess.start(folder, spec, self._settings, token)


def _has_own_base(options: TrainingOptions) -> bool:
    """Whether a job's base cannot be another's as well: it is quantised, or trained itself."""
    return options.quantization not in (None, "none") or options.finetuning_type == "full"
