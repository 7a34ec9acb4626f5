"""Whether a request for the base is answered beside adapters' requests as it is answered alone.

Each case is a prompt, asked once alone and once beside four streams of as many adapters, which is every slot. Its
tokens must be the same. Where they part, two tokens that are equally likely within rounding are a tie: batches of
different sizes are summed in different order.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass

import httpx2

from bench.api.scene import print_table
from bench.serving.asking import Answer, ask, busy
from bench.serving.server import Server
from bench.serving.stage import Stage
from bench.training.report import Line
from bench.training.rows import WORDS

CASES = 200
STOCK_CASES = 40
TOKENS = 12
ADAPTERS = 4
AT_ONCE = 4
TIE_NATS = 1e-4


@dataclass
class Found:
    """Cases by how they ended, and the largest difference of a log probability before tokens part, in nats."""

    equal: int = 0
    ties: int = 0
    other: int = 0
    difference: float = 0.0

    @property
    def cases(self) -> int:
        return self.equal + self.ties + self.other


async def measure(stage: Stage) -> list[Line]:
    sides = await stage.sides()
    names = await stage.publish(sides, ADAPTERS)
    counts = (stage.count(CASES, 8), stage.count(STOCK_CASES, 8))
    ours, stock = [await _compare(side, names, count) for side, count in zip(sides, counts, strict=True)]
    print()
    columns = ["side", "cases", "equal", "ties", "other tokens", "largest difference, nats"]
    print_table(
        columns,
        [
            [side.name, str(found.cases), str(found.equal), str(found.ties), str(found.other), found.difference]
            for side, found in zip(sides, (ours, stock), strict=True)
        ],
    )
    return [
        Line("base beside adapters: tokens as alone", _told(ours), f"stock {_told(stock)}", ours.equal / ours.cases, 1)
    ]


def _told(found: Found) -> str:
    return f"{found.equal} of {found.cases}" + (f", and {found.ties} ties" if found.ties else "")


async def _compare(server: Server, names: Sequence[str], count: int) -> Found:
    order = random.Random("beside")
    prompts = [f"Tell me about {' '.join(order.choices(WORDS, k=8))}." for _ in range(count)]
    found = Found()
    async with server.client() as client:
        alone = [await _ask(client, server, prompt, "alone") for prompt in prompts]
        async with busy(server, names, ADAPTERS):
            turn = asyncio.Semaphore(AT_ONCE)

            async def beside(prompt: str) -> Answer:
                async with turn:
                    return await _ask(client, server, prompt, "beside")

            together = await asyncio.gather(*map(beside, prompts))
    for one, other in zip(alone, together, strict=True):
        _judge(found, one, other)
    return found


async def _ask(client: httpx2.AsyncClient, server: Server, prompt: str, salt: str) -> Answer:
    """The salt keeps what was computed the first time out of the second."""
    return await ask(client, server.base_id, TOKENS, prompt=prompt, logprobs=2, cache_salt=salt)


def _judge(found: Found, alone: Answer, beside: Answer) -> None:
    pairs = list(zip(_logprobs(alone), _logprobs(beside), strict=True))
    for place, ((chosen, top), (other, _)) in enumerate(pairs):
        if alone.tokens[place] != beside.tokens[place]:
            if top[0] - top[1] < TIE_NATS:
                found.ties += 1
            else:
                found.other += 1
            return
        found.difference = max(found.difference, abs(chosen - other))
    found.equal += 1


def _logprobs(answer: Answer) -> list[tuple[float, list[float]]]:
    """Return for each token its log probability, and the two largest there."""
    chosen = [value for piece in answer.logprobs for value in piece["token_logprobs"]]
    top = [sorted(place.values(), reverse=True)[:2] for piece in answer.logprobs for place in piece["top_logprobs"]]
    return list(zip(chosen, top, strict=True))
