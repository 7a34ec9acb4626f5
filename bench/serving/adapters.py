"""Adapters of random numbers, and copies of them that differ in one number.

    python -m bench.serving.adapters BASE BASE_ID FOLDER

writes those that PEFT makes: in a process of its own, so that torch's threads are gone before anything is measured.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.adapters import WEIGHTS_NAME, adapter_digest
from shared.paths import Paths
from tests.api_server import ROOT
from tests.integration.inference_stack import make_adapter

RANK = 16
REAL = 4


@dataclass(frozen=True)
class Adapter:
    """A folder that PEFT wrote or a copy of one, where the data folder has it, and the hash that names it."""

    folder: Path
    sha256: str


class Shelf:
    """The adapters of one data folder; a copy is made when it is first asked for."""

    def __init__(self, base: Path, base_id: str, home: Path) -> None:
        self._base = base
        self._base_id = base_id
        self._paths = Paths(home)
        self._adapters: list[Adapter] = []

    def take(self, count: int) -> Sequence[Adapter]:
        """Return the first `count` adapters; no two have the same bytes."""
        if not self._adapters:
            self._adapters = [self._place(folder) for folder in self._write()]
        while len(self._adapters) < count:
            number = len(self._adapters)
            staged = self._paths.home / f"adapter-{number}"
            self._copy(staged, number)
            self._adapters.append(self._place(staged))
        return self._adapters[:count]

    def take_to(self, home: Path, count: int) -> Sequence[Adapter]:
        """Return the first `count` adapters as they are in another data folder, where they are copied to."""
        copies = []
        for adapter in self.take(count):
            folder = Paths(home).adapter_folder(self._base_id, adapter.sha256)
            shutil.copytree(adapter.folder, folder)
            copies.append(Adapter(folder, adapter.sha256))
        return copies

    def _write(self) -> Sequence[Path]:
        command = [sys.executable, "-m", "bench.serving.adapters"]
        command += [str(self._base), self._base_id, str(self._paths.home)]
        made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if made.returncode:
            raise SystemExit(f"no adapters:\n{made.stderr[-3000:]}")
        return _real(self._paths.home)

    def _copy(self, folder: Path, number: int) -> None:
        """Write the last number of the last tensor anew: a float32 that says which copy it is."""
        shutil.copytree(self._adapters[number % REAL].folder, folder)
        (folder / WEIGHTS_NAME).chmod(0o644)
        with (folder / WEIGHTS_NAME).open("r+b") as weights:
            weights.seek(-4, 2)
            weights.write(struct.pack("<f", number * 1e-6))

    def _place(self, staged: Path) -> Adapter:
        digest = adapter_digest(staged)
        final = self._paths.adapter_folder(self._base_id, digest)
        final.parent.mkdir(parents=True, exist_ok=True)
        staged.rename(final)
        return Adapter(final, digest)


def _real(folder: Path) -> list[Path]:
    return [folder / f"adapter-{number}" for number in range(REAL)]


def main(base: Path, base_id: str, folder: Path) -> None:
    for seed, target in enumerate(_real(folder)):
        make_adapter(target, base, seed=seed, rank=RANK, base_id=base_id)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
