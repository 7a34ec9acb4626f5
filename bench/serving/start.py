"""From the start of the process to the first answer of the base.

The first round of ours and of stock is the first start after whatever ran before; files are in the page cache from then
on, and nothing here empties it.
"""

from __future__ import annotations

from bench.serving.figures import Figures, shown
from bench.serving.server import Server
from bench.serving.sides.ours import Ours
from bench.serving.sides.stock import DefaultStock, Stock
from bench.serving.stage import Stage
from bench.training.report import Line

AIM_S = 30.0


async def measure(stage: Stage) -> list[Line]:
    home = stage.folder / "start"
    home.mkdir()
    ours = Ours(home, stage.base)
    stock = Stock(home, stage.base, ours.settings)
    default = DefaultStock(home, stage.base, ours.settings)
    found = Figures("seconds")
    try:
        for number, side in stage.turns((ours, stock)):
            await _start(side, found, "first start" if number == 0 else "warm start")
        await _start(default, found, "warm start")
    finally:
        for server in (default, stock, ours):
            await server.close()
    found.print()
    return [_line(found, kind) for kind in ("first start", "warm start") if found.runs(ours.name, kind)]


def _line(found: Figures, kind: str) -> Line:
    seconds, runs = found.median("ours", kind), shown(found.runs("ours", kind))
    told, other = f"{seconds:.1f} s ({runs})", f"stock {found.median('stock', kind):.1f} s"
    return Line(f"start to first answer, {kind}: seconds", told, other, seconds, AIM_S, at_least=False)


async def _start(server: Server, found: Figures, kind: str) -> None:
    try:
        seconds = await server.start()
    finally:
        server.stop()
    found.add(server.name, kind, seconds)
    print(f"  {server.name}, {kind}: {seconds:.1f} s", flush=True)
