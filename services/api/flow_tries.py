"""How often processes died over a flow: the changes of its record that count that, and those that end it."""

from __future__ import annotations

import time
from typing import TypeVar

from msgspec.structs import replace

from shared.flow_records import FlowError, FlowRecord
from shared.flow_states import ENDED, FlowState

F = TypeVar("F", bound=FlowRecord)

MAX_TRIES = 5
"""So often may a process die over a step, before the flow is taken for the reason."""
_DEADLY = FlowError(code="server_error", message=f"The server broke down {MAX_TRIES} times over this, at one step.")


def tried(current: F) -> F:
    """Count a try, and begin a flow that has waited."""
    if current.status in ENDED:
        return current
    if current.tries >= MAX_TRIES:
        return ended(current, FlowState.FAILED, _DEADLY)
    started_at = current.started_at or int(time.time())
    return replace(current, status=FlowState.IN_PROGRESS, started_at=started_at, tries=current.tries + 1)


def tried_anew(current: F) -> F:
    """Count a try in place of the one before, which nobody died of."""
    return tried(current if current.status in ENDED else replace(current, tries=max(0, current.tries - 1)))


def without_tries(current: F) -> F:
    return current if current.status in ENDED else replace(current, tries=0)


def ended(record: F, status: FlowState, error: FlowError | None) -> F:
    return replace(record, status=status, error=error, ended_at=int(time.time()))
