"""An alias's gate: what may be set as one, who may pass it over, and what a model's rows say before it."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec
from msgspec import UNSET
from msgspec.structs import replace

from services.api.evals.comparison import passing_of, verdict_of
from services.api.evals.questions import check_messages
from shared.alias_records import AliasRecord
from shared.audit_records import AuditRecord
from shared.errors import InvalidRequest, NotFound, PermissionDenied
from shared.promotion_records import GateRun, PromotionRecord, asked_of
from shared.records import KeyRecord
from shared.schemas.aliases import Canary, PromoteCanary, RollBackAlias, UpdateAlias
from shared.schemas.evals import EvalFileId
from shared.schemas.gates import MAX_CONFIG_BYTES, Gate, GateCriteria
from shared.schemas.promotions import GateFigures
from shared.store.aliases import Change
from shared.store.audit import AuditStore
from shared.store.evals import EvalStore
from shared.store.files import FileStore
from shared.store.gate_runs import GateRunStore

FREE_CANARY_PERCENT = 10
"""A canary of a larger share has to have passed the gate."""


class Gates:
    """What is refused because of gates, or of them."""

    def __init__(self, evals: EvalStore, files: FileStore, runs: GateRunStore, audit: AuditStore) -> None:
        self._evals = evals
        self._files = files
        self._runs = runs
        self._audit = audit

    async def check(self, gate: Gate | None, caller: KeyRecord) -> None:
        """Raises InvalidRequest, NotFound or PermissionDenied, naming the field, for what is no gate to be used."""
        if gate is None:
            return
        check_config_size(gate, "gate")
        if gate.criteria == GateCriteria():
            raise InvalidRequest(
                "'gate.criteria' asks for nothing; give min_pass_rate or against_current.",
                code="invalid_value",
                param="gate.criteria",
            )
        if gate.recheck_hours is not None:
            check_may_ask(caller, "gate.recheck_hours")
        try:
            await self._evals.get(gate.eval_id, project=caller.project)
        except NotFound as error:
            raise NotFound(error.message, code=error.code, param="gate.eval_id") from error
        _check_template(gate)
        if isinstance(gate.data_source.source, EvalFileId):
            await self._check_file(gate.data_source.source.id, caller.project)

    async def seen(self, record: AliasRecord, model: str | None) -> GateRun | None:
        """Return what an alias's gate saw last of a model, if there is one."""
        return None if model is None else await self._runs.find(record.uid, model)

    async def note_override(self, record: AliasRecord, reason: str | None, caller: KeyRecord) -> None:
        """Enter into the audit log that a gate was passed over, if there is a reason for which it was."""
        if reason is not None:
            await self._audit.add(
                AuditRecord(
                    type="alias.gate_overridden",
                    at=time.time(),
                    project=record.project,
                    key_id=caller.id,
                    resources=(record.name,),
                    reason=reason,
                )
            )

    async def _check_file(self, file_id: str, project: str) -> None:
        where = "gate.data_source.source.id"
        try:
            file = await self._files.get(file_id, project=project)
        except NotFound as error:
            raise NotFound(error.message, code=error.code, param=where) from error
        if file.purpose != "evals":
            raise InvalidRequest(
                f"File {file_id} was uploaded with purpose '{file.purpose}'; upload it with purpose 'evals'.",
                code="invalid_file_purpose",
                param=where,
            )


def check_config_size(config: object, param: str) -> None:
    """Raises InvalidRequest for a gate or monitor that would slow every request to its alias."""
    size = len(msgspec.json.encode(config))
    if size > MAX_CONFIG_BYTES:
        raise InvalidRequest(
            f"'{param}' has {size:,} bytes, and {MAX_CONFIG_BYTES:,} is the limit; put rows into a file.",
            code="invalid_value",
            param=param,
        )


def check_may_ask(caller: KeyRecord, param: str | None) -> None:
    """Raises PermissionDenied for a key that may have no models answer."""
    if "infer" not in caller.scopes:
        raise PermissionDenied(
            "You have insufficient permissions for this operation. Missing scopes: infer: models are asked in this "
            "key's name.",
            param=param,
        )


def check_update(record: AliasRecord, wanted: UpdateAlias, caller: KeyRecord, seen: GateRun | None) -> str | None:
    """Return why the gate is passed over, None if it is not. `seen` is what it saw last of the canary that is wanted.

    Raises InvalidRequest with code `gate_not_passed` for a move past the gate, a canary of more than
    FREE_CANARY_PERCENT that has not passed it, or a change of the gate itself; PermissionDenied.
    """
    _check_override(wanted.override_gate, caller)
    overs = list[str | None]()
    if wanted.model is not UNSET and wanted.model != record.target:
        overs.append(passed_over(record, wanted.override_gate, f"'{wanted.model}' has to pass it", param="model"))
    if wanted.canary and _grows(record, wanted.canary) and not _has_passed(record, seen):
        why = f"'{wanted.canary.model}' has to pass it to be a canary of more than {FREE_CANARY_PERCENT}%"
        overs.append(passed_over(record, wanted.override_gate, why, param="canary.percent"))
    if wanted.gate is not UNSET and wanted.gate != record.gate:
        overs.append(passed_over(record, wanted.override_gate, "changing it would open it", param="gate"))
    return overs[0] if overs else None


