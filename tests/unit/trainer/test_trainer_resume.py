"""What a process that died leaves behind, and how the next one goes on from it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.trainer.base.weights import weights_digest
from services.trainer.jobs.job_folder import result_file_id
from services.trainer.jobs.mirror import newest_point
from services.trainer.protocol import CHECKPOINTS_FOLDER, SPEC_FILE, encoder
from services.trainer.training.checkpoints import saved_points
from services.trainer.training.child import SignalledCommands, StopFlag
from tests.unit.trainer.test_trainer_loop import stop_after, train
from tests.unit.trainer.tiny import make_spec

DIE_WHILE_WRITING = """
import io, os, signal, sys
from pathlib import Path
import torch
from services.trainer.training import checkpoints
from services.trainer.training.child import main

torch.set_num_threads(1)
publish = checkpoints.publish_folder

def publish_or_die(staged, final):
    if final.name == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)
    publish(staged, final)

checkpoints.publish_folder = publish_or_die
main(Path(sys.argv[1]), lambda message: None, lambda: False, io.BytesIO())
"""


def test_process_killed_while_it_writes_a_resume_point_goes_on_from_the_one_before(
    tiny_base: Path, tmp_path: Path
) -> None:
    whole = train(make_spec(tiny_base, tmp_path / "a"), tmp_path / "a")
    folder = tmp_path / "b"
    spec = make_spec(tiny_base, folder)
    (folder / SPEC_FILE).write_bytes(encoder.encode(spec))
    command = [sys.executable, "-c", DIE_WHILE_WRITING, str(folder), "step-00000012"]
    assert subprocess.run(command, check=False, capture_output=True, timeout=120).returncode == -signal.SIGKILL
    points = folder / CHECKPOINTS_FOLDER
    assert (points / ".partial-12").is_dir()
    assert [point.name for point in saved_points(points)] == ["step-00000006"]
    rest = train(spec, folder)
    assert rest.curve() == whole.curve()
    assert rest.exports[-1].sha256 == whole.exports[-1].sha256
    assert not list(folder.rglob(".partial-*"))


def test_damaged_resume_point_is_replaced_when_its_step_comes_again(tiny_base: Path, tmp_path: Path) -> None:
    spec = make_spec(tiny_base, tmp_path, checkpoint_interval=4)
    train(spec, tmp_path, stop_after(8))
    newest = saved_points(tmp_path / CHECKPOINTS_FOLDER)[0]
    tensors = newest / "state.safetensors"
    size = tensors.stat().st_size
    os.truncate(tensors, size - 8)
    rest = train(spec, tmp_path, stop_after(3))
    assert [point.name[-2:] for point in saved_points(tmp_path / CHECKPOINTS_FOLDER)] == ["09", "08", "06"]
    assert tensors.stat().st_size == size
    assert rest.loop.position.step == 9


def test_job_goes_on_in_a_data_folder_that_has_moved(tiny_base: Path, tmp_path: Path) -> None:
    whole = train(make_spec(tiny_base, tmp_path / "a"), tmp_path / "a")
    train(make_spec(tiny_base, tmp_path / "b"), tmp_path / "b", stop_after(8))
    shutil.move(tmp_path / "b", tmp_path / "c")
    rest = train(make_spec(tiny_base, tmp_path / "c"), tmp_path / "c")
    assert [Path(exported.folder).parent for exported in rest.exports] == [tmp_path / "c" / "adapters"] * 2
    assert all(Path(exported.folder).is_dir() for exported in rest.loop.history.exports())
    assert str(tmp_path) not in (tmp_path / "c" / "exports.jsonl").read_text()
    assert rest.exports[-1].sha256 == whole.exports[-1].sha256


def test_progress_is_the_newest_resume_point(tiny_base: Path, tmp_path: Path) -> None:
    assert newest_point(tmp_path) == 0
    train(make_spec(tiny_base, tmp_path), tmp_path, stop_after(8))
    assert newest_point(tmp_path) == 8


def test_result_file_of_a_job_has_one_id(tmp_path: Path) -> None:
    assert result_file_id(tmp_path) == result_file_id(tmp_path)
    assert result_file_id(tmp_path).startswith("file-")


def test_weights_that_were_trained_further_are_other_weights(tiny_base: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_base, tmp_path / "b")
    assert weights_digest(tmp_path / "b") == weights_digest(tiny_base)
    [path] = (tmp_path / "b").glob("*.safetensors")
    with path.open("r+b") as handle:
        handle.seek(path.stat().st_size // 2)
        handle.write(b"\x01\x02\x03\x04")
    assert weights_digest(tmp_path / "b") != weights_digest(tiny_base)


@pytest.fixture
def flag() -> Iterator[StopFlag]:
    before = signal.getsignal(signal.SIGTERM)
    yield StopFlag()
    signal.signal(signal.SIGTERM, before)


def test_sigterm_ends_the_wait_for_a_command(flag: StopFlag) -> None:
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb") as pipe, os.fdopen(write_end, "wb") as writer:
        commands = SignalledCommands(pipe, flag)
        writer.write(b"one\n")
        writer.flush()
        assert commands.readline() == b"one\n"
        timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM))
        timer.start()
        assert commands.readline() == b"" and flag()
        timer.join()
        assert commands.readline() == b"", "and so it stays"
