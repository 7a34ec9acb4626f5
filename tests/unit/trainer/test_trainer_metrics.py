"""What a run says of itself: each step's numbers, and the files that TensorBoard reads."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from services.trainer.protocol import EVENT_FILES_FOLDER
from services.trainer.training.event_files import tag
from services.trainer.training.pace import Pace
from tests.unit.trainer.test_trainer_loop import STEPS, stop_after, train
from tests.unit.trainer.tiny import make_spec


def events(path: Path) -> list[Any]:
    """Read a file of TFRecords: length, its checksum, the record, its checksum."""
    data, found, offset = path.read_bytes(), [], 0
    while offset < len(data):
        (length,) = struct.unpack_from("<Q", data, offset)
        record = data[offset + 12 : offset + 12 + length]
        assert struct.unpack_from("<I", data, offset + 8)[0] == masked_crc32c(data[offset : offset + 8])
        assert struct.unpack_from("<I", data, offset + 12 + length)[0] == masked_crc32c(record)
        found.append(Event.FromString(record))
        offset += length + 16
    return found


def test_each_step_says_what_it_learnt_from_and_what_it_needed(tiny_base: Path, tmp_path: Path) -> None:
    run = train(make_spec(tiny_base, tmp_path), tmp_path)
    rows = run.loop.data.train
    assert sum(metrics.supervised_tokens or 0 for metrics in run.steps) == 2 * sum(row.n_supervised for row in rows)
    assert all((metrics.supervised_tokens or 0) < metrics.tokens for metrics in run.steps)
    peaks = [metrics.peak_memory_bytes or 0 for metrics in run.steps]
    assert peaks == sorted(peaks) and 50 << 20 < peaks[0] < 64 << 30
    assert run.steps[0].seconds_left is None and run.steps[-1].seconds_left == 0
    assert all((metrics.seconds_left or 0) > 0 for metrics in run.steps[1:-1])


def test_time_left_follows_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([100.0, 102.0, 110.0])
    monkeypatch.setattr("services.trainer.training.pace.time.monotonic", lambda: next(times))
    pace = Pace()
    assert pace.seconds_left(11, 20) is None
    assert pace.seconds_left(12, 20) == 16.0
    assert pace.seconds_left(13, 20) == 35.0


def test_tensorboard_file_holds_every_number_of_every_step(tiny_base: Path, tmp_path: Path) -> None:
    run = train(make_spec(tiny_base, tmp_path), tmp_path)
    [path] = (tmp_path / EVENT_FILES_FOLDER).iterdir()
    version, start, *steps = events(path)
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (1, SessionLog.START)
    assert [event.step for event in steps] == list(range(1, STEPS + 1))
    for event, metrics in zip(steps, run.steps, strict=True):
        values = {value.tag: value.simple_value for value in event.summary.value}
        assert values["train/loss"] == pytest.approx(metrics.train_loss)
        assert values["run/learning_rate"] == pytest.approx(metrics.learning_rate)
        assert ("full_valid/loss" in values) == (metrics.full_valid_loss is not None)
    assert tag("valid_rewards_margin") == "valid/rewards_margin" and tag("rewards_margin") == "train/rewards_margin"


def test_tensorboard_drops_the_steps_that_a_resumed_run_repeats(tiny_base: Path, tmp_path: Path) -> None:
    spec = make_spec(tiny_base, tmp_path)
    train(spec, tmp_path, stop_after(8))
    rest = train(spec, tmp_path)
    [again] = [path for path in (tmp_path / EVENT_FILES_FOLDER).iterdir() if events(path)[-1].step == STEPS]
    start = events(again)[1]
    assert start.session_log.status == SessionLog.START
    assert start.step == next(metrics.step for metrics in rest.steps if metrics.step > 8) == 9


def test_disk_that_takes_no_event_file_does_not_stop_the_training(tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / EVENT_FILES_FOLDER).write_bytes(b"no folder")
    run = train(make_spec(tiny_base, tmp_path), tmp_path)
    assert run.exports[-1].final
