"""What a job's training has done so far, in files beside its resume points: a later process goes on from them."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
from msgspec.structs import replace

from services.trainer.protocol import EXPORTS_FILE, METRICS_FILE, Exported, Metrics, encode_line, metrics_decoder
from shared.paths import write_atomic

decode_export = msgspec.json.Decoder(Exported).decode


class History:
    """Metrics of each step, and each epoch's export, one JSON line each.

    Of an export's folder only the name is kept, below `adapters_folder`: the data folder may move.
    """

    def __init__(self, folder: Path, adapters_folder: Path) -> None:
        self._adapters = adapters_folder
        self._metrics = folder / METRICS_FILE
        self._exports = folder / EXPORTS_FILE

    def add_step(self, metrics: Metrics) -> None:
        _append(self._metrics, metrics)

    def add_export(self, exported: Exported) -> None:
        _append(self._exports, _named(exported))

    def steps(self) -> list[Metrics]:
        return [metrics_decoder.decode(line) for line in _lines(self._metrics)]

    def exports(self) -> list[Exported]:
        found = [_named(decode_export(line)) for line in _lines(self._exports)]
        return [replace(exported, folder=str(self._adapters / exported.folder)) for exported in found]

    def rewind(self, step: int) -> None:
        """Forget what comes after `step`: it is about to happen again."""
        steps = [encode_line(metrics) for metrics in self.steps() if metrics.step <= step]
        exports = [encode_line(_named(exported)) for exported in self.exports() if exported.metrics.step <= step]
        write_atomic(self._metrics, b"".join(steps))
        write_atomic(self._exports, b"".join(exports))


def _named(exported: Exported) -> Exported:
    return replace(exported, folder=Path(exported.folder).name)


def _append(path: Path, value: msgspec.Struct) -> None:
    with path.open("ab") as handle:
        handle.write(encode_line(value))
        handle.flush()
        os.fsync(handle.fileno())


def _lines(path: Path) -> list[bytes]:
    """Whole lines only: one that a crash has cut is left out."""
    if not path.exists():
        return []
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
