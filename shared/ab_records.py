"""How A/B runs are stored: as runs of their eval (shared/eval_records), with this for a source and these counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from msgspec import Struct

from shared.eval_records import EvalRunRecord, usage_in
from shared.schemas.ab_runs import AbCounts, AbItemStatus, AbJudge, AbJudgement, AbRun, Side, VoteChoice

CHOSE_FIRST, CHOSE_SECOND = "chose first", "chose second"
"""Names in an A/B run's counts: judgements by the place of what was chosen."""
LEANING_FIRST, LEANING_SECOND = "leaning first", "leaning second"
"""Rows on which the first place was chosen more often than the second, or less."""


class AbSpec(Struct, frozen=True, kw_only=True):
    """What an A/B run compares, and how."""

    run_a: str
    run_b: str
    judge: AbJudge | None = None
    seed: int
    salt: str
    """Hex; what voters are shown is drawn with it, and it is never shown."""
    tools: list[dict[str, Any]] | None = None
    """What both models were given to call."""
    tools_differ: bool = False
    """Whether they were given different ones."""


class VoteRecord(Struct, frozen=True, kw_only=True):
    """A vote of one person on one row."""

    choice: VoteChoice
    first: Side
    """Whose answer stood first."""
    created_at: int

    @property
    def winner(self) -> Literal["a", "b", "tie", "neither"]:
        if self.choice == "first":
            return self.first
        if self.choice == "second":
            return "b" if self.first == "a" else "a"
        return self.choice


def of_status(status: AbItemStatus) -> str:
    """Return the name of the count of rows that came to this."""
    return f"rows {status}"


def places_of(judgements: Sequence[AbJudgement]) -> dict[str, int]:
    """Return what a row's judgements add to the counts of places.

    A judge that cares for the answers alone gives the first place to the one in one order, to the other in the other:
    so a row leans to a place only where position counted.
    """
    firsts = sum(one.choice == "first" for one in judgements)
    seconds = sum(one.choice == "second" for one in judgements)
    counts = {
        CHOSE_FIRST: firsts,
        CHOSE_SECOND: seconds,
        LEANING_FIRST: int(firsts > seconds),
        LEANING_SECOND: int(seconds > firsts),
    }
    return {name: count for name, count in counts.items() if count}


def counts_in(record: EvalRunRecord, tally: Mapping[str, int]) -> AbCounts:
    """Form the rows by what they came to."""
    return AbCounts(
        total=record.rows,
        a=tally.get(of_status("a"), 0),
        b=tally.get(of_status("b"), 0),
        tie=tally.get(of_status("tie"), 0),
        unjudged=tally.get(of_status("unjudged"), 0),
        errored=tally.get(of_status("error"), 0),
        left_out=tally.get(of_status("left_out"), 0),
    )


def public_ab_run(record: EvalRunRecord, tally: Mapping[str, int], spec: AbSpec) -> AbRun:
    """Form the A/B run with its counts."""
    return AbRun(
        id=record.id,
        eval_id=record.eval_id,
        status=record.status.value,
        name=record.name,
        run_a=spec.run_a,
        run_b=spec.run_b,
        judge=spec.judge,
        seed=spec.seed,
        created_at=record.created_at,
        result_counts=counts_in(record, tally),
        per_model_usage=usage_in(tally),
        metadata=record.metadata,
        error=record.error,
    )
