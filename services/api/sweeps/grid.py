"""From a body with lists to the bodies of jobs: the grid of all combinations, or some of them picked at random."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from services.api.bodies import explain
from shared.errors import InvalidRequest
from shared.schemas.jobs import CreateJob
from shared.schemas.sweeps import MAX_RUNS
from shared.sweep_records import SweepAxis

MAX_VALUES = 1000
"""Of a list."""
MAX_BODY_BYTES = 65_536
"""Of a sweep's body, which is written again with every step of the sweep."""
_MOST_LEVELS = 64
_MOST_COMBINATIONS = 10**12
_LISTS_ALREADY = frozenset({"target_modules"})
"""Options that are lists themselves: a list of lists sweeps over them."""

Body = dict[str, Any]


def check_size(body: Body) -> None:
    """Raises InvalidRequest that names the field for a body that is too long, or nested too deeply."""
    for name, value in body.items():
        if _is_deeper(value, _MOST_LEVELS):
            raise _invalid(name, f"it is nested more than {_MOST_LEVELS} levels deep")
    sizes = {name: len(msgspec.json.encode(value)) for name, value in body.items()}
    if sum(sizes.values()) > MAX_BODY_BYTES:
        longest = max(sizes, key=lambda name: sizes[name])
        said = f"it has {sizes[longest]:,} bytes, and the body without 'sweep' may have {MAX_BODY_BYTES:,}"
        raise _invalid(longest, said)


def _is_deeper(value: Any, levels: int) -> bool:
    layer = [value]
    for _ in range(levels):
        layer = [inner for one in layer for inner in _inner(one)]
        if not layer:
            return False
    return True


def _inner(value: Any) -> Sequence[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else ()


def find_axes(body: Body) -> list[SweepAxis]:
    """Return the lists of a sweep's body, in its order. Raises InvalidRequest that names the field."""
    axes = [SweepAxis(name=name, path=path, values=_at(body, path)) for name, path in _places(body)]
    if not axes:
        raise InvalidRequest(
            "The sweep has nothing to sweep over; give at least one hyperparameter, or option, as a list of values.",
            code="nothing_to_sweep",
            param="method",
        )
    names = set[str]()
    for axis in axes:
        where = ".".join(axis.path)
        if not 1 <= len(axis.values) <= MAX_VALUES:
            raise _invalid(where, f"a list of 1 to {MAX_VALUES} values is expected, and it has {len(axis.values)}")
        if len({msgspec.json.encode(value) for value in axis.values}) < len(axis.values):
            raise _invalid(where, "it has a value twice")
        if axis.name in names:
            raise _invalid(where, f"'{axis.name}' is a list elsewhere, too")
        names.add(axis.name)
    return axes


def _places(body: Body) -> Iterator[tuple[str, list[str]]]:
    """Yield name and path of each value that is a list to sweep over."""
    if isinstance(body.get("seed"), list):
        yield "seed", ["seed"]
    for path in (["method"], ["selftune", "method"]):
        kind = _at(body, [*path, "type"])
        if isinstance(kind, str):
            yield from _lists(body, [*path, kind, "hyperparameters"])
    yield from _lists(body, ["hyperparameters"])
    for name, value in (body.get("selftune") or {}).items():
        if isinstance(value, list) and (name not in _LISTS_ALREADY or any(isinstance(one, list) for one in value)):
            yield f"selftune.{name}", ["selftune", name]


def _lists(body: Body, path: list[str]) -> Iterator[tuple[str, list[str]]]:
    found = _at(body, path)
    if isinstance(found, dict):
        for name, value in found.items():
            if isinstance(value, list):
                yield name, [*path, name]


def _at(body: Any, path: Sequence[str]) -> Any:
    for name in path:
        body = body.get(name) if isinstance(body, dict) else None
    return body


def grid_size(axes: Sequence[SweepAxis]) -> int:
    """Return the number of combinations. Raises InvalidRequest where there are too many even to pick from."""
    size = math.prod(len(axis.values) for axis in axes)
    if size > _MOST_COMBINATIONS:
        raise _invalid(".".join(axes[0].path), "the lists have too many combinations together; shorten them")
    return size


def chosen(axes: Sequence[SweepAxis], *, n_runs: int | None, seed: int) -> list[list[int]]:
    """Return which value of each axis each run has: the whole grid, or `n_runs` of it, no combination twice.

    Raises InvalidRequest for a grid that has more than MAX_RUNS combinations where no number is given.
    """
    size = grid_size(axes)
    if n_runs is None and size > MAX_RUNS:
        raise InvalidRequest(
            f"The lists have {size} combinations, and a sweep has {MAX_RUNS} runs at most; shorten them, or give "
            "'sweep.n_runs' to have some picked at random.",
            code="too_many_runs",
            param="sweep.n_runs",
        )
    places = range(size) if n_runs is None or n_runs >= size else random.Random(seed).sample(range(size), n_runs)
    return [_picks(axes, place) for place in places]


def _picks(axes: Sequence[SweepAxis], place: int) -> list[int]:
    """Return the combination at a place of the grid; the last list's value changes first."""
    picks: list[int] = []
    for axis in reversed(axes):
        place, pick = divmod(place, len(axis.values))
        picks.append(pick)
    return picks[::-1]


def without_lists(body: Body, axes: Sequence[SweepAxis]) -> Body:
    """Return a copy of the body without what the axes stand for."""
    for axis in axes:
        body = _without(body, axis.path)
    return body


def _without(body: Body, path: Sequence[str]) -> Body:
    name, *rest = path
    if rest:
        return {**body, name: _without(body[name], rest)}
    return {other: value for other, value in body.items() if other != name}


def _with(body: Body, path: Sequence[str], value: Any) -> Body:
    name, *rest = path
    return {**body, name: _with(body[name], rest, value) if rest else value}


def job_request(body: Body, axes: Sequence[SweepAxis], picks: Sequence[int]) -> CreateJob:
    """Form the request of one run. Raises InvalidRequest that names the field, as a job's own request does."""
    return _request(_filled(body, axes, picks))


def check_values(body: Body, axes: Sequence[SweepAxis], picks: Sequence[Sequence[int]]) -> None:
    """Refuse values that no job may have, also those that are in none of the picks. Raises as `job_request` does."""
    filled = _filled(body, axes, picks[0])
    for place, axis in enumerate(axes):
        for pick in set(range(len(axis.values))) - {one[place] for one in picks}:
            _request(_with(filled, axis.path, axis.values[pick]))


def _filled(body: Body, axes: Sequence[SweepAxis], picks: Sequence[int]) -> Body:
    for axis, pick in zip(axes, picks, strict=True):
        body = _with(body, axis.path, axis.values[pick])
    return body


def _request(filled: Body) -> CreateJob:
    try:
        return msgspec.convert(filled, CreateJob)
    except msgspec.ValidationError as error:
        raise explain(str(error)) from error


def _invalid(where: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid value for '{where}': {what}.", code="invalid_value", param=where)
