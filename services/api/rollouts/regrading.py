"""The grader's time machine: a job's answers, kept as they were, graded by another grader.

It is a file of rows, each an answer with the line that it answers, an eval whose criteria are the grader's parts, and a
run of it: so resuming, cancelling, judges' limits and the list of results are those of evals.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

import msgspec
from msgspec import UNSET
from msgspec.structs import replace

from services.api.evals.creation import EvalRuns
from services.api.evals.definitions import Evals
from services.api.files.uploads import Uploads
from services.api.gateway.model_names import ModelNames
from services.api.graders.permitted import check_judges
from services.api.graders.running import Graders
from services.api.rollouts.files import RolloutFiles
from shared import ids
from shared.errors import InvalidRequest, NotFound, SelftuneError
from shared.eval_records import EvalRunRecord, RegradedJob
from shared.grading.parts import parts_of
from shared.model_records import Access
from shared.records import FileRecord, JobRecord
from shared.rollout_records import Place, RolloutGroup, RolloutHeader
from shared.schemas.evals import (
    MAX_CRITERIA,
    MAX_ROWS,
    CreateEval,
    CreateEvalRun,
    CustomDataSource,
    EvalFileId,
    EvalRow,
    JsonlRun,
)
from shared.schemas.graders import Grader, MultiGrader, RunnableGrader, TextSimilarityGrader
from shared.schemas.rollouts import RegradeRollouts
from shared.store.eval_runs import EvalRunStore

ROLLOUT_KEY = "selftune_rollout"
"""Where a row's item says which rollout it is, and how it was rewarded."""
_KEPT_S = 30 * 86_400
_GRADER = "grader"

Drawn = dict[Place, set[int] | None]
"""Which prompts of a file are taken, by their place in it; None are all."""


class Regrading:
    """Has rollouts graded anew."""

    def __init__(
        self,
        files: RolloutFiles,
        uploads: Uploads,
        graders: Graders,
        names: ModelNames,
        evals: Evals,
        eval_runs: EvalRuns,
        runs: EvalRunStore,
    ) -> None:
        self._files = files
        self._uploads = uploads
        self._graders = graders
        self._names = names
        self._evals = evals
        self._eval_runs = eval_runs
        self._runs = runs

    async def start(
        self, job: JobRecord, wanted: RegradeRollouts, *, access: Access, run_id: str
    ) -> tuple[EvalRunRecord, RunnableGrader]:
        """Begin, and return the run with what it grades by; a run that has this id already is returned as it is.

        Raises InvalidRequest that names the field, NotFound for judges, RateLimited, Unavailable.
        """
        try:
            return await self._runs.get(run_id), wanted.grader
        except NotFound:
            pass
        criteria = _criteria(wanted.grader)
        await self._graders.check(wanted.grader, where=_GRADER)
        judges = self._graders.judges
        await check_judges(wanted.grader, access, names=self._names, judges=judges, where=_GRADER)
        await self._runs.check_active(access.project)
        drawn = _drawn(await self._files.headers(job.id), wanted, seed=job.seed)
        file = await self._uploads.store(
            self._rows(job.id, drawn),
            project=access.project,
            filename=f"rollouts-{job.id}.jsonl",
            purpose="evals",
            lifetime_s=_KEPT_S,
        )
        return await self._run(job, wanted.grader, criteria, file, access, run_id), wanted.grader

    async def _run(
        self,
        job: JobRecord,
        grader: RunnableGrader,
        criteria: list[Grader],
        file: FileRecord,
        access: Access,
        run_id: str,
    ) -> EvalRunRecord:
        """Make the eval and its run; what was made is deleted if that fails."""
        eval_id = ids.new_eval_id()
        name = f"Rollouts of {job.id}"
        asked = CreateEval(
            name=name,
            data_source_config=CustomDataSource(item_schema={"type": "object"}, include_sample_schema=True),
            testing_criteria=criteria,
        )
        source = JsonlRun(source=EvalFileId(id=file.id))
        try:
            regrades = RegradedJob(job_id=job.id, grader=grader)
            await self._evals.create(asked, project=access.project, eval_id=eval_id, regrades=regrades)
            request = CreateEvalRun(data_source=source, name=name)
            encoded = msgspec.json.encode(source)
            found = await self._eval_runs.create(request, encoded, eval_id=eval_id, access=access, run_id=run_id)
        except SelftuneError:
            await self._undo(eval_id, file)
            raise
        return found.record

    async def _undo(self, eval_id: str, file: FileRecord) -> None:
        await self._uploads.delete(file)
        try:
            await self._evals.delete(eval_id, project=file.project)
        except NotFound:
            return

    async def _rows(self, job_id: str, drawn: Drawn) -> AsyncIterator[bytes]:
        """Form lines of rows. Raises InvalidRequest for more than a run may have."""
        count = 0
        for place, numbers in drawn.items():
            number = 0
            async with aclosing(self._files.groups(job_id, place)) as groups:
                async for group in groups:
                    if numbers is None or number in numbers:
                        count += len(group.samples)
                        if count > MAX_ROWS:
                            raise _too_many()
                        yield _lines(place, group)
                    number += 1
        if not count:
            raise _none()


