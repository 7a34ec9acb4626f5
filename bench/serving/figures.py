"""Runs of a measurement by side, and what is printed of them."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence

from bench.api.scene import print_table
from bench.training.report import Line


class Figures:
    """Every single run, by side and by what was asked of it."""

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self._runs: dict[tuple[str, str], list[float]] = defaultdict(list)

    def add(self, side: str, asked: str, value: float) -> None:
        self._runs[side, asked].append(value)

    def runs(self, side: str, asked: str) -> list[float]:
        return self._runs[side, asked]

    def median(self, side: str, asked: str) -> float:
        return statistics.median(self._runs[side, asked])

    def shares(self, side: str, asked: str, of: str) -> list[float]:
        """Return, round by round, one figure as a share of another of the same side."""
        return [a / b for a, b in zip(self._runs[side, asked], self._runs[side, of], strict=True)]

    def print(self) -> None:
        rows: list[list[str | float]] = [
            [side, asked, statistics.median(found), shown(found)] for (side, asked), found in self._runs.items()
        ]
        print()
        print_table(["side", "asked", f"{self.unit}, median", "runs"], rows)


def shown(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)


def share_line(measure: str, ours: Sequence[float], stock: Sequence[float], aim: float) -> Line:
    """The median of our shares against an aim; stock's stand beside them."""
    share = statistics.median(ours)
    other = f"stock {statistics.median(stock):.2f} ({shown(stock)})"
    return Line(measure, f"{share:.2f} ({shown(ours)})", other, share, aim)
