"""Tokens per second: with adapters as a share of the base on the same server, and of the base against stock."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from bench.serving.asking import decode_speed
from bench.serving.figures import Figures, share_line, shown
from bench.serving.server import Server
from bench.serving.stage import Stage
from bench.training.report import Line

AIM = 0.85
AIM_STOCK = 1.05
AIM_PLAIN = 0.95


async def one(stage: Stage) -> list[Line]:
    """One adapter, one stream."""
    return await _share(stage, "decode, one adapter, one stream: share of the base", adapters=1, streams=1)


async def two(stage: Stage) -> list[Line]:
    """Two adapters in turns, eight streams."""
    return await _share(stage, "decode, two adapters, eight streams: share of the base", adapters=2, streams=8)


async def _share(stage: Stage, measure: str, *, adapters: int, streams: int) -> list[Line]:
    sides = await stage.sides()
    names = await stage.publish(sides, adapters)
    tokens = stage.count(96 if streams == 1 else 64, 8)
    kind = "one adapter" if adapters == 1 else f"{adapters} adapters"
    found = Figures("tokens/s")
    await _warm_up(sides, names, streams)
    for number, side in stage.turns(sides):
        asked = [("base", [side.base_id]), (kind, names)]
        for what, models in asked[:: 1 if number % 2 else -1]:
            found.add(side.name, what, await decode_speed(side, models, streams, tokens))
    found.print()
    ours, stock = (found.shares(side.name, kind, "base") for side in sides)
    return [share_line(measure, ours, stock, AIM)]


async def base(stage: Stage) -> list[Line]:
    """The base on a server with LoRA, against stock with LoRA and without."""
    sides = await stage.all_sides()
    found = Figures("tokens/s")
    await _warm_up(sides, [], 8)
    for _, side in stage.turns(sides):
        for streams, tokens in ((1, stage.count(96, 8)), (8, stage.count(64, 8))):
            found.add(side.name, _streams(streams), await decode_speed(side, [side.base_id], streams, tokens))
    found.print()
    ours, stock, plain = (side.name for side in sides)
    against = [(other, aim, n) for other, aim in ((stock, AIM_STOCK), (plain, AIM_PLAIN)) for n in (1, 8)]
    return [_against(found, ours, other, _streams(streams), aim) for other, aim, streams in against]


async def _warm_up(sides: Sequence[Server], names: Sequence[str], streams: int) -> None:
    for side in sides:
        await decode_speed(side, [side.base_id, *names], streams, 8)


def _streams(count: int) -> str:
    return "base, one stream" if count == 1 else f"base, {count} streams"


def _against(found: Figures, ours: str, other: str, asked: str, aim: float) -> Line:
    ratios = [a / b for a, b in zip(found.runs(ours, asked), found.runs(other, asked), strict=True)]
    return Line(
        f"decode, {asked}: against {other}", f"{found.median(ours, asked):.1f} tokens/s (ratios {shown(ratios)})",
        f"{found.median(other, asked):.1f} tokens/s", statistics.median(ratios), aim,
    )  # fmt: skip
