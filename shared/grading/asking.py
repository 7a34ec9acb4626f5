"""Asking a judge: the request, how often it is made, and how its answer is read, wherever the judge is."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import msgspec
from msgspec import Struct

from shared.grading.means import Answer, JudgeFailed, Unresponsive
from shared.grading.outside import Busy, OutsideJudges
from shared.schemas.graders import SamplingParams

_TRIES = 3
_FIRST_WAIT_S = 0.5

AskInside: TypeAlias = Callable[[str, bytes], Awaitable[bytes]]
"""Has a model of this stack, by name, answer a chat completion's request.

Returns the answer's body. Raises Busy where asking again may help, else JudgeFailed.
"""


class _Details(Struct):
    cached_tokens: int | None = None


class _Usage(Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Message(Struct):
    content: str | None = None
    refusal: str | None = None


class _Choice(Struct):
    message: _Message


class _Completion(Struct):
    choices: list[_Choice]
    usage: _Usage | None = None


_decode = msgspec.json.Decoder(_Completion).decode


class ModelJudge:
    """Asks models of this stack, and those outside: `openai/gpt-5` if `openai` is a configured endpoint."""

    def __init__(self, inside: AskInside, outside: OutsideJudges, *, timeout_s: float) -> None:
        self._inside = inside
        self._outside = outside
        self._timeout_s = timeout_s

    async def ask(
        self, model: str, messages: list[dict[str, Any]], sampling: SamplingParams, response_format: dict[str, Any]
    ) -> Answer:
        """Return the answer; a judge that is busy or away is asked three times.

        Raises Busy or Unresponsive where that was in vain, else JudgeFailed.
        """
        asked = _asked(messages, sampling, response_format)
        try:
            async with asyncio.timeout(self._timeout_s):
                return read_answer(model, await persistently(lambda: self._ask(model, asked)))
        except TimeoutError as error:
            raise Unresponsive(f"the judge '{model}' gave no answer within {self._timeout_s:g} s") from error

    async def _ask(self, model: str, asked: dict[str, Any]) -> bytes:
        """Return the body of a completion. Raises Busy where asking again may help, else JudgeFailed."""
        endpoint, _, name = model.partition("/")
        if name and endpoint in self._outside:
            return await self._outside.ask(endpoint, msgspec.json.encode({"model": name, **asked}))
        return await self._inside(model, msgspec.json.encode({"model": model, **asked}))


async def persistently(ask: Callable[[], Awaitable[bytes]]) -> bytes:
    """Ask three times while it is busy, longer apart each time. Raises JudgeFailed."""
    for tries in range(1, _TRIES):
        try:
            return await ask()
        except Busy:
            await asyncio.sleep(_FIRST_WAIT_S * 2.0 ** (tries - 1) * random.uniform(0.75, 1.25))
    return await ask()


def wanted(
    model: str, messages: list[dict[str, Any]], sampling: SamplingParams, response_format: dict[str, Any]
) -> bytes:
    """Form the request for a judge."""
    return msgspec.json.encode({"model": model, **_asked(messages, sampling, response_format)})


def _asked(messages: list[dict[str, Any]], sampling: SamplingParams, response_format: dict[str, Any]) -> dict[str, Any]:
    return {"messages": messages, "response_format": response_format, **_options(sampling)}


def _options(sampling: SamplingParams) -> dict[str, Any]:
    """Return what is set, under chat completions' names."""
    given: dict[str, Any] = msgspec.to_builtins(sampling)
    names = {"max_completions_tokens": "max_completion_tokens"}
    return {names.get(name, name): value for name, value in given.items() if value is not None}


def read_answer(model: str, body: bytes) -> Answer:
    """Read a judge's chat completion. Raises JudgeFailed when it is none."""
    try:
        completion = _decode(body)
        message = completion.choices[0].message
    except (msgspec.DecodeError, UnicodeError, RecursionError, IndexError) as error:
        raise JudgeFailed(f"the answer of the judge '{model}' is no chat completion") from error
    usage = completion.usage or _Usage()
    return Answer(
        text=message.content or "",
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_tokens=(usage.prompt_tokens_details or _Details()).cached_tokens or 0,
        refusal=message.refusal,
    )
