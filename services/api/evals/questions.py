"""What a model is asked for a row, and what is made of its answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import UNSET, Struct

from services.api.batches.usage import usage_of
from services.api.evals.rows import Row
from shared.errors import InvalidRequest
from shared.grading.samples import sample_of
from shared.grading.templates import Room, TemplateError, TooLong, UnknownVariable, parse, render
from shared.schemas.batches import BatchUsage
from shared.schemas.errors import ErrorResponse
from shared.schemas.evals import (
    CompletionsRun,
    EvalError,
    EvalSampling,
    InputMessages,
    ItemReference,
    MessageTemplate,
    ModelUsage,
    Sample,
    SampleMessage,
    SampleUsage,
    TemplateMessage,
)

_SEED = 42
_STORED_MESSAGES = ItemReference(item_reference="item.input")
_encode = msgspec.json.Encoder().encode


class _Message(Struct, frozen=True):
    role: str = "assistant"
    content: Any = None
    refusal: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class _Choice(Struct, frozen=True):
    message: _Message = _Message()
    finish_reason: str | None = None


class _Answer(Struct, frozen=True):
    model: str = ""
    choices: list[_Choice] = []
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None


class _Choices(Struct, frozen=True):
    choices: list[dict[str, Any]] = []


_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_choices = msgspec.json.Decoder(_Choices).decode
_decode_error = msgspec.json.Decoder(ErrorResponse).decode


class Answered(Struct, frozen=True, kw_only=True):
    """What is graded of a row: `sample` is shown, `spoken` is what templates call `sample`."""

    sample: Sample
    spoken: dict[str, Any]


class Questions:
    """Asks `model` for each row as a run's data source says."""

    def __init__(self, wanted: CompletionsRun) -> None:
        assert wanted.model is not None
        self.model = wanted.model
        self._messages = wanted.input_messages or _STORED_MESSAGES
        self._sampling = wanted.sampling_params or EvalSampling()

    def body_for(self, row: Row) -> tuple[bytes, list[SampleMessage]]:
        """Return the request for a row and the messages in it. Raises InvalidRequest when the row has none."""
        messages = messages_for(self._messages, row.item)
        sampling = self._sampling
        fields = {
            "model": self.model,
            "messages": messages,
            "temperature": _or(sampling.temperature, 1.0),
            "top_p": _or(sampling.top_p, 1.0),
            "seed": _or(sampling.seed, _SEED),
            "max_completion_tokens": sampling.max_completion_tokens,
            "reasoning_effort": sampling.reasoning_effort,
            "response_format": sampling.response_format,
            "tools": sampling.tools or None,
        }
        asked = {name: value for name, value in fields.items() if value is not None}
        return _encode(asked), shown_messages(messages)

    def answered(self, body: bytes, asked: list[SampleMessage]) -> Answered:
        """Read an answer. Raises msgspec.MsgspecError when it is none."""
        sampling = self._sampling
        answered = stored_answer(body, asked)
        sample = msgspec.structs.replace(
            answered.sample,
            temperature=_or(sampling.temperature, 1.0),
            top_p=_or(sampling.top_p, 1.0),
            seed=_or(sampling.seed, _SEED),
            max_completion_tokens=sampling.max_completion_tokens or 0,
        )
        return Answered(sample=sample, spoken=answered.spoken)

    def refused(self, error: EvalError, asked: list[SampleMessage]) -> Sample:
        """Form the sample of a row that has no answer."""
        return Sample(input=asked, model=self.model, error=error, finish_reason="error")


def check_messages(wanted: CompletionsRun, *, are_stored: bool) -> None:
    """Raises InvalidRequest that names the field, when a run does not say what its model is to be asked."""
    where = "data_source.input_messages"
    if wanted.model is None:
        if are_stored and wanted.input_messages is None and wanted.sampling_params is None:
            return
        raise _missing("data_source.model")
    if wanted.input_messages is None and not are_stored:
        raise _missing(where)
    if isinstance(wanted.input_messages, MessageTemplate):
        for place, message in enumerate(wanted.input_messages.template):
            for text in _texts(message):
                _check_template(text, f"{where}.template[{place}].content")
    if isinstance(wanted.input_messages, ItemReference):
        _path(wanted.input_messages)


def given_answer(row: Row) -> Answered:
    """Read what a row brings along as its sample."""
    given = row.sample or {}
    answer = msgspec.convert({"choices": given.get("choices") or []}, _Answer, strict=False)
    choice = answer.choices[0] if answer.choices else _Choice()
    text = given["output_text"] if isinstance(given.get("output_text"), str) else as_text(choice.message.content)
    calls = given["output_tools"] if isinstance(given.get("output_tools"), list) else choice.message.tool_calls
    spoken = {**sample_of(text, calls), **given} if row.sample is not None else {}
    output = [_spoken_message(text, calls)] if row.sample is not None else []
    model = given["model"] if isinstance(given.get("model"), str) else ""
    return Answered(sample=Sample(output=output, model=model, finish_reason=choice.finish_reason or ""), spoken=spoken)


