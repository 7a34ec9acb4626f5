"""What the operator sees: one stream of lines, each with the service's name; files keep them as they were written."""

from __future__ import annotations

import contextlib
import json
import logging.handlers
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

_MAX_LOG_BYTES = 64 << 20
_KEPT_LOGS = 3
_COLOURS = {"api": 36, "trainer": 33, "inference": 35, "valkey": 34, "selftune": 32}
_HIDDEN = frozenset({"timestamp", "level", "event", "service"})

Writer = Callable[[str, bytes], None]


class _LogFile(logging.handlers.RotatingFileHandler):
    """A log that a full disk costs lines, and nothing else."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Let the line go; the terminal has it."""

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


class Console:
    """Prints to stdout, which may close early (`selftune up | head`) or be on a full disk without harm."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()

    def say(self, text: str) -> None:
        """Print a line of the launcher's own."""
        self._print("selftune", text)

    @contextlib.contextmanager
    def log(self, path: Path) -> Iterator[Writer]:
        """Open a log file, rotated at 64 MiB with three kept, and return what writes to it and to the terminal."""
        handler = _LogFile(
            path, maxBytes=_MAX_LOG_BYTES, backupCount=_KEPT_LOGS, encoding="utf-8", errors="replace", delay=True
        )

        def write(name: str, line: bytes) -> None:
            text = line.decode("utf-8", "replace").rstrip()
            handler.emit(logging.makeLogRecord({"msg": text}))
            self._print(name, _readable(text) if self._terminal else text)

        try:
            yield write
        finally:
            handler.close()

    def _print(self, name: str, text: str) -> None:
        label = f"{name:<9} |"
        if self._terminal:
            label = f"\033[{_COLOURS.get(name, 37)}m{label}\033[0m"
        with contextlib.suppress(OSError, ValueError):
            print(label, text, flush=True)  # noqa: T201 - this is the terminal


def _readable(text: str) -> str:
    """Turn a JSON log line into `time level event key=value …`; anything else stays as it is."""
    if not text.startswith("{"):
        return text
    try:
        fields = json.loads(text)
    except ValueError:
        return text
    rest = " ".join(f"{key}={value}" for key, value in fields.items() if key not in _HIDDEN)
    moment = str(fields.get("timestamp", ""))[11:19]
    return f"{moment} {fields.get('level', ''):<7} {fields.get('event', '')} {rest}".rstrip()
