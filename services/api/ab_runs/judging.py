"""A judge that is shown two answers in one order, and not told whose they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import structlog
from msgspec import UNSET

from services.api.ab_runs.rubric import PLACES, grader_of
from services.api.evals.failing import RunFailed
from services.api.evals.grading import error_of_grade, usage_of_grade
from shared.errors import SelftuneError
from shared.grading.means import Means
from shared.grading.run import grade
from shared.grading.samples import sample_of
from shared.schemas.ab_runs import AbJudge, AbJudgement, Choice, Side
from shared.schemas.evals import EvalError, ModelUsage, OutputItem

_log = structlog.get_logger()

_BROKEN = EvalError(code="server_error", message="An internal error occurred; the server's log has it.")


class BlindJudge:
    """Asks one judge, by the means of the run's creator."""

    def __init__(self, judge: AbJudge, means: Means) -> None:
        self._grader = grader_of(judge)
        self._means = means

    async def judge(self, first: Side, a: OutputItem, b: OutputItem) -> tuple[AbJudgement, Sequence[ModelUsage]]:
        """Return what the judge says to this order, and what that has cost. Raises NoReplica, RunFailed.

        What nobody foresaw is the row's error, not the run's.
        """
        shown = (a, b) if first == "a" else (b, a)
        sample = {place: _spoken(one) for place, one in zip(PLACES, shown, strict=True)}
        try:
            found = await grade(self._grader, item=a.datasource_item, sample=sample, means=self._means)
        except (RunFailed, SelftuneError, OSError):
            raise
        except Exception as error:  # noqa: BLE001 - ends this row, not the thousands beside it
            _log.error("ab_run.row_broken", row=a.datasource_item_id, exc_info=error)
            return AbJudgement(first=first, choice=None, error=_BROKEN), []
        if fault := error_of_grade(found):
            return AbJudgement(first=first, choice=None, error=fault), usage_of_grade(found)
        choice: Choice = msgspec.convert(found.label, Choice)
        return AbJudgement(first=first, choice=choice), usage_of_grade(found)


def _spoken(item: OutputItem) -> dict[str, Any]:
    message = item.sample.output[-1]
    return sample_of(message.content, None if message.tool_calls is UNSET else message.tool_calls)
