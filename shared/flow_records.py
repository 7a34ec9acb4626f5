"""What the records of all flows have in common; each kind adds its own fields. Reading is tolerant: unknown fields are
skipped, every later field has a default."""

from __future__ import annotations

from msgspec import Struct

from shared.flow_states import FlowState
from shared.model_records import Access


class FlowError(Struct, frozen=True, kw_only=True):
    """Why a flow has failed."""

    code: str
    message: str


class FlowRecord(Struct, frozen=True, kw_only=True):
    """A flow. The ids of what it makes are in its record before any of it is made."""

    id: str
    project: str
    status: FlowState = FlowState.QUEUED
    error: FlowError | None = None
    created_at: int
    started_at: int | None = None
    ended_at: int | None = None
    key_id: str = ""
    """The key that created it, with which it asks for models."""
    is_admin: bool = False
    """Whether that key had the scope `admin`."""
    tries: int = 0
    """How often a process took it up, brought it no step further, and did not give it back: it died, or is at it."""

    @property
    def access(self) -> Access:
        return Access(project=self.project, key_id=self.key_id, is_admin=self.is_admin)
