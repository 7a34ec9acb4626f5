"""The student's training: an ordinary job of the project."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress

from services.api.jobs.control import JobControl
from services.api.jobs.submission import Submission
from shared.distillation_records import DISTILLATION_ID, DistillationRecord
from shared.errors import InvalidRequest, NotFound, SelftuneError, TransitionRefused
from shared.model_records import Access
from shared.records import JobRecord
from shared.schemas.distillations import Student
from shared.schemas.jobs import CreateJob
from shared.states import TERMINAL
from shared.store.jobs import JobStore

_UNKNOWN_YET = "file-not-made-yet"


class StudentJobs:
    """Submits a student's job under the id that the record has for it, and follows it."""

    def __init__(
        self,
        submission: Submission,
        control: JobControl,
        jobs: JobStore,
        limit_of: Callable[[str], Awaitable[int | None]],
    ) -> None:
        """`limit_of` gives a project's limit of unfinished jobs, None for none."""
        self._submission = submission
        self._control = control
        self._jobs = jobs
        self._limit_of = limit_of

    async def check(self, student: Student, access: Access) -> str:
        """Return the model that training starts from. Raises as Submission.submit does, naming fields of `student`."""
        if student.selftune is not None and student.selftune.method is not None:
            raise InvalidRequest(
                "Invalid value for 'student.selftune.method': a student is trained on its teacher's answers, by the "
                "supervised method; leave it out.",
                code="invalid_value",
                param="student.selftune.method",
            )
        try:
            _, start = await self._submission.check_but_files(
                _request(student, student.model, _UNKNOWN_YET), access=access
            )
            return start.parent or start.base
        except (InvalidRequest, NotFound) as error:
            raise _of_student(error) from error

    async def submit(self, record: DistillationRecord) -> None:
        """Submit the job, once. Raises as Submission.submit does: RateLimited, too."""
        limit = await self._limit_of(record.project)
        request = _request(
            record.student, record.start_model, record.ids.training, metadata={DISTILLATION_ID: record.id}
        )
        await self._submission.submit(request, access=record.access, job_id=record.ids.job, limit=limit)

    async def ended(self, record: DistillationRecord) -> JobRecord | None:
        """Return the job, None while it is not at its end. Raises NotFound."""
        job = await self._jobs.get(record.ids.job, project=record.project)
        return job if job.status in TERMINAL else None

    async def stop(self, record: DistillationRecord) -> None:
        """Cancel the job, if it was submitted and has not ended. Raises StoreUnavailable."""
        with suppress(NotFound, TransitionRefused):
            await self._control.cancel(record.ids.job, project=record.project)


def _request(student: Student, model: str, training_file: str, metadata: dict[str, str] | None = None) -> CreateJob:
    return CreateJob(
        model=model,
        training_file=training_file,
        suffix=student.suffix,
        seed=student.seed,
        hyperparameters=student.hyperparameters,
        selftune=student.selftune,
        metadata=metadata,
    )


def _of_student(error: SelftuneError) -> SelftuneError:
    """Have an error of a job's request name the field of the distillation's."""
    if error.param is None:
        return error
    message = error.message.replace(f"'{error.param}'", f"'student.{error.param}'")
    return type(error)(message, code=error.code, param=f"student.{error.param}")
