"""A job's metrics as TensorBoard's event files, in its folder: `tensorboard --logdir DATA_DIR/jobs` shows every job."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import structlog
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import RecordWriter

from services.trainer.curves import curves
from services.trainer.protocol import EVENT_FILES_FOLDER, Metrics

FLUSH_EVERY_S = 1.0
_GROUPS = ("full_valid", "valid", "train")
_NO_CURVES = ("step", "total_steps")

log = structlog.get_logger()


class EventFile:
    """One attempt's file, opened at its first step. What cannot be written is left out: the training goes on."""

    def __init__(self, job_folder: Path) -> None:
        self._folder = job_folder / EVENT_FILES_FOLDER
        self._writer: RecordWriter | None = None
        self._given_up = False
        self._flushed_at = 0.0

    def add(self, metrics: Metrics) -> None:
        """Add a step's numbers; what earlier files say of this step and later ones is void from here on."""
        if self._given_up:
            return
        try:
            self._write(metrics)
        except OSError as error:
            log.warning("event_file.given_up", reason=str(error))
            self._given_up = True

    def _write(self, metrics: Metrics) -> None:
        if self._writer is None:
            self._writer = self._open(metrics.step)
        summary = Summary(
            value=[
                Summary.Value(tag=tag(name), simple_value=value)
                for name, value in curves(metrics).items()
                if name not in _NO_CURVES
            ]
        )
        self._put(Event(step=metrics.step, summary=summary))
        if time.monotonic() - self._flushed_at > FLUSH_EVERY_S or metrics.step == metrics.total_steps:
            self._writer.flush()
            self._flushed_at = time.monotonic()

    def _open(self, step: int) -> RecordWriter:
        self._folder.mkdir(exist_ok=True)
        # TensorBoard reads the files of a folder in the order of their names, which begin with the time.
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        self._writer = RecordWriter(str(self._folder / name))
        self._put(Event(file_version="brain.Event:2"))
        self._put(Event(step=step, session_log=SessionLog(status=SessionLog.START)))
        return self._writer

    def _put(self, event: Event) -> None:
        assert self._writer is not None
        event.wall_time = time.time()
        self._writer.write(event.SerializeToString())


def tag(name: str) -> str:
    """Group curves as TensorBoard does, by what stands before a slash: train/loss, valid/rewards_margin, …"""
    for group in _GROUPS:
        if name.startswith(f"{group}_"):
            return f"{group}/{name.removeprefix(f'{group}_')}"
    return f"train/{name}" if name.startswith("rewards_") else f"run/{name}"
