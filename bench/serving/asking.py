"""Streamed requests to /v1/completions, and when each token came.

Prompts are random token ids, so that no two begin alike and no prefix is found in a cache; an answer has exactly as
many tokens as asked for. Lines are decoded when the answer is over, so that the client costs little while it is timed.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2
import msgspec

from bench.serving.server import Server
from shared.stream_lines import stream_lines

PROMPT_TOKENS = 32
_IDS = range(100, 40_000)
"""Ordinary tokens of the vocabulary."""
_order = random.Random("bench.serving")


class RequestFailed(Exception):
    """A server did not answer as asked; the message holds what it said."""


class _Choice(msgspec.Struct):
    token_ids: list[int] | None = None
    logprobs: dict[str, Any] | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []


_decode = msgspec.json.Decoder(_Chunk).decode


@dataclass
class Answer:
    """Tokens with the seconds (perf_counter) of their arrival, and when the request began."""

    begun: float
    tokens: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def first_s(self) -> float:
        return self.times[0] - self.begun


def random_prompt(tokens: int = PROMPT_TOKENS) -> list[int]:
    return _order.choices(_IDS, k=tokens)


async def ask(
    client: httpx2.AsyncClient, model: str, tokens: int, *, prompt: list[int] | str | None = None, **options: Any
) -> Answer:
    """Stream one greedy answer. Raises RequestFailed."""
    body = {
        "model": model, "prompt": prompt or random_prompt(), "max_tokens": tokens, "temperature": 0, "ignore_eos": True,
        "stream": True, "return_token_ids": True, **options,
    }  # fmt: skip
    answer = Answer(time.perf_counter())
    lines: list[tuple[float, bytes]] = []
    try:
        async with client.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code != 200:
                said = (await response.aread()).decode(errors="replace")
                raise RequestFailed(f"{model}: status {response.status_code}: {said[:500]}")
            async for line in stream_lines(response.aiter_bytes()):
                lines.append((time.perf_counter(), line))
    except httpx2.TransportError as error:
        raise RequestFailed(f"{model}: {type(error).__name__}: {error}") from error
    for at, choice in _choices(lines):
        answer.tokens += choice.token_ids or []
        answer.times += [at] * len(choice.token_ids or [])
        if choice.logprobs:
            answer.logprobs.append(choice.logprobs)
    if len(answer.tokens) != tokens:
        raise RequestFailed(f"{model}: {len(answer.tokens)} tokens instead of {tokens}: {lines[-1:]}")
    return answer


def _choices(lines: Sequence[tuple[float, bytes]]) -> Iterator[tuple[float, _Choice]]:
    for at, line in lines:
        if line.startswith(b"data: {"):
            yield from ((at, choice) for choice in _decode(line[len(b"data: ") :]).choices)


async def decode_speed(server: Server, models: Sequence[str], streams: int, tokens: int) -> float:
    """Return the tokens per second of all streams together, over the time in which every one of them decodes."""
    async with server.client() as client:
        asked = [ask(client, models[number % len(models)], tokens) for number in range(streams)]
        answers = await asyncio.gather(*asked)
    begin, end = max(answer.times[0] for answer in answers), min(answer.times[-1] for answer in answers)
    if end <= begin:
        raise RequestFailed(f"{server.name}: its streams did not decode at the same time")
    return sum(begin < at <= end for answer in answers for at in answer.times) / (end - begin)


@asynccontextmanager
async def busy(server: Server, models: Sequence[str], streams: int, *, tokens: int = 64) -> AsyncIterator[None]:
    """Keep a server decoding, one stream after the other, for as long as the context lasts."""
    async with server.client() as client:

        async def keep_asking(model: str) -> None:
            while True:
                await ask(client, model, tokens)

        tasks = [asyncio.create_task(keep_asking(models[number % len(models)])) for number in range(streams)]
        try:
            # Each task's first tokens are on their way once another request has been answered beside them.
            await ask(client, server.base_id, 4)
            yield
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
