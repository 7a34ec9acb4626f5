"""Ratios and aims: the table that says what holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.training.measure import Measured


@dataclass(frozen=True)
class Line:
    """One row of the table. With `at_least` false a smaller ratio is better."""

    measure: str
    ours: str
    other: str
    ratio: float
    aim: float
    at_least: bool = True

    @property
    def holds(self) -> bool:
        return self.ratio >= self.aim if self.at_least else self.ratio <= self.aim

    def __str__(self) -> str:
        sign = "≥" if self.at_least else "≤"
        verdict = "holds" if self.holds else "does not hold"
        return f"| {self.measure} | {self.ours} | {self.other} | {self.ratio:.2f} | {sign} {self.aim:g} | {verdict} |"


def speed(measure: str, found: dict[str, Measured], aim: float, *, unit: str = "tokens/s") -> Line:
    """Ours against the fastest of the others."""
    ours, *others = found.values()
    best = max(others, key=lambda measured: measured.tokens_per_s)
    in_tokens = unit == "tokens/s"
    figures = [m.tokens_per_s if in_tokens else m.rows_per_s for m in (ours, best)]
    shown = [f"{value:.0f} {unit}" if in_tokens else f"{value:.2f} {unit}" for value in figures]
    return Line(measure, shown[0], f"{best.side} {shown[1]}", figures[0] / figures[1], aim)


def memory(measure: str, found: dict[str, Measured], other: str, aim: float) -> Line:
    ours, theirs = found["ours"].peak_mb, found[other].peak_mb
    return Line(measure, f"{ours:.0f} MB", f"{other} {theirs:.0f} MB", ours / theirs, aim, at_least=False)


def print_sides(name: str, found: dict[str, Measured]) -> None:
    """Every side with its runs and first losses, so that a reader sees that all do the same work."""
    print(f"\n{name}\n")
    print("| side | tokens/s | runs | peak MB | first losses | versions |\n" + "| --- " * 6 + "|")
    for side, measured in found.items():
        runs = ", ".join(f"{value:.1f}" for value in measured.speeds)
        losses = " ".join(f"{loss:.4f}" for loss in measured.answers[0].losses[:3])
        versions = " ".join(f"{package} {version}" for package, version in measured.answers[0].versions.items())
        print(f"| {side} | {measured.tokens_per_s:.1f} | {runs} | {measured.peak_mb:.0f} | {losses} | {versions} |")


def print_lines(lines: Sequence[Line]) -> None:
    print("\n| measure | ours | the other | ratio | aim | |\n" + "| --- " * 6 + "|")
    for line in lines:
        print(line)
