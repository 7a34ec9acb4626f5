"""What a probe is told of a host's trainer."""

from __future__ import annotations

import pytest

from services.trainer.health import explain, main
from shared.records import WorkerRecord

IDLE = WorkerRecord(id="trainer-7f9-1", state="idle")
PREPARING = WorkerRecord(id="trainer-7f9-1", state="preparing", reason="preparing base model")
ELSEWHERE = WorkerRecord(id="trainer-7f9-2-1", state="idle")


@pytest.mark.parametrize("state", ["idle", "training", "draining"])
def test_trainer_that_has_its_base_is_well(state: str) -> None:
    worker = WorkerRecord(id="trainer-7f9-12", state=state)  # type: ignore[arg-type]
    assert explain([ELSEWHERE, worker], "trainer-7f9", only_alive=False) == ""


def test_trainer_that_prepares_is_alive_and_not_ready() -> None:
    assert explain([PREPARING], "trainer-7f9", only_alive=False) == "preparing base model"
    assert explain([PREPARING], "trainer-7f9", only_alive=True) == ""


def test_another_hosts_trainer_does_not_count() -> None:
    for only_alive in (True, False):
        assert explain([ELSEWHERE], "trainer-7f9", only_alive=only_alive) == "no trainer of trainer-7f9 has a heartbeat"


def test_one_that_is_ready_is_enough() -> None:
    assert explain([PREPARING, IDLE], "trainer-7f9", only_alive=False) == ""


def test_while_the_database_is_away_a_trainer_may_be_alive_and_is_not_ready(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SELFTUNE_REDIS_URL", "unix:///nowhere.sock")
    assert main(["--alive"]) == 0
    assert main([]) == 1
    assert "database" in capsys.readouterr().err


def test_other_arguments_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--life"]) == 2
    assert "--alive" in capsys.readouterr().err
