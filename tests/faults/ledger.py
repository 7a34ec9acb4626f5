"""What the clients were told, and what they may believe: the measure of what must be there at the end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class KnownFile:
    """An upload that was acknowledged."""

    sha256: str
    in_use: bool = False
    delete_asked: bool = False
    deleted: bool = False
    """The deletion was acknowledged."""


@dataclass
class KnownJob:
    """A job that was acknowledged."""

    recipe: int
    tag: str
    cancel_asked: bool = False
    cancelled: bool = False
    paused: bool = False
    """Asked to pause, whatever was answered: it has to be resumed."""
    events: dict[str, str] = field(default_factory=dict)
    """Every event that anybody was shown, by id."""
    checkpoints: set[str] = field(default_factory=set)
    ended_as: str = ""
    """The end that somebody was shown."""
    model: str = ""


@dataclass
class KnownAlias:
    """An alias of one client, which alone moves it."""

    model: str = ""
    """Where the last acknowledged move led; "" before the first."""
    maybe: set[str] = field(default_factory=set)
    """Where moves led to since, of which nobody knows whether they were made."""


@dataclass
class Ledger:
    """Shared by all clients; `wrong` collects what no fault excuses."""

    files: dict[str, KnownFile] = field(default_factory=dict)
    maybe_files: set[str] = field(default_factory=set)
    """Names of uploads whose answer never came."""
    jobs: dict[str, KnownJob] = field(default_factory=dict)
    maybe_jobs: set[str] = field(default_factory=set)
    """Tags of jobs whose answer never came."""
    aliases: dict[str, KnownAlias] = field(default_factory=dict)
    answers: int = 0
    """Chats that were answered."""
    unavailable: int = 0
    """Requests that a fault has cost: no connection, no whole answer, 503."""
    wrong: list[str] = field(default_factory=list)

    def blame(self, text: str, *details: Any) -> None:
        self.wrong.append(" ".join([text, *map(str, details)]))

    def note_events(self, job_id: str, newest_first: list[dict[str, Any]]) -> None:
        """Take in a page of events, and compare it with what was shown before."""
        known = self.jobs[job_id].events
        for told in newest_first:
            text = f"{told['type']}: {told['message']}"
            if known.setdefault(told["id"], text) != text:
                self.blame("an event changed:", job_id, told["id"], known[told["id"]], "->", text)

    def note_end(self, job_id: str, job: dict[str, Any]) -> None:
        """Take in what a job says of itself; an end never changes."""
        known = self.jobs[job_id]
        if known.ended_as and job["status"] != known.ended_as:
            self.blame("a job left its end:", job_id, known.ended_as, "->", job["status"])
        if job["status"] in ("succeeded", "failed", "cancelled"):
            known.ended_as = job["status"]
            known.model = job["fine_tuned_model"] or ""
