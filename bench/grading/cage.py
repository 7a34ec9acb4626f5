"""How many items a second Python graders grade: each in a cage of its own, and in one that stays.

python -m bench.grading.cage [--items N]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import time

from shared.grading.cage import Limits, open_cage, run_python

_SOURCE = "def grade(sample, item):\n    return float(sample['output_text'] == item['answer'])\n"
_SAMPLE, _ITEM = {"output_text": "seven"}, {"answer": "seven"}


async def _cold(items: int) -> float:
    start = time.perf_counter()
    for _ in range(items):
        outcome = await run_python(_SOURCE, sample=_SAMPLE, item=_ITEM, limits=Limits())
        assert outcome.score == 1.0, outcome
    return items / (time.perf_counter() - start)


async def _warm(items: int) -> float:
    async with open_cage(_SOURCE, Limits()) as cage:
        await cage.start()
        start = time.perf_counter()
        for _ in range(items):
            outcome = await cage.grade(_SAMPLE, _ITEM)
            assert outcome.score == 1.0, outcome
        return items / (time.perf_counter() - start)


def main() -> None:
    """Measure, and print the machine and two rates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=200)
    items = parser.parse_args().items
    print(f"{platform.platform()}, {os.cpu_count()} CPUs, Python {platform.python_version()}")
    print(f"cold: {asyncio.run(_cold(max(1, items // 10))):.1f} items/s")
    print(f"warm: {asyncio.run(_warm(items)):.1f} items/s")


if __name__ == "__main__":
    main()
