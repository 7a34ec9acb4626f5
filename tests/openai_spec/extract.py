"""`python tests/openai_spec/extract.py DOCUMENT.yaml > tests/openai_spec/responses.json`

Takes OpenAI's OpenAPI document, made valid as 3.1 (it says `nullable: true` in places), and keeps what answers of the
routes that this server has must look like: no prose, no examples, no request bodies.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROUTES = (
    "/files", "/uploads", "/fine_tuning", "/models", "/chat/completions", "/completions", "/embeddings", "/responses",
    "/batches", "/evals",
)  # fmt: skip
PROSE = {"description", "example", "examples", "title", "summary", "externalDocs", "deprecated"}


def bare(node: Any, *, names: bool = False) -> Any:
    """Copy a schema without its prose; keys under `properties` are names and stay."""
    if isinstance(node, dict):
        return {
            key: bare(value, names=key == "properties")
            for key, value in node.items()
            if names or not (key in PROSE or str(key).startswith("x-"))
        }
    return [bare(item) for item in node] if isinstance(node, list) else node


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "$ref":
                yield value.rpartition("/")[2]
            else:
                yield from references(value)
    elif isinstance(node, list):
        for item in node:
            yield from references(item)


def responses(operation: dict[str, Any]) -> dict[str, Any]:
    """Map each documented status to the schema of its JSON body, or None."""
    content = {status: answer.get("content", {}) for status, answer in operation["responses"].items()}
    return {status: bare(kinds.get("application/json", {}).get("schema")) for status, kinds in content.items()}


def extract(document: dict[str, Any]) -> dict[str, Any]:
    paths = {
        path: {method: responses(op) for method, op in methods.items() if method != "parameters"}
        for path, methods in document["paths"].items()
        if path.startswith(ROUTES)
    }
    schemas = document["components"]["schemas"]
    needed: dict[str, Any] = {}
    waiting = {*references(paths), "ErrorResponse"}
    while waiting:
        name = waiting.pop()
        needed[name] = bare(schemas[name])
        waiting |= set(references(needed[name])) - needed.keys()
    return {"paths": paths, "components": {"schemas": {name: needed[name] for name in sorted(needed)}}}


if __name__ == "__main__":
    kept = extract(yaml.safe_load(Path(sys.argv[1]).read_text(encoding="utf-8")))
    json.dump(kept, sys.stdout, indent=0, separators=(",", ":"), sort_keys=True)
    print()
