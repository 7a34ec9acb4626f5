"""What adapter products cost beside a model's own, by the way they are computed.

    python -m bench.serving.products [--rounds 9] [--threads 2]

Thirty layers with the shapes of SmolLM2-135M, each with weights of its own, so that they come from memory as they do
when tokens are decoded; four slots of rank 16. One pass without adapters, with torch's products and with compiled
ones, in turns; medians in milliseconds, and the share of the pass without adapters.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from services.inference.engine import punica_cpu
from services.inference.engine.punica_cpu import plan_few, plan_rows
from services.inference.engine.slot_weights import SlotWeights

LAYERS, SLOTS, RANK = 30, 4, 16
SHAPES = ((576, (576, 192, 192)), (576, (576,)), (576, (1536, 1536)), (1536, (576,)))
"""(inputs, outputs of each slice): query, key and value; output; gate and up; down."""
ROWS = (1, 8, 16, 32, 64, 128)

Add = Callable[[Tensor, Tensor, SlotWeights], None]


class Model:
    """Weights of the linear layers and their adapters."""

    def __init__(self) -> None:
        random = torch.Generator().manual_seed(0)

        def weights(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=random) * 0.02

        self.base = [[weights(sum(outputs), inputs) for inputs, outputs in SHAPES] for _ in range(LAYERS)]
        self.slots = [
            [
                SlotWeights(
                    [weights(SLOTS, 1, RANK, inputs) for _ in outputs],
                    [weights(SLOTS, 1, width, RANK) for width in outputs],
                )
                for inputs, outputs in SHAPES
            ]
            for _ in range(LAYERS)
        ]

    def pass_ms(self, inputs: list[Tensor], add: Add | None) -> float:
        """Run every layer once and return the time in milliseconds."""
        begun = time.perf_counter()
        with torch.inference_mode():
            for base, slots in zip(self.base, self.slots, strict=True):
                for weight, adapters, x in zip(base, slots, inputs, strict=True):
                    y = torch.nn.functional.linear(x, weight)
                    if add is not None:
                        add(y, x, adapters)
        return (time.perf_counter() - begun) * 1000


def compiled(slots: list[int]) -> Add:
    few = plan_few(slots)
    return lambda y, x, weights: punica_cpu._add_few(y, x, weights, few, 1.0)


def torchs(slots: list[int]) -> Add:
    plan = plan_rows(slots)
    return lambda y, x, weights: punica_cpu._add_many(y, x, weights, plan, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = Model()
    print("| rows | adapters | none | torch | compiled | torch's share | compiled share |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for rows in ROWS:
        inputs = [torch.randn(rows, size) for size, _ in SHAPES]
        for adapters in (1, 2, 4):
            if adapters <= rows:
                slots = [row % adapters for row in range(rows)]
                print_line(model, inputs, slots, adapters, arguments.rounds)


def print_line(model: Model, inputs: list[Tensor], slots: list[int], adapters: int, rounds: int) -> None:
    ways: dict[str, Add | None] = {"none": None, "torch": torchs(slots), "compiled": compiled(slots)}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, add in ways.items():
            times[name].append(model.pass_ms(inputs, add))
    none, torch_ms, compiled_ms = (statistics.median(times[name][1:]) for name in ways)
    print(
        f"| {len(slots)} | {adapters} | {none:.1f} | {torch_ms:.1f} | {compiled_ms:.1f} "
        f"| {none / torch_ms:.2f} | {none / compiled_ms:.2f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
