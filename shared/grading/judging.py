"""What is asked of a judge, and how its answer is read.

A judge answers JSON: the steps of its reasoning, and then the result, a number or one of the labels. The schema of
that goes with the question as `response_format`, so that models of this stack can answer in no other form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from shared.grading.templates import Room, render
from shared.schemas.graders import GraderMessage, InputAudio, InputImage, Part

_ROLES = {"developer": "system"}
"""OpenAI's newer name, which chat templates of open models do not know."""


class Unreadable(Exception):
    """A judge's answer that has not the form that was asked for; the text says what it lacks."""


class _Verdict(msgspec.Struct):
    result: Any


_decode = msgspec.json.Decoder(_Verdict).decode


def messages_for(templates: Sequence[GraderMessage], namespaces: Mapping[str, Any], room: Room) -> list[dict[str, Any]]:
    """Fill in the texts and bring the messages into chat completions' form. Raises as templates.render does."""
    return [
        {"role": _ROLES.get(message.role, message.role), "content": _content(message.content, namespaces, room)}
        for message in templates
    ]


def score_format() -> dict[str, Any]:
    """Return the `response_format` for a number."""
    return _format("score", {"type": "number"})


def label_format(labels: Sequence[str]) -> dict[str, Any]:
    """Return the `response_format` for one of the labels."""
    return _format("label", {"type": "string", "enum": list(labels)})


def read_score(text: str, bounds: tuple[float, float]) -> float:
    """Return the number, clipped to the bounds. Raises Unreadable."""
    result = _result(text)
    if isinstance(result, bool) or not isinstance(result, int | float):
        raise Unreadable("the judge's result is no number")
    low, high = bounds
    return float(min(max(result, low), high))


def read_label(text: str, labels: Sequence[str]) -> str:
    """Return the label. Raises Unreadable."""
    result = _result(text)
    if not isinstance(result, str) or result not in labels:
        raise Unreadable("the judge's result is none of the labels")
    return result


def _result(text: str) -> Any:
    try:
        return _decode(text).result
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise Unreadable("the judge's answer is no JSON object with a result") from error


def _content(
    content: str | Part | list[str | Part], namespaces: Mapping[str, Any], room: Room
) -> str | list[dict[str, Any]]:
    parts = content if isinstance(content, list) else [content]
    filled = [_part(part, namespaces, room) for part in parts]
    only = filled[0] if len(filled) == 1 else {}
    return str(only["text"]) if "text" in only else filled


def _part(part: str | Part, namespaces: Mapping[str, Any], room: Room) -> dict[str, Any]:
    if isinstance(part, InputImage):
        image = {"url": render(part.image_url, namespaces, room)}
        return {"type": "image_url", "image_url": image | ({"detail": part.detail} if part.detail else {})}
    if isinstance(part, InputAudio):
        sound = part.input_audio
        data = render(sound.data, namespaces, room)
        return {"type": "input_audio", "input_audio": {"data": data, "format": sound.format}}
    return {"type": "text", "text": render(part if isinstance(part, str) else part.text, namespaces, room)}


def _format(name: str, result: dict[str, Any]) -> dict[str, Any]:
    text = {"type": "string"}
    step = _object({"description": text, "conclusion": text})
    schema = _object({"steps": {"type": "array", "items": step}, "result": result})
    return {"type": "json_schema", "json_schema": {"name": name, "strict": True, "schema": schema}}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object", "properties": properties, "required": list(properties), "additionalProperties": False,
    }  # fmt: skip
