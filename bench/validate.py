"""How fast training files are checked, beside what the parts alone cost, on this machine.

    python -m bench.validate [--mb 32] [--rounds 5]

Each file is read by each way in turn, round after round, and the medians are shown in MB/s:

    read        the bytes, a line at a time, and nothing else
    json        json.loads of every line
    msgspec     msgspec's decoding of every line into the types of the format, without any check beyond
    validate    shared.training_data.validate: what a job's files go through, with every check
    careful     the same without the quick look, as it is for files of unusual lines
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec

from shared import training_data
from shared.preference_data import PreferenceExample
from shared.training_data import ChatExample, Method, validate

WORDS = (
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "and",
    "sleeps",
    "under",
    "an",
    "old",
    "oak",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--mb", type=int, default=32, help="size of each file")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"{'rows':<28}{'bytes/row':>10}" + "".join(f"{name:>10}" for name in WAYS))
    with tempfile.TemporaryDirectory() as folder:
        for shape, (row, method) in SHAPES.items():
            path = Path(folder, "rows.jsonl")
            n_rows = _write(path, row, arguments.mb * 1_000_000)
            speeds = measure(path, method, arguments.rounds)
            print(f"{shape:<28}{path.stat().st_size // n_rows:>10}" + "".join(f"{mb_s:>10.0f}" for mb_s in speeds))


def measure(path: Path, method: Method, rounds: int) -> list[float]:
    """Return the median speed of each way, in MB/s."""
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(rounds):
        for name, way in WAYS.items():
            started = time.perf_counter()
            way(path, method)
            seconds[name].append(time.perf_counter() - started)
    return [path.stat().st_size / 1e6 / statistics.median(times) for times in seconds.values()]


def _read(path: Path, _method: Method) -> None:
    with path.open("rb") as handle:
        for _ in handle:
            pass


def _json(path: Path, _method: Method) -> None:
    with path.open("rb") as handle:
        for line in handle:
            json.loads(line)


def _msgspec(path: Path, method: Method) -> None:
    decode = msgspec.json.Decoder(ChatExample if method == "supervised" else PreferenceExample).decode
    with path.open("rb") as handle:
        for line in handle:
            decode(line)


def _validate(path: Path, method: Method) -> None:
    validate(path, method=method)


def _careful(path: Path, method: Method) -> None:
    with mock.patch.dict(training_data._QUICK, dict.fromkeys(training_data._QUICK, lambda _: 0)):
        validate(path, method=method)


WAYS: dict[str, Callable[[Path, Method], None]] = {
    "read": _read, "json": _json, "msgspec": _msgspec, "validate": _validate, "careful": _careful,
}  # fmt: skip


def _text(length: int) -> str:
    words = random.choices(WORDS, k=length // 4)
    return " ".join(words)[:length]


def _says(role: str, length: int, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": _text(length), **more}


def _short() -> dict[str, Any]:
    return {"messages": [_says("user", 80), _says("assistant", 40)]}


def _weighted() -> dict[str, Any]:
    turns = [_says("user", 60), _says("assistant", 60, weight=0), _says("user", 60), _says("assistant", 60, weight=1)]
    return {"messages": [_says("system", 60), *turns]}


def _long() -> dict[str, Any]:
    turns = [message for _ in range(3) for message in (_says("user", 400), _says("assistant", 760))]
    return {"messages": [_says("system", 400), *turns]}


def _accented() -> dict[str, Any]:
    return {
        "messages": [
            _says("user", 1000),
            {"role": "assistant", "content": "… «é» ".join(_text(300) for _ in range(10))},
        ]
    }


def _tools() -> dict[str, Any]:
    call = {"id": "call_1", "type": "function", "function": {"name": "find", "arguments": json.dumps({"q": _text(40)})}}
    tool = {"type": "function", "function": {"name": "find", "parameters": {"type": "object", "properties": {}}}}
    answer = {"role": "tool", "tool_call_id": "call_1", "content": _text(200)}
    asked = {"role": "assistant", "content": None, "tool_calls": [call]}
    return {"messages": [_says("user", 100), asked, answer, _says("assistant", 100)], "tools": [tool]}


def _pair() -> dict[str, Any]:
    return {
        "input": {"messages": [_says("user", 200)]},
        "preferred_output": [_says("assistant", 200)],
        "non_preferred_output": [_says("assistant", 200)],
    }


SHAPES: dict[str, tuple[Callable[[], dict[str, Any]], Method]] = {
    "short chats": (_short, "supervised"),
    "turns with weights": (_weighted, "supervised"),
    "calls of tools": (_tools, "supervised"),
    "long chats": (_long, "supervised"),
    "long chats, not only ASCII": (_accented, "supervised"),
    "preference pairs": (_pair, "dpo"),
}


def _write(path: Path, row: Callable[[], dict[str, Any]], size_bytes: int) -> int:
    """Write rows up to about `size_bytes`; returns their number."""
    random.seed(0)
    lines = [json.dumps(row(), ensure_ascii=False).encode() + b"\n" for _ in range(500)]
    repeats = max(1, size_bytes // sum(map(len, lines)))
    path.write_bytes(b"".join(lines) * repeats)
    return len(lines) * repeats


if __name__ == "__main__":
    main()
