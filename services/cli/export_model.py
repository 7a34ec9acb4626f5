"""`selftune export`: handed over to a program of the trainer, since the command line loads no model library."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from msgspec.structs import replace

from shared.settings import Settings


def become_exporter(
    settings: Settings, model: str, to: Path, *, flags: Mapping[str, bool], options: Mapping[str, str | Path | None]
) -> NoReturn:
    """Replace this process by the one that exports, so that signals and the exit status are its own."""
    settings = replace(
        settings,
        data_dir=str(settings.home),
        redis_url=settings.database_url,
    )
    arguments = [f"{name}={value}" for name, value in options.items() if value is not None]
    arguments += [name for name, is_set in flags.items() if is_set]
    command = [sys.executable, "-m", "services.trainer.standalone", f"--to={to}", *arguments, "--", model]
    os.execve(sys.executable, command, {**os.environ, **settings.to_env()})  # noqa: S606 - no shell is wanted