def _criteria(grader: Grader) -> list[Grader]:
    """Return a grader's parts, each under the name that the formula has for it. Raises InvalidRequest."""
    if not isinstance(grader, MultiGrader):
        return [_passing(grader)]
    parts = parts_of(grader, where=_GRADER)
    if len(parts) > MAX_CRITERIA:
        raise InvalidRequest(
            f"'{_GRADER}.graders' has {len(parts)} graders; at most {MAX_CRITERIA} are run over rollouts.",
            code="invalid_value",
            param=f"{_GRADER}.graders",
        )
    return [_passing(replace(part, name=name)) for name, part in parts.items()]


def _passing(grader: Grader) -> Grader:
    """Give text similarity the threshold that evals want; what passes is of no matter here."""
    if isinstance(grader, TextSimilarityGrader) and grader.pass_threshold in (None, UNSET):
        return replace(grader, pass_threshold=1.0)
    return grader


def _drawn(headers: Sequence[RolloutHeader], wanted: RegradeRollouts, *, seed: int) -> Drawn:
    """Choose files, and with `sample` prompts of them; the same ones each time."""
    first = wanted.first_step or 0
    chosen = {
        Place(header.step, header.validation): header.stats.groups
        for header in headers
        if header.validation == wanted.validation
        and header.step >= first
        and (wanted.last_step is None or header.step <= wanted.last_step)
    }
    if wanted.sample is None or wanted.sample >= sum(chosen.values()):
        return dict.fromkeys(chosen)
    every = [(place, number) for place, groups in chosen.items() for number in range(groups)]
    drawn: Drawn = {}
    for place, number in sorted(random.Random(seed).sample(every, wanted.sample)):
        numbers = drawn.setdefault(place, set())
        assert numbers is not None
        numbers.add(number)
    return drawn


def _lines(place: Place, group: RolloutGroup) -> bytes:
    lines = []
    for number, sample in enumerate(group.samples):
        which = {"step": place.step, "validation": place.validation, "line": group.line, "sample": number}
        answer: dict[str, Any] = {"output_text": sample.text}
        if sample.tool_calls is not None:
            answer["output_tools"] = sample.tool_calls
        row = EvalRow(item={**group.item, ROLLOUT_KEY: {**which, "reward": sample.reward}}, sample=answer)
        lines.append(msgspec.json.encode(row) + b"\n")
    return b"".join(lines)


def _too_many() -> InvalidRequest:
    return InvalidRequest(
        f"Those are more than {MAX_ROWS:,} answers; ask for fewer steps, or for a 'sample' of their prompts.",
        code="invalid_value",
        param="sample",
    )


def _none() -> InvalidRequest:
    return InvalidRequest(
        "The job has no rollouts that are as this request wants them.", code="no_rollouts", param="first_step"
    )
