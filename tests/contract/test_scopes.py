"""Which scope every route needs: none is left to the default, and the table says what the documentation says."""

from __future__ import annotations

import re

import pytest

from services.api.auth import PUBLIC
from services.api.routes import ROUTES
from services.api.scopes import RULES, check, needed, rule_for
from shared.errors import PermissionDenied
from shared.projects import ALL_SCOPES, USUAL_SCOPES


def guarded() -> list[tuple[str, str]]:
    """(method, path) of every route that needs a key."""
    return [
        (str(method), path)
        for handler in ROUTES
        if not handler.opt.get(PUBLIC)
        for path in handler.paths
        for method in handler.http_methods
    ]


def test_every_route_has_a_rule() -> None:
    missing = [f"{method} {path}" for method, path in guarded() if rule_for(path) is None]
    assert missing == [], "add a line to services/api/scopes.py; until then these need 'admin'"


@pytest.mark.parametrize(
    ("method", "path", "scopes"),
    [
        ("GET", "/v1/files", {"read"}),
        ("POST", "/v1/files", {"train"}),
        ("GET", "/v1/files/{file_id:str}/content", {"read"}),
        ("DELETE", "/v1/files/{file_id:str}", {"train"}),
        ("POST", "/v1/uploads/{upload_id:str}/parts", {"train"}),
        ("POST", "/v1/fine_tuning/jobs", {"train"}),
        ("GET", "/v1/fine_tuning/jobs/{job_id:str}/events", {"read"}),
        ("POST", "/v1/fine_tuning/jobs/{job_id:str}/pause", {"train"}),
        ("GET", "/v1/fine_tuning/checkpoints/{model:str}/permissions", {"admin"}),
        ("POST", "/v1/fine_tuning/checkpoints/{model:str}/permissions", {"admin"}),
        ("POST", "/v1/fine_tuning/alpha/graders/run", {"infer", "train"}),
        ("POST", "/v1/fine_tuning/alpha/graders/validate", {"train"}),
        ("GET", "/v1/fine_tuning/jobs/{job_id:str}/rollouts", {"read"}),
        ("POST", "/v1/fine_tuning/jobs/{job_id:str}/rollouts/regrade", {"infer", "train"}),
        ("POST", "/v1/fine_tuning/jobs/{job_id}/rollouts/regrade", {"infer", "train"}),
        ("GET", "/v1/models", {"read"}),
        ("DELETE", "/v1/models/{model:str}", {"train"}),
        ("GET", "/v1/models/{model:str}/settings", {"read"}),
        ("POST", "/v1/models/{model:str}/settings", {"train"}),
        ("GET", "/v1/aliases/{alias:str}/shadow_pairs", {"read"}),
        ("POST", "/v1/aliases/{alias:str}/rollback", {"train"}),
        ("POST", "/v1/chat/completions", {"infer"}),
        ("GET", "/v1/chat/completions/{completion_id:str}", {"read"}),
        ("DELETE", "/v1/chat/completions/{completion_id:str}", {"infer"}),
        ("POST", "/v1/completions", {"infer"}),
        ("POST", "/v1/responses", {"infer"}),
        ("POST", "/v1/messages", {"infer"}),
        ("POST", "/v1/embeddings", {"infer"}),
        ("POST", "/v1/batches", {"infer", "train"}),
        ("GET", "/v1/batches", {"read"}),
        ("POST", "/v1/evals/{eval_id:str}/runs", {"infer", "train"}),
        ("GET", "/v1/evals/{eval_id:str}/runs/{run_id:str}/output_items", {"read"}),
        ("GET", "/v1/webhook_endpoints", {"admin"}),
        ("POST", "/v1/organization/projects", {"admin"}),
        ("GET", "/v1/organization/admin_api_keys", {"admin"}),
        ("GET", "/v1/of_tomorrow", {"admin"}),
        ("GET", "/v1/filesystem", {"admin"}),
        ("GET", "/", {"admin"}),
    ],
)
def test_scopes_of_routes(method: str, path: str, scopes: set[str]) -> None:
    assert needed(method, path) == scopes


def test_no_rule_is_hidden_behind_an_earlier_one() -> None:
    for place, rule in enumerate(RULES):
        assert rule_for(rule.path) is rule
        assert not any(rule.path.startswith(f"{earlier.path}/") for earlier in RULES[:place])


def test_missing_scopes_are_named() -> None:
    with pytest.raises(PermissionDenied, match=re.escape("Missing scopes: infer, train.")):
        check(("read",), "POST", "/v1/batches")
    with pytest.raises(PermissionDenied, match=re.escape("Missing scopes: train.")):
        check(("read", "infer"), "POST", "/v1/batches")
    check(ALL_SCOPES, "POST", "/v1/organization/projects")


def test_usual_keys_do_not_rule_the_organization() -> None:
    assert "admin" not in USUAL_SCOPES
