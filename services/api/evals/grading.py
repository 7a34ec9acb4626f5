"""An eval's criteria, applied to a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import UNSET
from msgspec.structs import asdict

from services.api.batches.answering import Answering
from services.api.batches.slots import Slots
from services.api.evals.judging import PatientJudge, PatientRewardModels
from services.api.graders.running import Graders
from shared.grading.run import Grade, grade
from shared.model_records import Access
from shared.schemas.evals import EvalError, ItemResult, ModelUsage
from shared.schemas.graders import Grader, LabelModelGrader, RewardModelGrader, ScoreModelGrader


class Grading:
    """Grades rows of one run. Judges are asked as its creator may, later than live requests, within the same slots as
    the model that answers."""

    def __init__(
        self, criteria: Sequence[Grader], graders: Graders, answering: Answering, slots: Slots, access: Access
    ) -> None:
        self.criteria = criteria
        self._means = graders.means(
            PatientJudge(answering, graders.judges, slots, access), PatientRewardModels(graders.reward_models, access)
        )

    def is_paid(self, place: int) -> bool:
        """Tell whether a criterion asks a model."""
        return isinstance(self.criteria[place], ScoreModelGrader | LabelModelGrader | RewardModelGrader)

    async def grade(
        self, place: int, *, item: dict[str, Any], spoken: dict[str, Any]
    ) -> tuple[ItemResult, Sequence[ModelUsage]]:
        """Return what a criterion says of a row, and what that has cost. Raises NoReplica, RunFailed."""
        found = await grade(self.criteria[place], item=item, sample=spoken, means=self._means)
        return result_of_grade(found), usage_of_grade(found)


def usage_of_grade(found: Grade) -> list[ModelUsage]:
    """Form what the judges of a grade were asked."""
    return [ModelUsage(model_name=model, invocation_count=1, **asdict(tokens)) for model, tokens in found.usage.items()]


def result_of_grade(found: Grade) -> ItemResult:
    """Form what a criterion says of a row."""
    error = error_of_grade(found)
    return ItemResult(
        name=found.name,
        type=found.type,
        score=found.reward,
        passed=not error and found.passed is not False,
        error=error or UNSET,
        ungraded=found.is_away or UNSET,
    )


def error_of_grade(found: Grade) -> EvalError | None:
    """Return the first of a grader's errors with what is told about it, or None."""
    told = asdict(found.errors)
    codes = [name for name, value in told.items() if value is True]
    if not codes:
        return None
    details = [value for value in told.values() if isinstance(value, str) and value]
    return EvalError(code=codes[0], message="; ".join(details) or f"The grader failed with {codes[0]}.")
