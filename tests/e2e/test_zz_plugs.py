"""A short run of the fault suite; `make faults` is the long one."""

from __future__ import annotations

from pathlib import Path

from tests.faults.plan import PROCESSES, Kind, draw
from tests.faults.run import run


def test_same_seed_draws_the_same_faults_and_every_kind_of_them() -> None:
    faults = draw(5, 200)
    assert faults == draw(5, 200) != draw(6, 200)
    assert {fault.kind for fault in faults} == set(Kind)
    assert {fault.target for fault in faults if fault.target} == set(PROCESSES)


def test_nothing_acknowledged_is_lost_or_doubled_when_plugs_are_pulled(tmp_path: Path) -> None:
    said: list[str] = []
    outcome = run(12, seed=18, n_clients=3, say=said.append, kept_logs=tmp_path / "logs")
    assert not outcome.wrong, "\n".join([*said, outcome.summary()])
    assert sum(outcome.pulled.values()) == 12
    assert outcome.ends["succeeded"] >= 3 and outcome.ledger.answers > 0, outcome.summary()
