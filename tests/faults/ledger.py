"""What the clients were told, and what they may believe: the measure of what must be there at the end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Answer = dict[str, Any]
BATCH_ENDS = ("completed", "failed", "expired", "cancelled")


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
class KnownBatch:
    """A batch that was acknowledged."""

    tag: str
    asked: dict[str, bool]
    """Its requests by custom_id, in their order: whether the model is there."""
    cancel_asked: bool = False
    cancelled: bool = False
    """The cancellation was acknowledged."""
    shown: Answer = field(default_factory=dict)
    """The last that somebody was shown of it."""

    @property
    def ended_as(self) -> str:
        status = str(self.shown.get("status", ""))
        return status if status in BATCH_ENDS else ""


@dataclass
class KnownUpload:
    """An upload in parts that was begun."""

    filename: str
    sha256: str
    parts: list[str] = field(default_factory=list)
    """Ids in order, once somebody has asked to complete it."""
    file_id: str = ""
    """The file, once completing it was acknowledged."""
    cancel_asked: bool = False
    cancelled: bool = False


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
    maybe_files: dict[str, str] = field(default_factory=dict)
    """SHA-256 of uploads of which some answer never came, by the file's name."""
    jobs: dict[str, KnownJob] = field(default_factory=dict)
    maybe_jobs: set[str] = field(default_factory=set)
    """Tags of jobs whose answer never came."""
    batches: dict[str, KnownBatch] = field(default_factory=dict)
    maybe_batches: set[str] = field(default_factory=set)
    """Tags of batches whose answer never came."""
    uploads: dict[str, KnownUpload] = field(default_factory=dict)
    aliases: dict[str, KnownAlias] = field(default_factory=dict)
    clock_moves: int = 0
    answers: int = 0
    """Chats that were answered."""
    unavailable: int = 0
    """Tries that a fault has cost: no connection, no whole answer, 503."""
    given_up: int = 0
    """Requests of which every try was one."""
    wrong: list[str] = field(default_factory=list)

    def blame(self, text: str, *details: Any) -> None:
        self.wrong.append(" ".join([text, *map(str, details)]))

    def note_events(self, job_id: str, newest_first: list[Answer]) -> None:
        """Take in a page of events, and compare it with what was shown before."""
        known = self.jobs[job_id].events
        for told in newest_first:
            text = f"{told['type']}: {told['message']}"
            if known.setdefault(told["id"], text) != text:
                self.blame("an event changed:", job_id, told["id"], known[told["id"]], "->", text)

    def note_end(self, job_id: str, job: Answer, known_before: str) -> None:
        """Take in what a job says of itself; an end never changes.

        `known_before` is the end that was known when it was asked: answers may overtake one another.
        """
        known = self.jobs[job_id]
        if known_before and job["status"] != known_before:
            self.blame("a job left its end:", job_id, known_before, "->", job["status"])
        if job["status"] in ("succeeded", "failed", "cancelled"):
            known.ended_as = job["status"]
            known.model = job["fine_tuned_model"] or ""

    def note_batch(self, batch: Answer, known_before: Answer) -> None:
        """Take in what a batch says of itself: an end never changes, and what is counted stays counted.

        `known_before` is what was known of it when it was asked.
        """
        known = self.batches[batch["id"]]
        if known_before.get("status") in BATCH_ENDS and batch != known_before:
            self.blame("a batch changed after its end:", known_before, "->", batch)
        if known_before and _counted(batch) < _counted(known_before):
            self.blame("a batch has lost answers:", known_before, "->", batch)
        if not known.ended_as:
            known.shown = batch


def _counted(batch: Answer) -> int:
    return int(batch["request_counts"]["completed"] + batch["request_counts"]["failed"])
