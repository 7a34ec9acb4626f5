"""Long prompts: how fast 1,024 tokens are read with an adapter, as a share of the base on the same server."""

from __future__ import annotations

import statistics

from bench.serving.asking import ask, random_prompt
from bench.serving.figures import Figures, share_line
from bench.serving.server import Server
from bench.serving.stage import Stage
from bench.training.report import Line

TOKENS = 1024
AIM = 0.85


async def measure(stage: Stage) -> list[Line]:
    sides = await stage.sides()
    (name,) = await stage.publish(sides, 1)
    found = Figures("tokens/s")
    for number, side in stage.turns(sides):
        for kind, model in (("base", side.base_id), ("one adapter", name))[:: 1 if number % 2 else -1]:
            found.add(side.name, kind, await _speed(side, model, stage.count(3, 1)))
    found.print()
    ours, stock = (found.shares(side.name, "one adapter", "base") for side in sides)
    return [share_line(f"prefill of {TOKENS:,} tokens, one adapter: share of the base", ours, stock, AIM)]


async def _speed(server: Server, model: str, prompts: int) -> float:
    """Return prompt tokens per second, the median of several prompts one after the other."""
    async with server.client() as client:
        answers = [await ask(client, model, 1, prompt=random_prompt(TOKENS)) for _ in range(prompts)]
    return TOKENS / statistics.median(answer.first_s for answer in answers)
