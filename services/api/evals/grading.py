"""An eval's criteria, applied to a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import UNSET
from msgspec.structs import asdict, replace

from services.api.batches.answering import Answering
from services.api.evals.judging import GatewayJudge
from shared.errors import NoReplica
from shared.grading.run import Grade, Means, grade
from shared.model_records import Access
from shared.schemas.evals import EvalError, ItemResult, ModelUsage
from shared.schemas.graders import Grader, LabelModelGrader, ScoreModelGrader


class Grading:
    """Grades rows of one run. Judges are asked with the access of whoever created it."""

    def __init__(self, criteria: Sequence[Grader], means: Means, answering: Answering, access: Access) -> None:
        self.criteria = criteria
        self._means = means
        self._answering = answering
        self._access = access

    def is_paid(self, place: int) -> bool:
        """Tell whether a criterion asks a model."""
        return isinstance(self.criteria[place], ScoreModelGrader | LabelModelGrader)

    async def grade(
        self, place: int, *, item: dict[str, Any], spoken: dict[str, Any]
    ) -> tuple[ItemResult, Sequence[ModelUsage]]:
        """Return what a criterion says of a row, and what that has cost. Raises NoReplica when a judge is away."""
        judge = GatewayJudge(self._answering, self._access)
        grader = self.criteria[place]
        found = await grade(grader, item=item, sample=spoken, means=replace(self._means, judge=judge))
        if judge.is_away:
            raise NoReplica(f"no inference server is there for the judge of '{grader.name}'")
        usage = [
            ModelUsage(
                model_name=model,
                invocation_count=1,
                prompt_tokens=one.prompt_tokens,
                completion_tokens=one.completion_tokens,
                total_tokens=one.total_tokens,
                cached_tokens=one.cached_tokens,
            )
            for model, one in found.usage.items()
        ]
        return _result(found), usage


def _result(found: Grade) -> ItemResult:
    error = _error(found)
    return ItemResult(
        name=found.name,
        type=found.type,
        score=0.0 if error else found.reward,
        passed=not error and found.passed is not False,
        error=error or UNSET,
    )


def _error(found: Grade) -> EvalError | None:
    """Return the first of a grader's errors with what is told about it, or None."""
    told = asdict(found.errors)
    codes = [name for name, value in told.items() if value is True]
    if not codes:
        return None
    details = [value for value in told.values() if isinstance(value, str) and value]
    return EvalError(code=codes[0], message="; ".join(details) or f"The grader failed with {codes[0]}.")
