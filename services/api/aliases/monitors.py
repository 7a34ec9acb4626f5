"""An alias's monitor: what may be set as one."""

from __future__ import annotations

from services.api.aliases.gates import check_config_size, check_may_ask
from services.api.gateway.model_names import ModelNames
from services.api.graders.permitted import asks_models, check_judges
from services.api.graders.running import Graders
from shared.errors import InvalidRequest
from shared.records import KeyRecord
from shared.schemas.monitors import Monitor


class Monitors:
    """Everything about monitors that can be refused is refused here."""

    def __init__(self, graders: Graders, names: ModelNames) -> None:
        self._graders = graders
        self._names = names

    async def check(self, monitor: Monitor | None, caller: KeyRecord) -> None:
        """Raises InvalidRequest, NotFound or PermissionDenied, naming the field, for what is no monitor to be used."""
        if monitor is None:
            return
        check_config_size(monitor, "monitor")
        _check_actions(monitor)
        names: set[str] = set()
        for place, grader in enumerate(monitor.graders):
            where = f"monitor.graders[{place}]"
            if grader.name in names:
                raise InvalidRequest(
                    f"Invalid value for '{where}.name': '{grader.name}' is the name of two graders.",
                    code="invalid_value",
                    param=f"{where}.name",
                )
            names.add(grader.name)
            await self._graders.check(grader, where=where)
            if asks_models(grader):
                check_may_ask(caller, where)
            judges = self._graders.judges
            await check_judges(grader, caller.access, names=self._names, judges=judges, where=where)


def _check_actions(monitor: Monitor) -> None:
    if len(set(monitor.actions)) != len(monitor.actions):
        raise InvalidRequest("'monitor.actions' has one of them twice.", code="invalid_value", param="monitor.actions")
    if "retrain" not in monitor.actions:
        return
    budget = monitor.budget
    if budget is None or (budget.jobs is None and budget.tokens is None):
        raise InvalidRequest(
            "The action 'retrain' needs a budget: give 'jobs' or 'tokens' of 30 days.",
            code="missing_required_parameter",
            param="monitor.budget",
        )
    if not monitor.retrain_without_approval:
        raise InvalidRequest(
            "The action 'retrain' trains with nobody's approval; say so with 'retrain_without_approval': true, or use "
            "'propose_retraining'.",
            code="missing_required_parameter",
            param="monitor.retrain_without_approval",
        )
    if monitor.recipe.min_score is None or not monitor.graders:
        raise InvalidRequest(
            "The action 'retrain' needs graders and a least score: without them the model would be taught whatever it "
            "said.",
            code="missing_required_parameter",
            param="monitor.recipe.min_score",
        )
