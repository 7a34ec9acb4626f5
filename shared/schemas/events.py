"""What happened in a job, in OpenAI's wording."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct


class Event(Struct, frozen=True, kw_only=True):
    """One line of a job's story."""

    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Literal["info", "warn", "error"] = "info"
    message: str
    type: Literal["message", "metrics"] = "message"
    data: Annotated[dict[str, Any], Meta(description="Metrics of a step, or details of the message.")] = {}
