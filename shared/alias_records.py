"""Aliases as they are stored; reading is tolerant, as in shared/records.py."""

from __future__ import annotations

import re

from msgspec import Struct

from shared.model_records import Access
from shared.schemas.aliases import MAX_NAME, Alias, Canary, ChangedAlias, Shadow, Watch
from shared.schemas.gates import Gate
from shared.schemas.monitors import Monitor

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def is_alias_name(name: str) -> bool:
    """Whether an alias may have this name; fine-tuned models and bases from a hub have others."""
    return len(name) <= MAX_NAME and _NAME.fullmatch(name) is not None


class SetBy(Struct, frozen=True, kw_only=True):
    """Who has set a gate or a monitor, and when: in this key's name models are asked and judges."""

    key_id: str
    is_admin: bool = False
    at: int
    """Unix time."""

    def access(self, project: str) -> Access:
        return Access(project=project, key_id=self.key_id, is_admin=self.is_admin)


class AliasRecord(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A name of a project that points to a model.

    `…_since` are the revisions at which target and canary became what they are: traffic is counted by them, so that
    what a model did earlier is not held against it.
    """

    uid: str
    """Tells it from an earlier alias of the same name."""
    name: str
    project: str
    target: str
    target_since: int = 1
    moved_at: int = 0
    """Unix time at which it was pointed to `target`."""
    previous: str | None = None
    watched: bool = False
    """Whether `target` came by a move that a crossed limit undoes."""
    revision: int = 1
    description: str = ""
    canary: Canary | None = None
    canary_since: int = 0
    shadow: Shadow | None = None
    watch: Watch | None = None
    gate: Gate | None = None
    gate_set: SetBy | None = None
    monitor: Monitor | None = None
    monitor_set: SetBy | None = None
    """Since when it has had a monitor with these graders, whatever else was changed since, and who changed it last."""
    created_at: int
    updated_at: int

    def models(self) -> list[str]:
        """Name target, canary and shadow, as far as there are any."""
        others = (self.canary, self.shadow)
        return [self.target, *(other.model for other in others if other is not None)]

    @property
    def is_tended(self) -> bool:
        """Whether something is to be done for it now and then, be there traffic or not."""
        return self.monitor is not None or (self.gate is not None and self.gate.recheck_hours is not None)

    def goes_on_noting(self, before: AliasRecord) -> bool:
        """Whether what the monitor has noted stays of use: not without one, nor beside scores of other graders."""
        if self.monitor is None or before.monitor is None:
            return False
        return all(grader in before.monitor.graders for grader in self.monitor.graders)

    def watches(self, now: float) -> bool:
        """Whether a crossed limit would take the alias back at this moment."""
        return (
            self.watch is not None
            and self.watched
            and self.previous is not None
            and now < self.moved_at + self.watch.duration_s
        )

    def public(self) -> Alias:
        return Alias(
            id=self.name,
            created_at=self.created_at,
            updated_at=self.updated_at,
            revision=self.revision,
            model=self.target,
            previous_model=self.previous,
            description=self.description,
            canary=self.canary,
            shadow=self.shadow,
            watch=self.watch,
            gate=self.gate,
            monitor=self.monitor,
        )

    def changed(self, *, warm: bool, warning: str | None = None) -> ChangedAlias:
        shown = self.public()
        fields = {name: getattr(shown, name) for name in shown.__struct_fields__}
        return ChangedAlias(**fields, warm=warm, warning=warning)
