"""Every exception of ours has a status, and none is one that OpenAI's SDK would misread."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from litestar.connection import Request
from litestar.exceptions import HTTPException

import services.api.bodies
import shared.store.registry  # noqa: F401 - defines exceptions of its own
from services.api.errors import TABLE, on_our_error, on_unexpected, rule_for
from shared import errors


def tree(kind: type[errors.SelftuneError] = errors.SelftuneError) -> Iterator[type[errors.SelftuneError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from tree(child)


@pytest.mark.parametrize("kind", list(dict.fromkeys(tree())))
def test_every_error_has_its_rule(kind: type[errors.SelftuneError]) -> None:
    rule = rule_for(kind("message"))
    expected = {429: "rate_limit_error"}.get(
        rule.status, "invalid_request_error" if rule.status < 500 else "server_error"
    )
    assert rule.type == expected
    assert (rule.retry_after_s is not None) == (rule.status == 503)


def test_every_class_of_the_tree_is_in_the_table() -> None:
    own = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.SelftuneError)}
    assert own | {services.api.bodies.UnsupportedMediaType} == set(TABLE)


def test_no_refusal_is_retried_by_the_sdk() -> None:
    """OpenAI's SDK repeats 408, 409 and 429 unless `x-should-retry` says otherwise; only a limit may free itself."""
    repeated = {kind for kind, rule in TABLE.items() if rule.status in {408, 409, 429} and not rule.never_retry}
    assert repeated == {errors.RateLimited}


def test_limit_that_does_not_free_itself_is_not_retried() -> None:
    request: Request[Any, Any, Any] = Request({"type": "http"})  # type: ignore[arg-type]
    assert on_our_error(request, errors.RateLimited("full")).headers["x-should-retry"] == "false"
    freed = on_our_error(request, errors.RateLimited("full", retry_after_s=1.2)).headers
    assert freed["retry-after"] == "2" and "x-should-retry" not in freed


def test_unexpected_errors_show_nothing_of_themselves() -> None:
    request: Request[Any, Any, Any] = Request({"type": "http"})  # type: ignore[arg-type]
    for error in (RuntimeError("secret"), HTTPException("secret", status_code=500), KeyError("secret")):
        answer = on_unexpected(request, error)
        assert answer.status_code == 500
        assert answer.content.error.type == "server_error"
        assert "secret" not in answer.content.error.message


def test_docstring_draws_the_tree() -> None:
    for kind in tree():
        if kind.__module__ == "shared.errors":
            assert kind.__name__ in (errors.__doc__ or "")
