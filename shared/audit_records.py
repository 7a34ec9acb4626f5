"""What is stored of who did what. Reading is tolerant, as in records.py."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

Outcome = Literal["success", "refused", "unknown"]
"""`unknown`: the server broke off, so that the change may have been made or not."""


class AuditRecord(Struct, frozen=True, kw_only=True):
    """One change, or one kind of refusal within a minute. Holds ids, and nothing of what requests and answers say."""

    type: str
    """OpenAI's name for what happened, such as `api_key.created`, or one like it."""
    operation: str = ""
    """The route's operation id; empty for what the server did by itself."""
    at: float
    """Unix time."""
    outcome: Outcome = "success"
    status: int | None = None
    """Of the HTTP answer."""
    project: str = ""
    """Whose things were changed; empty for the organization's."""
    key_id: str = ""
    """The API key that asked; of a refusal, the key that the value was once. Empty for unknown ones and the server."""
    service_account: str = ""
    address: str = ""
    """The client's IP address."""
    request_id: str = ""
    resources: tuple[str, ...] = ()
    """Ids of what was changed: those in the path, then that of what was made."""
    reason: str = ""
    count: int = 1
    """How many refusals this stands for."""

    def public(self, entry_id: str, *, project_name: str) -> dict[str, Any]:
        """Show the entry as OpenAI's audit log does, with what it has no field for under `selftune`."""
        return {
            "object": "organization.audit_log",
            "id": entry_id,
            "type": self.type,
            "effective_at": int(self.at),
            "project": {"id": self.project, "name": project_name} if self.project else None,
            "actor": self._actor(),
            self.type: {"id": self.resources[-1]} if self.resources else {},
            "selftune": {
                "operation": self.operation or None,
                "outcome": self.outcome,
                "status": self.status,
                "ip_address": self.address or None,
                "request_id": self.request_id or None,
                "resource_ids": list(self.resources),
                "reason": self.reason or None,
                "count": self.count,
            },
        }

    def _actor(self) -> dict[str, Any] | None:
        if not self.key_id:
            return None
        key: dict[str, Any] = {"id": self.key_id, "type": "service_account" if self.service_account else "user"}
        if self.service_account:
            key["service_account"] = {"id": self.service_account}
        return {"type": "api_key", "api_key": key}