def stored_answer(body: bytes, asked: list[SampleMessage]) -> Answered:
    """Read a chat completion. Raises msgspec.MsgspecError when it is none."""
    answer = _decode_answer(body)
    choice = answer.choices[0] if answer.choices else _Choice()
    text, calls = as_text(choice.message.content), choice.message.tool_calls or None
    usage = usage_of(body)
    sample = Sample(
        input=asked,
        output=[_spoken_message(text, calls)],
        finish_reason=choice.finish_reason or "",
        model=answer.model,
        usage=SampleUsage(
            total_tokens=usage.total_tokens,
            completion_tokens=usage.output_tokens,
            prompt_tokens=usage.input_tokens,
            cached_tokens=usage.input_tokens_details.cached_tokens,
        ),
        temperature=_or(answer.temperature, 1.0),
        top_p=_or(answer.top_p, 1.0),
        seed=_or(answer.seed, _SEED),
    )
    return Answered(sample=sample, spoken={**sample_of(text, calls), "choices": _decode_choices(body).choices})


def refusal_of(body: bytes) -> EvalError:
    """Read why a model did not answer."""
    error = _decode_error(body).error
    return EvalError(code=error.code or error.type, message=error.message)


def used(model: str, usage: BatchUsage) -> ModelUsage:
    """Form what one request adds to a model's use."""
    return ModelUsage(
        model_name=model,
        invocation_count=1,
        prompt_tokens=usage.input_tokens,
        completion_tokens=usage.output_tokens,
        total_tokens=usage.total_tokens,
        cached_tokens=usage.input_tokens_details.cached_tokens,
    )


def output_text(body: bytes) -> str:
    """Return the text of a chat completion."""
    answer = _decode_answer(body)
    return as_text(answer.choices[0].message.content) if answer.choices else ""


def as_text(content: Any) -> str:
    """Return a message's text: of a list of parts, those of the parts that have one."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(part if isinstance(part, str) else _part_text(part) for part in content)
    return ""


def shown_messages(messages: Sequence[Any]) -> list[SampleMessage]:
    """Form messages as they are shown with a row's result."""
    found = [message for message in messages if isinstance(message, dict)]
    return [SampleMessage(role=str(one.get("role", "")), content=as_text(one.get("content"))) for one in found]


def _part_text(part: Any) -> str:
    text = part.get("text") if isinstance(part, dict) else None
    return text if isinstance(text, str) else ""


def _spoken_message(text: str, calls: list[dict[str, Any]] | None) -> SampleMessage:
    return SampleMessage(role="assistant", content=text, tool_calls=calls or UNSET)


def messages_for(wanted: InputMessages, item: Mapping[str, Any]) -> list[Any]:
    """Form what a model is asked for a row. Raises InvalidRequest when the row has no such messages."""
    if isinstance(wanted, MessageTemplate):
        room = Room()
        return [_filled(message, item, room) for message in wanted.template]
    found: Any = item
    for name in _path(wanted):
        found = found.get(name) if isinstance(found, dict) else None
    if isinstance(found, str):
        return [{"role": "user", "content": found}]
    if not isinstance(found, list) or not found or not all(isinstance(message, dict) for message in found):
        raise InvalidRequest(f"The row has no messages at '{wanted.item_reference}'.", code="invalid_item_reference")
    return found


def _filled(message: TemplateMessage, item: Mapping[str, Any], room: Room) -> dict[str, Any]:
    """Put a row's values into a message. Raises InvalidRequest when the row has none of that name."""
    try:
        text = "".join(render(part, {"item": item}, room) for part in _texts(message))
    except UnknownVariable as error:
        raise InvalidRequest(f"The row has nothing at '{error}'.", code="invalid_variable") from error
    except TooLong as error:
        raise InvalidRequest(f"The row makes messages that are too long: {error}.", code="message_too_long") from error
    return {"role": message.role, "content": text}


def _check_template(text: str, where: str) -> None:
    try:
        pieces = parse(text)
    except TemplateError as error:
        raise InvalidRequest(f"Invalid value for '{where}': {error}.", code="invalid_value", param=where) from error
    if any(not isinstance(piece, str) and piece[0] != "item" for piece in pieces):
        raise InvalidRequest(
            f"Invalid value for '{where}': there is no sample before the model has answered; only 'item' may be named.",
            code="invalid_value",
            param=where,
        )


def _path(reference: ItemReference) -> list[str]:
    """Return the names that lead to the messages. Raises InvalidRequest for a path that does not begin at the item."""
    namespace, *names = reference.item_reference.strip().removeprefix("{{").removesuffix("}}").strip().split(".")
    if namespace != "item" or not names or "" in names:
        raise InvalidRequest(
            f"Invalid value for 'data_source.input_messages.item_reference': '{reference.item_reference[:100]}'; "
            "expected a path such as 'item.input'.",
            code="invalid_value",
            param="data_source.input_messages.item_reference",
        )
    return names


def _texts(message: TemplateMessage) -> list[str]:
    if isinstance(message.content, str):
        return [message.content]
    parts = message.content if isinstance(message.content, list) else [message.content]
    return [part.text for part in parts]


def _or(given: Any, default: Any) -> Any:
    return default if given is None else given


def _missing(name: str) -> InvalidRequest:
    return InvalidRequest(f"Missing required parameter: '{name}'.", code="missing_required_parameter", param=name)
