"""What the OpenAPI document says about bodies that handlers read or write themselves."""

from __future__ import annotations

from typing import Any

from services.api.files.forms import PURPOSES
from shared.schemas.files import EXPIRY_RANGE_S

Described = dict[str, Any]
"""A part of the document, as it is written out."""


def json_body(component: str) -> Described:
    """Describe a JSON request body by the name of its schema."""
    return _content("application/json", {"$ref": f"#/components/schemas/{component}"}, required=True)


def json_page(component: str) -> Described:
    """Describe a page of a list by the name of its items' schema."""
    item = {"$ref": f"#/components/schemas/{component}"}
    schema = {**_PAGE, "properties": {**_PAGE["properties"], "data": {"type": "array", "items": item}}}
    return _content("application/json", schema)


def _content(kind: str, schema: Described, **more: Any) -> Described:
    return {**more, "content": {kind: {"schema": schema}}}


METADATA: Described = {
    "name": "metadata",
    "in": "query",
    "required": False,
    "style": "deepObject",
    "explode": True,
    "schema": {"type": "object", "additionalProperties": {"type": "string"}},
    "description": "`metadata[key]=value` keeps what carries it; several must all be there.",
}

DOCUMENT = _content("application/json", {"type": "object"})

NOT_READY = _content(
    "application/json", {"$ref": "#/components/schemas/Report"}, description="Some part is not ready; it says why"
)

BINARY = _content("application/octet-stream", {"type": "string", "format": "binary"})

PART = _content(
    "multipart/form-data",
    {
        "type": "object",
        "required": ["data"],
        "additionalProperties": False,
        "properties": {"data": {"type": "string", "format": "binary"}},
    },
    required=True,
)

UPLOAD = _content(
    "multipart/form-data",
    {
        "type": "object",
        "required": ["file", "purpose"],
        "additionalProperties": False,
        "properties": {
            "file": {"type": "string", "format": "binary"},
            "purpose": {"type": "string", "enum": list(PURPOSES)},
            "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
            "expires_after[seconds]": {
                "type": "integer",
                "minimum": EXPIRY_RANGE_S[0],
                "maximum": EXPIRY_RANGE_S[-1],
            },
        },
    },
    required=True,
)


def _generation(prompt: str, schema: Described) -> Described:
    return _content(
        "application/json",
        {
            "type": "object",
            "description": "Everything else goes to the inference server as it is.",
            "required": ["model", prompt],
            "additionalProperties": True,
            "properties": {
                "model": {"type": "string", "description": "Id from /v1/models."},
                prompt: schema,
                "stream": {"type": ["boolean", "null"], "default": False},
            },
        },
        required=True,
    )


CHAT = _generation("messages", {"type": "array", "minItems": 1, "items": {"type": "object"}})
COMPLETION = _generation("prompt", {"description": "Text or token ids, or a list of these."})

GENERATED: Described = {
    "content": {
        "application/json": {"schema": {"type": "object", "additionalProperties": True}},
        "text/event-stream": {"schema": {"description": "Events whose data are chunks, then `data: [DONE]`."}},
    }
}

EVENTS: Described = {
    "content": {
        "application/json": {"schema": {"$ref": "#/components/schemas/Page_Event_"}},
        "text/event-stream": {
            "schema": {"description": "Events with `id` and as `data` an Event; `data: [DONE]` once the job ended."}
        },
    }
}

SVG = _content("image/svg+xml", {"type": "string"})
PAGE = {"content": {"text/html": {"schema": {"type": "string"}}}}
PART_OF_PAGE = {"content": {kind: {"schema": {"type": "string"}} for kind in ("text/javascript", "text/css")}}

RESPONSE = _generation("input", {"description": "A text, or a list of items."})
EMBEDDING = _generation("input", {"description": "A text, a list of texts, token ids, or a list of these."})
MESSAGE = _generation("messages", {"type": "array", "minItems": 1, "items": {"type": "object"}})

OBJECT = _content("application/json", {"type": "object", "additionalProperties": True})
GENERATED_RESPONSE: Described = {
    "content": {
        **OBJECT["content"],
        "text/event-stream": {"schema": {"description": "Named events, up to response.completed."}},
    }
}
_PAGE: Described = {
    "type": "object",
    "required": ["object", "data", "has_more"],
    "properties": {
        "object": {"type": "string", "enum": ["list"]},
        "data": {"type": "array", "items": {"type": "object", "additionalProperties": True}},
        "first_id": {"type": ["string", "null"]},
        "last_id": {"type": ["string", "null"]},
        "has_more": {"type": "boolean"},
    },
}
OBJECT_PAGE = _content("application/json", _PAGE)

ANTHROPIC_ERROR: Described = {
    "description": "Any error",
    **_content("application/json", {"$ref": "#/components/schemas/AnthropicErrorResponse"}),
}
