"""How evals and their runs are stored. Reading is tolerant: unknown fields are skipped, every later field has a
default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import Raw, Struct

from shared.eval_states import EvalRunState
from shared.model_records import Access
from shared.schemas.evals import (
    CriterionResult,
    CustomDataSource,
    DataSourceConfig,
    Eval,
    EvalError,
    EvalRun,
    ModelUsage,
    ResultCounts,
    ShownDataSource,
)
from shared.schemas.graders import Grader, RunnableGrader
from shared.schemas.rollouts import RolloutRegrade

_TEXT: dict[str, Any] = {"type": "string"}
_SAMPLE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "output_text": _TEXT,
        "output_json": {},
        "output_tools": {"type": "array", "items": {"type": "object"}},
        "choices": {"type": "array", "items": {"type": "object"}},
    },
}
_LOGGED: dict[str, Any] = {
    "type": "object",
    "properties": {
        "id": _TEXT,
        "model": _TEXT,
        "input": {"type": "array", "items": {"type": "object"}},
        "output": _TEXT,
        "metadata": {"type": "object"},
    },
}


class RegradedJob(Struct, frozen=True, kw_only=True):
    """The reinforcement job whose rollouts an eval grades anew."""

    job_id: str
    grader: RunnableGrader
    """The eval's criteria are its parts."""


RunKind: TypeAlias = Literal["run", "ab"]
"""A run of a model's answers, or an A/B run over those of two."""


class EvalRecord(Struct, frozen=True, kw_only=True):
    """An eval. Its criteria stay as they are."""

    id: str
    project: str
    name: str = ""
    data_source_config: DataSourceConfig
    testing_criteria: list[Grader]
    metadata: dict[str, str] | None = None
    created_at: int
    regrades: RegradedJob | None = None
    """None where its owner has made it."""

    def public(self) -> Eval:
        return Eval(
            id=self.id,
            name=self.name,
            data_source_config=_shown(self.data_source_config),
            testing_criteria=self.testing_criteria,
            created_at=self.created_at,
            metadata=self.metadata,
        )


def _shown(config: DataSourceConfig) -> ShownDataSource:
    if isinstance(config, CustomDataSource):
        properties = {"item": config.item_schema}
        if config.include_sample_schema:
            properties["sample"] = _SAMPLE
        return ShownDataSource(type="custom", schema=_row_schema(properties))
    return ShownDataSource(
        type="stored_completions" if config.__struct_config__.tag == "stored_completions" else "logs",
        schema=_row_schema({"item": _LOGGED, "sample": _SAMPLE}),
        metadata=config.metadata or {},
    )


def _row_schema(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


class EvalRunRecord(Struct, frozen=True, kw_only=True):
    """A run of an eval. Its counts are kept beside it, and what was posted as its data source, too; an A/B run's source
    is an AbSpec."""

    id: str
    eval_id: str
    project: str
    kind: RunKind = "run"
    name: str = ""
    model: str = ""
    """Empty where rows are graded as they are; of an A/B run the judge, if it is of this server."""
    file_id: str = ""
    """The file that its rows are of, if one was uploaded."""
    criteria: list[str]
    """Names of the eval's criteria."""
    metadata: dict[str, str] | None = None
    status: EvalRunState = EvalRunState.QUEUED
    rows: int = 0
    error: EvalError = EvalError()
    created_at: int
    started_at: int | None = None
    ended_at: int | None = None
    key_id: str = ""
    """The key that created it, with which it asks for models."""
    is_admin: bool = False
    """Whether that key had the scope `admin`."""
    tries: int = 0
    """How often in a row a process took it up, got no row further, and did not give it back: it died, or is at it."""
    tried_at: int = 0
    """How many rows had their results at the last of these tries."""
    regrade: RolloutRegrade | None = None
    """What a run over rollouts has come to, kept when it is first asked for after the run's end."""

    @property
    def access(self) -> Access:
        return Access(project=self.project, key_id=self.key_id, is_admin=self.is_admin)

    def public(self, tally: Mapping[str, int], source: Raw, *, report_url: str) -> EvalRun:
        """Form the run with its counts; their names are those of the functions below."""
        return EvalRun(
            id=self.id,
            eval_id=self.eval_id,
            status=self.status.value,
            model=self.model,
            name=self.name,
            created_at=self.created_at,
            report_url=report_url,
            result_counts=ResultCounts(
                total=self.rows,
                errored=tally.get(ERRORED, 0),
                failed=tally.get(FAILED, 0),
                passed=tally.get(PASSED, 0),
            ),
            per_model_usage=usage_in(tally),
            per_testing_criteria_results=[
                CriterionResult(
                    testing_criteria=name,
                    passed=tally.get(of_criterion(place, passed=True), 0),
                    failed=tally.get(of_criterion(place, passed=False), 0),
                )
                for place, name in enumerate(self.criteria)
            ],
            data_source=source,
            metadata=self.metadata,
            error=self.error,
        )


PASSED, FAILED, ERRORED = "passed", "failed", "errored"
"""Names in a run's counts."""
_OF_MODEL = ("invocation_count", "prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens")


def of_criterion(place: int, *, passed: bool) -> str:
    """Return the name of a criterion's count."""
    return f"criterion {place} {PASSED if passed else FAILED}"


def of_model(usage: ModelUsage) -> dict[str, int]:
    """Return what a model's use adds to the counts."""
    return {f"{name} {usage.model_name}": getattr(usage, name) for name in _OF_MODEL if getattr(usage, name)}


def usage_in(tally: Mapping[str, int]) -> list[ModelUsage]:
    """Return what the counts say of models' use."""
    found: dict[str, dict[str, int]] = {}
    for name, count in tally.items():
        kind, _, model = name.partition(" ")
        if kind in _OF_MODEL:
            found.setdefault(model, {})[kind] = count
    return [msgspec.convert({"model_name": model, **counts}, ModelUsage) for model, counts in sorted(found.items())]


_ITEM_PREFIXES = {"evalrun": "outputitem", "abrun": "abitem"}


def output_item_id(run_id: str, number: int) -> str:
    """Name the result of a row: its number is in the name, so that a page needs no index."""
    kind, _, random = run_id.partition("_")
    return f"{_ITEM_PREFIXES.get(kind, 'outputitem')}_{random or kind}_{number}"


def output_item_number(run_id: str, item_id: str) -> int | None:
    """Return the row's number; None if it is no name of this run's."""
    number = item_id.removeprefix(output_item_id(run_id, 0)[:-1])
    is_ours = number != item_id and number.isascii() and number.isdecimal() and len(number) <= 9
    return int(number) if is_ours and output_item_id(run_id, int(number)) == item_id else None
