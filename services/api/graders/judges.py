"""Judges: models that graders ask, of this stack through the gateway, or of a configured server outside."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from msgspec import Struct

from services.api.errors import UpstreamError
from services.api.gateway.forwarding import Gateway
from services.api.gateway.relay import read_whole
from services.api.gateway.rewriting import with_fields
from services.api.graders.outside import Busy, OutsideJudges
from shared import ids
from shared.errors import SelftuneError, Unavailable
from shared.grading.means import Answer, Judge, JudgeFailed
from shared.model_records import Access
from shared.schemas.graders import SamplingParams

_TRIES = 3
_FIRST_WAIT_S = 0.5
_BUSY = frozenset({429, 502, 503})


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


class Judges:
    """Gives each project judges of its own: what its keys may use, and the servers outside that all share."""

    def __init__(self, gateway: Gateway, outside: OutsideJudges, *, timeout_s: float) -> None:
        self._gateway = gateway
        self._outside = outside
        self._timeout_s = timeout_s

    def of(self, access: Access, *, priority: int = 0) -> Judge:
        """Return the judges for a key; of the requests that wait for an engine the smallest `priority` comes first."""
        return _ProjectJudge(self._gateway, self._outside, self._timeout_s, access, priority)

    def is_outside(self, model: str) -> bool:
        """Tell whether a name such as `openai/gpt-5` is one of a configured endpoint."""
        endpoint, _, name = model.partition("/")
        return bool(name) and endpoint in self._outside

    async def complete(self, model: str, body: bytes) -> bytes:
        """Have a model outside answer a chat completion's request, and return its answer.

        One that is busy is asked three times. Raises JudgeFailed, and Away when it answers nothing at the moment.
        """
        endpoint, _, name = model.partition("/")
        asked = with_fields(body, model=name)
        try:
            async with asyncio.timeout(self._timeout_s):
                return await _persistently(lambda: self._outside.ask(endpoint, asked))
        except TimeoutError as error:
            raise JudgeFailed(f"the model '{model}' gave no answer within {self._timeout_s:g} s") from error

    async def close(self) -> None:
        await self._outside.close()


class _ProjectJudge:
    """Asks for one key. A name such as `openai/gpt-5` goes outside if `openai` is a configured endpoint."""

    def __init__(
        self, gateway: Gateway, outside: OutsideJudges, timeout_s: float, access: Access, priority: int
    ) -> None:
        self._gateway = gateway
        self._outside = outside
        self._timeout_s = timeout_s
        self._access = access
        self._priority = priority

    async def ask(
        self, model: str, messages: list[dict[str, Any]], sampling: SamplingParams, response_format: dict[str, Any]
    ) -> Answer:
        """Return the answer; a judge that is busy or away is asked three times. Raises JudgeFailed."""
        asked = _asked(messages, sampling, response_format)
        try:
            async with asyncio.timeout(self._timeout_s):
                return read_answer(model, await _persistently(lambda: self._ask(model, asked)))
        except TimeoutError as error:
            raise JudgeFailed(f"the judge '{model}' gave no answer within {self._timeout_s:g} s") from error

    async def _ask(self, model: str, asked: dict[str, Any]) -> bytes:
        """Return the body of a completion. Raises Busy where asking again may help, else JudgeFailed."""
        endpoint, _, name = model.partition("/")
        if name and endpoint in self._outside:
            return await self._outside.ask(endpoint, msgspec.json.encode({"model": name, **asked}))
        return await self._ask_inside(model, msgspec.json.encode({"model": model, **asked}))

    async def _ask_inside(self, model: str, body: bytes) -> bytes:
        try:
            upstream = await self._gateway.open(
                "/v1/chat/completions",
                body,
                model=model,
                access=self._access,
                request_id=ids.new_request_id(),
                priority=self._priority,
            )
            return await read_whole(upstream)
        except UpstreamError as error:
            raise (Busy if error.status in _BUSY else JudgeFailed)(error.body.message) from error
        except SelftuneError as error:
            raise (Busy if isinstance(error, Unavailable) else JudgeFailed)(error.message) from error


async def _persistently(ask: Callable[[], Awaitable[bytes]]) -> bytes:
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
