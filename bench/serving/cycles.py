"""Memory over many loads and unloads. A cycle is: publish, one token, retire.

The first hundred cycles fill what is kept on purpose: stock keeps unloaded adapters until `max_cpu_loras` others came.
"""

from __future__ import annotations

from bench.api.scene import print_table
from bench.serving.asking import ask
from bench.serving.server import Server
from bench.serving.stage import Stage
from bench.training.report import Line

SETTLED = 100
CYCLES = 500
STEP = 100
AIM = 1.02
_SHELF = 12


async def measure(stage: Stage) -> list[Line]:
    sides = await stage.sides()
    step = stage.count(STEP, 5)
    ours, stock = [await _memory(stage, side, step) for side in sides]
    print()
    cycles = [str(step * number) for number in range(1, len(ours) + 1)]
    rows = [[side.name, *(f"{mb:.0f}" for mb in found)] for side, found in zip(sides, (ours, stock), strict=True)]
    print_table(["MB after cycles", *cycles], rows)
    growth = ours[-1] / ours[0]
    told = f"{ours[0]:.0f} to {ours[-1]:.0f} MB"
    other = f"stock {stock[0]:.0f} to {stock[-1]:.0f} MB ({stock[-1] / stock[0]:.3f})"
    measured = f"memory after {cycles[-1]} cycles of load and unload, of that after {cycles[0]}"
    return [Line(measured, told, other, growth, AIM, at_least=False)]


async def _memory(stage: Stage, server: Server, step: int) -> list[float]:
    """Return the server's memory in MB after each hundred cycles, the first of which are not counted."""
    adapters = stage.shelf.take(_SHELF)
    found = []
    async with server.client() as client:
        for number in range(step * (SETTLED + CYCLES) // STEP):
            model = f"ft:cycle:{number}"
            await server.publish(model, adapters[number % len(adapters)])
            await ask(client, model, 1)
            await server.retire(model)
            if (number + 1) % step == 0:
                found.append(server.memory_mb())
    return found
