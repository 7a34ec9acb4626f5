"""A sweep as a picture: for each list a panel, its values from left to right, what the runs came to upwards. SVG.

No plotting library is among the dependencies; what is drawn here are circles, lines and texts. Without scripts, styles
or links, so that a browser may show it whatever the names of values are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape

import msgspec

from shared.sweep_records import SweepAxis, SweepRecord, SweepRunRecord

_PANEL_W, _PANEL_H = 360, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 40, 60
_COLUMNS = 3
_TICKS = 5
_LABEL_CHARS = 12
_MOST_LABELS = 12
_BEST, _OTHER, _INK, _GRID = "#d1495b", "#30638e", "#222222", "#dddddd"
_METRICS = {
    "full_valid_loss": "validation loss (lower is better)",
    "valid_reward": "validation reward (higher is better)",
    "eval_pass_rate": "share of rows passed (higher is better)",
}


def plot(record: SweepRecord) -> str:
    """Draw a sweep; runs without a value are not in it, and their number is said."""
    panels = len(record.axes)
    width = _PANEL_W * min(panels, _COLUMNS)
    height = _PANEL_H * math.ceil(panels / _COLUMNS) + 30
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11" fill="{_INK}">'
    )
    return "".join(
        [
            head,
            f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
            _text(width / 2, 18, _title(record), anchor="middle", size=13),
            *(_panel(record, place) for place in range(panels)),
            "</svg>\n",
        ]
    )


def _title(record: SweepRecord) -> str:
    without = sum(run.value is None for run in record.runs)
    missing = f", {without} of {len(record.runs)} runs without a value" if without else ""
    return f"{_METRICS[record.metric]}{missing}"


def _panel(record: SweepRecord, place: int) -> str:
    axis = record.axes[place]
    x, y = place % _COLUMNS * _PANEL_W, place // _COLUMNS * _PANEL_H + 30
    runs = [run for run in record.runs if run.value is not None]
    low, high = _range([run.value for run in runs if run.value is not None])
    parts = [*_grid(low, high), *_labels(axis), *_points(record, runs, place, low, high)]
    name = _text((_LEFT + _PANEL_W - _RIGHT) / 2, _PANEL_H - 8, axis.name, anchor="middle", size=12)
    return f'<g transform="translate({x} {y})">{"".join(parts)}{name}</g>'


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Return the ends of the upward axis: a twentieth more than the values need."""
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    room = (high - low) / 20 or abs(high) / 20 or 0.05
    return low - room, high + room


def _grid(low: float, high: float) -> Iterator[str]:
    right = _PANEL_W - _RIGHT
    for number in range(_TICKS):
        value = low + (high - low) * number / (_TICKS - 1)
        y = _up(value, low, high)
        yield f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="{_GRID}"/>'
        yield _text(_LEFT - 6, y + 4, f"{value:.4g}", anchor="end")
    yield f'<line x1="{_LEFT}" y1="{_TOP}" x2="{_LEFT}" y2="{_PANEL_H - _BOTTOM}" stroke="{_INK}"/>'


def _labels(axis: SweepAxis) -> Iterator[str]:
    """Name the values; of many only some, the first among them."""
    order = _order(axis)
    every = math.ceil(len(order) / _MOST_LABELS)
    for slot, pick in enumerate(order):
        if slot % every == 0:
            said = _said(axis.values[pick])
            x, y = _along(slot, len(order)), _PANEL_H - _BOTTOM + 16
            yield _text(x, y + (12 if slot // every % 2 else 0), said, anchor="middle")


def _order(axis: SweepAxis) -> list[int]:
    """Return the values' places from left to right: numbers by size, others as they were given."""
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in axis.values)
    places = range(len(axis.values))
    return sorted(places, key=lambda pick: axis.values[pick]) if numbers else list(places)


def _points(record: SweepRecord, runs: Sequence[SweepRunRecord], place: int, low: float, high: float) -> Iterator[str]:
    axis = record.axes[place]
    slots = {pick: slot for slot, pick in enumerate(_order(axis))}
    for run in sorted(runs, key=lambda one: one.rank == 1):  # the best one on top
        assert run.value is not None
        x, y = _along(slots[run.picks[place]], len(slots)), _up(run.value, low, high)
        colour, radius = (_BEST, 6) if run.rank == 1 else (_OTHER, 4)
        told = ", ".join(f"{name}={_said(value, chars=60)}" for name, value in record.parameters(run).items())
        yield (
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{colour}" fill-opacity="0.75">'
            f"<title>{_escaped(f'{told}: {run.value:.6g}')}</title></circle>"
        )


def _along(slot: int, slots: int) -> float:
    return _LEFT + (slot + 0.5) * (_PANEL_W - _LEFT - _RIGHT) / slots


def _up(value: float, low: float, high: float) -> float:
    bottom = _PANEL_H - _BOTTOM
    return bottom - (value - low) / (high - low) * (bottom - _TOP)


def _said(value: object, *, chars: int = _LABEL_CHARS) -> str:
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return text if len(text) <= chars else f"{text[: chars - 1]}…"


def _text(x: float, y: float, text: str, *, anchor: str, size: int = 11) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{_escaped(text)}</text>'


def _escaped(text: str) -> str:
    """Form a text of XML; signs that XML cannot hold are replaced."""
    return escape("".join(sign if sign.isprintable() else "\ufffd" for sign in text))
