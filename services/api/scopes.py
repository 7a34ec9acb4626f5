"""Which scopes a request needs: one table, first match wins, and what no line names needs `admin`.

| scope | what a key with it may do                                                                            |
| ----- | ---------------------------------------------------------------------------------------------------- |
| read  | look at the project's files, jobs, models, aliases, stored answers                                   |
| train | change what training is made of: files, uploads, jobs, fine-tuned models; which models aliases mean  |
| infer | have models answer, and manage the answers that are stored                                           |
| admin | the organization: projects, keys, limits; who else may use a checkpoint; where events are sent       |

A batch has a model answer and writes files, so it needs both; so do evals, and running a grader, which may ask a judge.
Promotions of aliases, and monitors with judges, need `infer` as well: services/api/aliases/gates.py checks that.
Webhook endpoints send the project's events out of this server, which is why they are no matter of training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from shared.errors import PermissionDenied
from shared.schemas.organization import Scope

_READS = frozenset({"GET", "HEAD", "OPTIONS"})


class Rule(NamedTuple):
    """Scopes for every path at or below `path`; `write` is for every method that is not a GET."""

    path: str
    read: frozenset[Scope]
    write: frozenset[Scope]


def _rule(path: str, read: Sequence[Scope], write: Sequence[Scope]) -> Rule:
    return Rule(path, frozenset(read), frozenset(write))


_ADMIN: frozenset[Scope] = frozenset({"admin"})

RULES: tuple[Rule, ...] = (
    _rule("/v1/organization", ["admin"], ["admin"]),
    _rule("/v1/fine_tuning/checkpoints", ["admin"], ["admin"]),
    _rule("/v1/webhook_endpoints", ["admin"], ["admin"]),
    _rule("/v1/webhook_event_types", ["read"], ["admin"]),
    _rule("/v1/files", ["read"], ["train"]),
    _rule("/v1/uploads", ["read"], ["train"]),
    _rule("/v1/fine_tuning/alpha/graders/run", ["read"], ["infer", "train"]),
    _rule("/v1/fine_tuning", ["read"], ["train"]),
    _rule("/v1/evals", ["read"], ["infer", "train"]),
    _rule("/v1/models", ["read"], ["train"]),
    _rule("/v1/aliases", ["read"], ["train"]),
    _rule("/v1/batches", ["read"], ["infer", "train"]),
    _rule("/v1/messages/batches", ["read"], ["infer", "train"]),
    _rule("/v1/chat/completions", ["read"], ["infer"]),
    _rule("/v1/completions", ["read"], ["infer"]),
    _rule("/v1/responses", ["read"], ["infer"]),
    _rule("/v1/conversations", ["read"], ["infer"]),
    _rule("/v1/messages", ["read"], ["infer"]),
    _rule("/v1/embeddings", ["read"], ["infer"]),
    _rule("/v1/moderations", ["read"], ["infer"]),
)


def rule_for(path: str) -> Rule | None:
    """Return the first rule whose path is `path` or above it."""
    return next((rule for rule in RULES if path == rule.path or path.startswith(f"{rule.path}/")), None)


def needed(method: str, path: str) -> frozenset[Scope]:
    """Return the scopes that a request needs, all of them."""
    rule = rule_for(path)
    if rule is None:
        return _ADMIN
    return rule.read if method in _READS else rule.write


def check(granted: Sequence[Scope], method: str, path: str) -> None:
    """Raises PermissionDenied that names what is missing."""
    missing = needed(method, path).difference(granted)
    if missing:
        raise PermissionDenied(
            "You have insufficient permissions for this operation. Missing scopes: "
            f"{', '.join(sorted(missing))}. Use an API key that has them, or have them added to this one."
        )
