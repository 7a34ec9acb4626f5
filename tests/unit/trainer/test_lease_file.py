"""A training process writes only while its worker's claim is the last one and has not run out."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from services.trainer.lease_file import LeaseFile, LeaseWatch, now_s
from shared.errors import LeaseLost


def test_held_lease_lets_pass_at_once(tmp_path: Path) -> None:
    LeaseFile(tmp_path, "a" * 32).write(now_s() + 60)
    begun = time.monotonic()
    LeaseWatch(tmp_path).hold()
    assert time.monotonic() - begun < 0.1


def test_lease_that_ran_out_is_waited_for(tmp_path: Path) -> None:
    file = LeaseFile(tmp_path, "a" * 32)
    file.write(now_s() - 1)
    watch, passed = LeaseWatch(tmp_path), threading.Event()

    def hold() -> None:
        watch.hold()
        passed.set()

    waiting = threading.Thread(target=hold)
    waiting.start()
    assert not passed.wait(0.5)
    file.write(now_s() + 60)
    assert passed.wait(2)
    waiting.join()


def test_lease_of_another_claim_ends_it_even_if_its_own_has_time_left(tmp_path: Path) -> None:
    LeaseFile(tmp_path, "a" * 32).write(now_s() + 60)
    watch = LeaseWatch(tmp_path)
    LeaseFile(tmp_path, "b" * 32).write(now_s() + 1)
    with pytest.raises(LeaseLost):
        watch.hold()


def test_folder_that_no_worker_fences_lets_pass(tmp_path: Path) -> None:
    LeaseWatch(tmp_path).hold()