def check_promote(record: AliasRecord, wanted: PromoteCanary, caller: KeyRecord) -> str | None:
    """As `check_update`, for promoting the canary."""
    _check_override(wanted.override_gate, caller)
    return passed_over(record, wanted.override_gate, "its canary has to pass it")


def check_rollback(
    record: AliasRecord, wanted: RollBackAlias, caller: KeyRecord, model: str, seen: GateRun | None
) -> str | None:
    """As `check_update`, for going back to a model that did not pass the gate when it was seen last."""
    _check_override(wanted.override_gate, caller)
    if seen is None or seen.has_passed:
        return None
    return passed_over(record, wanted.override_gate, f"'{model}' did not pass it (run '{seen.run_id}')")


def passed_over(record: AliasRecord, override: str | None, why: str, *, param: str | None = None) -> str | None:
    """Return `override`, None for an alias without a gate.

    Raises InvalidRequest with code `gate_not_passed` for one with a gate where `override` is None.
    """
    if record.gate is None:
        return None
    if override is None:
        raise InvalidRequest(
            f"The alias '{record.name}' has a gate, and {why}: POST /v1/aliases/{record.name}/promotions, or send "
            "'override_gate' with a reason and a key that has the scope admin.",
            code="gate_not_passed",
            param=param,
        )
    return override


def _check_override(override: str | None, caller: KeyRecord) -> None:
    """Raises PermissionDenied for who would pass gates over and is no admin, be there a gate in the way or not."""
    if override is not None and not caller.access.is_admin:
        raise PermissionDenied("'override_gate' needs an API key with the scope admin.", param="override_gate")


def _grows(record: AliasRecord, canary: Canary) -> bool:
    """Tell whether a canary gets a large share that it does not have yet."""
    has = record.canary.percent if record.canary is not None and record.canary.model == canary.model else 0
    return canary.percent > max(has, FREE_CANARY_PERCENT)


def _has_passed(record: AliasRecord, seen: GateRun | None) -> bool:
    return record.gate is not None and seen is not None and seen.has_passed and seen.asked == asked_of(record.gate)


def overridden(change: Change, override: str | None) -> Change:
    """Have the history tell that a gate was passed over, and why, if it was."""
    if override is None:
        return change
    changed, entry = change
    reason = "; ".join(part for part in (entry.reason, override) if part)
    return changed, replace(entry, gate_overridden=True, reason=reason)


def figures_of(here: Sequence[bool], other: Sequence[bool] | None) -> GateFigures:
    """Count which rows pass, at least one; both sides have the same rows in the same order."""
    figures = GateFigures(rows=len(here), passed=sum(here), pass_rate=sum(here) / len(here))
    if other is None:
        return figures
    passing = passing_of(here, other)
    return replace(
        figures,
        passed_by_current=sum(other),
        current_pass_rate=sum(other) / len(other),
        only_candidate=passing.only_here,
        only_current=passing.only_in_other,
        p_value=passing.p_value,
        verdict=verdict_of(passing),
    )


def judged(record: PromotionRecord, figures: GateFigures) -> tuple[bool, str]:
    """Tell whether the figures pass the gate, and say why, with them. A recheck must not be worse than before."""
    least = record.gate.criteria.min_pass_rate
    wanted = record.gate.criteria.against_current if record.kind == "promotion" else "not_worse"
    has_passed = least is None or figures.pass_rate >= least
    told = f"{figures.passed} of {figures.rows} rows passed, {figures.pass_rate:.1%}"
    told += f", where min_pass_rate is {least:.1%}" if least is not None else ""
    if figures.verdict is not None:
        against = f"'{record.current}'" if record.kind == "promotion" else "its run before"
        told += (
            f"; {against} passed {figures.current_pass_rate:.1%}, {figures.only_candidate} rows passed only now and "
            f"{figures.only_current} only there, p = {figures.p_value:.3g}: {figures.verdict.replace('_', ' ')}"
        )
        is_enough = figures.verdict == "better" if wanted == "better" else figures.verdict != "worse"
        has_passed = has_passed and (wanted is None or is_enough)
        told += f", where '{wanted}' is asked for" if wanted and not is_enough else ""
    return has_passed, told


def has_least_pass_rate(gate: Gate, passed: Sequence[bool]) -> bool:
    """Tell whether a model passes by itself, be others better or not."""
    least = gate.criteria.min_pass_rate
    return least is None or sum(passed) / len(passed) >= least


def _check_template(gate: Gate) -> None:
    try:
        check_messages(gate.data_source.asking("-"), are_stored=False)
    except InvalidRequest as error:
        raise InvalidRequest(
            error.message.replace("'data_source", "'gate.data_source"),
            code=error.code,
            param=None if error.param is None else f"gate.{error.param}",
        ) from error
