"""A training process writes only while its worker's claim is the last one and has not run out."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from services.trainer.lease_file import CLAIM_VARIABLE, LeaseFile, LeaseWatch, now_s
from shared.errors import LeaseLost


def test_held_lease_lets_pass_at_once(tmp_path: Path) -> None:
    LeaseFile(tmp_path, "1-aa").write(now_s() + 60)
    begun = time.monotonic()
    LeaseWatch(tmp_path).hold()
    assert time.monotonic() - begun < 0.1


def test_lease_that_ran_out_is_waited_for(tmp_path: Path) -> None:
    file = LeaseFile(tmp_path, "1-aa")
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
    LeaseFile(tmp_path, "1-aa").write(now_s() + 60)
    watch = LeaseWatch(tmp_path)
    LeaseFile(tmp_path, "2-bb").write(now_s() + 1)
    with pytest.raises(LeaseLost):
        watch.hold()


def test_worker_that_was_replaced_cannot_take_the_file_back(tmp_path: Path) -> None:
    replaced, later = LeaseFile(tmp_path, "9-aa"), LeaseFile(tmp_path, "10-bb")
    replaced.write(now_s() + 60)
    later.write(now_s() + 60)
    with pytest.raises(LeaseLost):
        replaced.write(now_s() + 60)
    LeaseWatch(tmp_path).hold()
    assert (tmp_path / ".lease").read_text().endswith(" 10-bb\n")


def test_process_of_an_earlier_claim_does_not_take_a_later_one_for_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    LeaseFile(tmp_path, "2-bb").write(now_s() + 60)
    monkeypatch.setenv(CLAIM_VARIABLE, "1-aa")
    with pytest.raises(LeaseLost):
        LeaseWatch(tmp_path).hold()


def test_folder_that_no_worker_fences_lets_pass(tmp_path: Path) -> None:
    LeaseWatch(tmp_path).hold()
