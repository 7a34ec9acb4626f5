"""Templates: `{{ item.question }}`, `{{ sample.output_tools[0].function.name }}`, and nothing else.

A template looks values up and can do nothing besides: no expressions, filters, calls, conditions or loops exist, names
begin with `item` or `sample`, and a step leads from an object or a list of JSON to a value in it, never to an attribute
of Python's. Both parsing and rendering take time in proportion to the text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TypeAlias

import msgspec

MAX_RENDERED_CHARS = 1 << 20
"""Longest text that a template may become."""
MAX_REQUEST_CHARS = 4 << 20
"""Longest text that all templates of one request may become together."""

Step: TypeAlias = str | int
Path: TypeAlias = tuple[Step, ...]

_OPEN, _CLOSE = "{{", "}}"
_NAMESPACES = ("item", "sample")
_STEP = re.compile(
    r"""\s*(?: \.\s*(?P<name>[\w-]+)
           | \[\s*(?: (?P<index>-?\d{1,9}) | "(?P<double>[^"\\]*)" | '(?P<single>[^'\\]*)' )\s*\] )""",
    re.VERBOSE,
)
_NAMESPACE = re.compile(r"\s*(?P<name>\w+)")
_SHOWN_CHARS = 80


class TemplateError(Exception):
    """A text that is no template; the message says where, and what would be right."""


class UnknownVariable(Exception):
    """A path that leads to nothing in this item and sample."""

    def __init__(self, path: Path) -> None:
        super().__init__(shown(path))
        self.path = path


class TooLong(Exception):
    """The text would be longer than there is room for, or is nested too deeply to be written."""


class Room:
    """How much text the templates of one request may still become, in characters."""

    def __init__(self, chars: int = MAX_REQUEST_CHARS) -> None:
        self._left = chars

    def take(self, chars: int) -> None:
        """Raises TooLong when there is no room for so many."""
        self._left -= chars
        if self._left < 0:
            raise TooLong("its templates become longer than a request may be")


def shown(path: Path) -> str:
    """Write a path as templates do."""
    first, *rest = path
    return str(first) + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in rest)


@lru_cache(maxsize=256)
def parse(template: str) -> tuple[str | Path, ...]:
    """Split a template into texts and paths. Raises TemplateError."""
    pieces: list[str | Path] = []
    at = 0
    while (start := template.find(_OPEN, at)) >= 0:
        end = template.find(_CLOSE, start)
        if end < 0:
            raise TemplateError(f"'{_shortened(template[start:])}' has no '{_CLOSE}'")
        pieces += [template[at:start], _path(template[start + len(_OPEN) : end])]
        at = end + len(_CLOSE)
    return (*pieces, template[at:])


def render(template: str, namespaces: Mapping[str, Any], room: Room | None = None) -> str:
    """Put values in the place of their paths: texts as they are, everything else as JSON.

    What it becomes takes its place in `room`, which the templates of one request share.
    Raises TemplateError, UnknownVariable for a path that leads nowhere, TooLong.
    """
    texts: list[str] = []
    own = Room(MAX_RENDERED_CHARS)
    for piece in parse(template):
        text = piece if isinstance(piece, str) else _as_text(look_up(piece, namespaces))
        own.take(len(text))
        if room is not None:
            room.take(len(text))
        texts.append(text)
    return "".join(texts)


def _path(text: str) -> Path:
    first = _NAMESPACE.match(text)
    if first is None or first["name"] not in _NAMESPACES:
        raise TemplateError(f"'{_shortened(text)}' does not begin with item or sample")
    path: list[Step] = [first["name"]]
    at = first.end()
    while step := _STEP.match(text, at):
        path.append(_step(step))
        at = step.end()
    if text[at:].strip():
        raise TemplateError(
            f"'{_shortened(text)}' is more than a path such as item.name, item[\"a name\"] or sample.choices[0]"
        )
    return tuple(path)


def _step(found: re.Match[str]) -> Step:
    if found["index"] is not None:
        return int(found["index"])
    return next(found[kind] for kind in ("name", "double", "single") if found[kind] is not None)


def look_up(path: Path, namespaces: Mapping[str, Any]) -> Any:
    """Return the value at a path. Raises UnknownVariable when there is none."""
    value: Any = namespaces
    for step in path:
        value = _member(value, step, path)
    return value


def _member(value: Any, step: Step, path: Path) -> Any:
    """Return a member of an object or a list; `items.0` means the same as `items[0]`."""
    if isinstance(value, Mapping):
        if str(step) in value:
            return value[str(step)]
    elif isinstance(value, list):
        index = int(step) if isinstance(step, int) or (step.isascii() and step.isdecimal() and len(step) < 10) else None
        if index is not None and -len(value) <= index < len(value):
            return value[index]
    raise UnknownVariable(path)


def _as_text(value: Any) -> str:
    try:
        return value if isinstance(value, str) else msgspec.json.encode(value).decode()
    except RecursionError as error:
        raise TooLong("a value is nested too deeply") from error


def _shortened(text: str) -> str:
    text = text.strip()
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…"
