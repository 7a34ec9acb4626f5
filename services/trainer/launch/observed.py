"""What makes the lines and spans of a process that the worker starts part of its job's."""

from __future__ import annotations

import logging
import os

import structlog

from shared.logging import configure
from shared.settings import ENV_PREFIX, Settings

_LEVEL = f"{ENV_PREFIX}LOG_LEVEL"
_JOB_ID = "SELFTUNE_PROCESS_JOB_ID"


def environment(settings: Settings, job_id: str = "") -> dict[str, str]:
    """Return variables for such a process; a process for several jobs has no `job_id`."""
    return {_LEVEL: settings.log_level, _JOB_ID: job_id}


def configure_lines() -> None:
    """Have this process write lines as the services do, warnings too, with the id of its job."""
    configure("training", level=os.environ.get(_LEVEL) or "INFO", json_lines=True)
    logging.captureWarnings(True)
    if job_id := os.environ.get(_JOB_ID):
        structlog.contextvars.bind_contextvars(job_id=job_id)
