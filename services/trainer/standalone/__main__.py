"""The command line behind `selftune export`. Status: 0 done, 1 a fault of this program, 2 refused, 130 interrupted."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from services.trainer.shortages import is_disk_full, is_out_of_memory
from services.trainer.standalone import ExportRefused
from services.trainer.standalone.exporting import DType, Kind, Request, export
from shared.errors import SelftuneError
from shared.settings import Settings


def main(argv: Sequence[str] | None = None) -> int:
    """Export a model; what goes wrong is one line on stderr."""
    arguments = _arguments(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what is half done is removed
    try:
        print(_run(arguments))  # noqa: T201
    except SelftuneError as error:
        return _say(str(error))
    except KeyboardInterrupt:
        return 130
    except (MemoryError, OSError, RuntimeError) as error:
        if is_out_of_memory(error):
            return _say("there is too little memory, even for one tensor at a time")
        if is_disk_full(error):
            return _say(f"{arguments.to}: the disk is full, or takes no file of this size")
        if not isinstance(error, OSError):
            raise
        return _say(str(error))
    return 0


def _run(arguments: argparse.Namespace) -> Path:
    try:
        return export(Request(**vars(arguments)), Settings.load())
    except ImportError as error:
        raise ExportRefused(f"merging needs what training needs, selftune[trainer]: {error}") from error


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m services.trainer.standalone", description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--merge", action="store_true")
    parser.add_argument("--gguf", choices=get_args(Kind))
    parser.add_argument("--dtype", choices=get_args(DType))
    parser.add_argument("--base", type=Path)
    parser.add_argument("--oci", action="store_true")
    parser.add_argument("--force", action="store_true")
    return parser.parse_args(argv)


def _say(message: str) -> int:
    print(f"selftune: {message}", file=sys.stderr)  # noqa: T201
    return 2


if __name__ == "__main__":
    sys.exit(main())
