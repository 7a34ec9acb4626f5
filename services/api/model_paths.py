"""Model ids in a path. They may hold slashes, which servers decode before routes are matched."""

from __future__ import annotations

import re
from urllib.parse import unquote

_PATHS = (
    re.compile(r"\A(?P<head>/v1/fine_tuning/checkpoints/)(?P<model>.+)(?P<tail>/permissions(?:/[^/]+)?)\Z", re.DOTALL),
    re.compile(r"\A(?P<head>/v1/models/)(?P<model>.+?)(?P<tail>(?:/settings|/residency)?/?)\Z", re.DOTALL),
)


def routable(path: str) -> str:
    """Return a decoded path with the slashes inside a model id encoded again, so that the id is one segment."""
    found = next(filter(None, (pattern.match(path) for pattern in _PATHS)), None)
    if found is None:
        return path
    model = found["model"].replace("%", "%25").replace("/", "%2F")
    return f"{found['head']}{model}{found['tail']}"


def model_id(segment: str) -> str:
    """Return the model id of a path segment that `routable` has formed."""
    return unquote(segment)
