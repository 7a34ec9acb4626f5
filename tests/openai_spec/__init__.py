"""Does an answer have the shape that OpenAI's specification gives it?

`responses.json` holds the response schemas of OpenAI's OpenAPI document (openai-openapi, API version 2.3.0,
2026-08-21) without its prose; `extract.py` makes it anew from the document.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

_FILE = Path(__file__).with_name("responses.json")


@dataclass(frozen=True)
class Deviation:
    """A place where this server differs on purpose; docs/compatibility.md gives the reason under `name`."""

    name: str
    operation: str
    """Regular expression over "METHOD /path", with the path's template."""
    place: str
    """Regular expression over the place in the answer, such as `data/0/status`."""


DEVIATIONS = (
    Deviation("paused", r"(GET|POST) /fine_tuning/jobs", r"(data/\d+/)?status"),
    Deviation("stored messages", r"GET /chat/completions/\{completion_id\}/messages", r"data/\d+/role"),
    # OpenAI's own answers have null where nothing has happened yet.
    Deviation("empty fields of a batch", r"(GET|POST) /batches", r"(data/\d+/)?(\w+_at|model|errors|\w+_file_id)"),
    # A message with a plain text is both of two kinds of which the document wants it to be one.
    Deviation("messages of an eval run", r"(GET|POST) /evals/\{eval_id\}/runs", r"(data/\d+/)?data_source"),
    Deviation("several graders", r"POST /fine_tuning/alpha/graders/validate", r"grader"),
    Deviation("several graders", r"(GET|POST) /fine_tuning/jobs", r"(data/\d+/)?method/reinforcement/grader"),
    # A message with a plain text is both of two kinds of which the document wants it to be one.
    Deviation("messages of an eval run", r"(GET|POST) /evals/\{eval_id\}/runs", r"(data/\d+/)?data_source"),
    Deviation("reward models as criteria", r"(GET|POST) /evals", r"(data/\d+/)?testing_criteria/\d+"),
    Deviation("purpose evals", r"(GET|POST) /(files|uploads)", r"((data/\d+/)|file/)?purpose"),
)


_OURS = re.compile(r"/models/.+/(settings|residency)", re.DOTALL)
"""Routes of ours that would pass for a model whose id ends so."""


@cache
def _spec() -> dict[str, Any]:
    spec: dict[str, Any] = json.loads(_FILE.read_text(encoding="utf-8"))
    return spec


def operations() -> set[tuple[str, str]]:
    """List every (METHOD, path template) of the specification, as in ("GET", "/files/{file_id}")."""
    return {(method.upper(), path) for path, methods in _spec()["paths"].items() for method in methods}


def template_of(method: str, path: str) -> str | None:
    """Find the path template that a request's decoded path belongs to, past any `/v1`; None for routes of ours."""
    path = path.removeprefix("/v1")
    if _OURS.fullmatch(path):
        return None
    known = [template for verb, template in operations() if verb == method]
    for template in sorted(known, key=lambda template: template.count("{")):
        if re.fullmatch(re.sub(r"\\\{\w+\\\}", r".+" if "model" in template else r"[^/]+", re.escape(template)), path):
            return template
    return None


def violations(method: str, path: str, status: int, body: Any) -> list[str]:
    """List how an answer breaks the specification, deviations on purpose left out."""
    template = template_of(method, path)
    if status >= 400:
        return _readable(_errors({"$ref": "#/components/schemas/ErrorResponse"}, body), f"{method} {template or path}")
    if template is None:
        return []
    responses = _spec()["paths"][template][method.lower()]
    if str(status) not in responses:
        return [f"{method} {template}: status {status} is not in the specification"]
    schema = responses[str(status)]
    return [] if schema is None else _readable(_errors(schema, body), f"{method} {template}")


def _errors(schema: Any, body: Any) -> Iterator[ValidationError]:
    document = {"components": _spec()["components"], **schema}
    return Draft202012Validator(document).iter_errors(body)


def _readable(errors: Iterator[ValidationError], operation: str) -> list[str]:
    found = []
    for error in errors:
        place = "/".join(str(part) for part in error.absolute_path)
        if not any(re.match(d.operation, operation) and re.fullmatch(d.place, place) for d in DEVIATIONS):
            found.append(f"{operation}: {place or '(root)'}: {error.message[:300]}")
    return found
