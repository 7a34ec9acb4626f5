"""One job on two processes: the numbers of one process, through the death of either, and one end for both."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import load_file

from services.trainer.jobs.mirror import newest_point
from services.trainer.launch.child_process import ChildProcess
from services.trainer.launch.group_launcher import RESTARTS
from services.trainer.launch.process_group import start_group
from services.trainer.protocol import (
    SPEC_FILE,
    Exported,
    Failed,
    Finish,
    Message,
    Metrics,
    Started,
    Stepped,
    Stopped,
    TrainSpec,
    encoder,
)
from shared.records import DEFAULT_PROJECT
from shared.schemas.options import EarlyStopping
from shared.settings import Settings
from shared.states import JobState
from tests.integration.trainer_stack import LONG, Client, TrainerProcess, with_client
from tests.unit.trainer.test_trainer_dpo import dpo_spec
from tests.unit.trainer.test_trainer_dpo import train as train_dpo
from tests.unit.trainer.test_trainer_kto import kto_spec
from tests.unit.trainer.test_trainer_kto import train as train_kto
from tests.unit.trainer.test_trainer_loop import train
from tests.unit.trainer.tiny import make_spec, training_rows

MEASURED = ("train_loss", "train_mean_token_accuracy", "grad_norm", "valid_loss", "full_valid_loss", "rewards_margin",
            "kl", "full_valid_rewards_chosen", "tokens", "supervised_tokens")  # fmt: skip
TOLERANCE = 1e-5


@pytest.fixture
def settings(tmp_path: Path, redis_url: str, tiny_base: Path) -> Settings:
    return Settings(
        data_dir=str(tmp_path / "data"), redis_url=redis_url, base_model=str(tiny_base), lora_rank=4,
        lease_ttl_s=2.0, threads=2, max_model_len=128, trainer_processes=2,
    )  # fmt: skip


@dataclass
class Together:
    """A run on two processes."""

    status: int = -1
    messages: list[Message] = field(default_factory=list)
    processes: set[int] = field(default_factory=set)

    def of(self, kind: type[Any]) -> list[Any]:
        return [message for message in self.messages if isinstance(message, kind)]

    def steps(self) -> dict[int, Metrics]:
        return {message.metrics.step: message.metrics for message in self.of(Stepped)}


def pick(group: ChildProcess) -> list[psutil.Process]:
    return psutil.Process(group.pid).children(recursive=True)


def launcher_of(running: Sequence[psutil.Process]) -> psutil.Process:
    parent = running[0].parent()
    assert parent is not None
    return parent


def train_together(
    spec: TrainSpec, folder: Path, interfere: Callable[[Message, Sequence[psutil.Process]], None] = lambda *_: None
) -> Together:
    """Run a job on two processes to its end; `interfere` gets each message, and the two."""

    async def run() -> Together:
        (folder / SPEC_FILE).write_bytes(encoder.encode(spec))
        run = Together()
        group = await start_group(folder, spec, Settings(threads=2, trainer_processes=2))
        try:
            async with asyncio.timeout(90):
                async for message in group.messages():
                    run.messages.append(message)
                    running = pick(group)
                    run.processes |= {process.pid for process in running}
                    interfere(message, running)
                    if isinstance(message, Exported) and message.final:
                        await group.send(Finish())
                run.status = await group.wait()
        finally:
            await group.kill()
            print((folder / "train.log").read_text())  # noqa: T201 - pytest shows it for a test that failed
        return run

    return asyncio.run(run())


def assert_same(together: Together, alone: Sequence[Metrics], exported: Exported) -> None:
    steps = together.steps()
    assert sorted(steps) == [metrics.step for metrics in alone]
    for metrics in alone:
        for name in MEASURED:
            expected = getattr(metrics, name)
            assert getattr(steps[metrics.step], name) == (
                None if expected is None else pytest.approx(expected, rel=TOLERANCE, abs=TOLERANCE)
            ), f"{name} at step {metrics.step}"
    [final] = [exported for exported in together.of(Exported) if exported.final]
    ours, theirs = (load_file(weights_of(each)) for each in (final, exported))
    assert set(ours) == set(theirs)
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=TOLERANCE)
    assert final.trained_tokens == exported.trained_tokens


def weights_of(exported: Exported) -> Path:
    [path] = Path(exported.folder).glob("*.safetensors")
    return path


def assert_gone(processes: set[int]) -> None:
    assert not [pid for pid in processes if psutil.pid_exists(pid)]


def test_two_processes_one_killed_mid_run_train_as_one_does(tiny_base: Path, tmp_path: Path) -> None:
    changes = {"checkpoint_interval": 4, "batch_size": 5, "evaluation_interval": 3}
    alone = train(make_spec(tiny_base, tmp_path / "a", **changes), tmp_path / "a")
    victims: list[int] = []
    addresses: set[str] = set()

    def kill(message: Message, running: Sequence[psutil.Process]) -> None:
        if isinstance(message, Started) and not message.n_restarts:
            sockets = [each for process in (launcher_of(running), *running) for each in process.net_connections("tcp")]
            addresses.update(each.laddr.ip.removeprefix("::ffff:") for each in sockets)
        if isinstance(message, Stepped) and message.metrics.step == 6 and not victims:
            victims.append(running[-1].pid)
            running[-1].kill()

    together = train_together(make_spec(tiny_base, tmp_path / "b", **changes), tmp_path / "b", kill)
    assert victims and together.status == 0
    assert addresses == {"127.0.0.1"}, "no other machine can reach the processes"
    started = [(each.n_processes, each.n_restarts, each.resumed_from_step) for each in together.of(Started)]
    assert started in [[(2, 0, 0), (2, 1, 5)], [(2, 0, 0), (2, 1, 4)], [(2, 0, 0), (2, 1, 8)]]
    assert_same(together, alone.steps, alone.exports[-1])
    assert_gone(together.processes)
    assert len(together.processes) == 4


def test_preferences_learnt_on_two_processes_are_saved_when_they_stop_and_learnt_on_by_one(
    tiny_base: Path, tmp_path: Path
) -> None:
    changes = {"learning_rate_multiplier": 4.0, "batch_size": 23, "n_epochs": 4}  # each epoch ends with a single pair
    alone = train_dpo(dpo_spec(tiny_base, tmp_path / "a", **changes), tmp_path / "a")

    def stop(message: Message, running: Sequence[psutil.Process]) -> None:
        if isinstance(message, Stepped) and message.metrics.step == 3:
            launcher_of(running).terminate()  # as the worker does

    spec = dpo_spec(tiny_base, tmp_path / "b", **changes)
    together = train_together(spec, tmp_path / "b", stop)
    [stopped] = together.of(Stopped)
    assert (together.status, together.of(Failed)) == (0, [])
    assert stopped.step == max(together.steps()) < 8
    assert newest_point(tmp_path / "b") == stopped.step
    assert_gone(together.processes)
    rest = train_dpo(spec, tmp_path / "b")
    together.messages += rest.messages
    assert_same(together, alone.steps, alone.exports[-1])


def test_every_weight_is_trained_in_shares_through_a_death_as_one_process_does(tiny_base: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"finetuning_type": "full", "checkpoint_interval": 4, "batch_size": 5}
    changes |= {"early_stopping": EarlyStopping(patience=3), "max_grad_norm": 0.5}
    alone = train(make_spec(tiny_base, tmp_path / "a", **changes), tmp_path / "a")
    victims: list[int] = []

    def kill(message: Message, running: Sequence[psutil.Process]) -> None:
        if isinstance(message, Stepped) and message.metrics.step == 6 and not victims:
            victims.append(running[0].pid)
            running[0].kill()

    together = train_together(make_spec(tiny_base, tmp_path / "b", **changes), tmp_path / "b", kill)
    assert victims and together.status == 0
    assert [each.n_restarts for each in together.of(Started)] == [0, 1]
    assert all(metrics.grad_norm > 0.5 for metrics in alone.steps), "clipping is part of what is compared"
    assert_same(together, alone.steps, alone.exports[-1])
    assert_gone(together.processes)


def test_preferences_are_learnt_in_shares_where_one_process_has_fewer_pieces(tiny_base: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"finetuning_type": "full", "batch_size": 3, "gradient_accumulation_steps": 3}
    alone = train_dpo(dpo_spec(tiny_base, tmp_path / "a", **changes), tmp_path / "a")
    together = train_together(dpo_spec(tiny_base, tmp_path / "b", **changes), tmp_path / "b")
    assert together.status == 0
    assert_same(together, alone.steps, alone.exports[-1])


@pytest.mark.parametrize("finetuning_type", ["lora", "full"])
def test_labels_are_learnt_in_shares_that_are_of_different_size(
    tiny_base: Path, tmp_path: Path, finetuning_type: str
) -> None:
    changes: dict[str, Any] = {
        "finetuning_type": finetuning_type, "batch_size": 3, "gradient_accumulation_steps": 3, "n_epochs": 1,
        "learning_rate_multiplier": 40.0,
    }  # fmt: skip
    alone = train_kto(kto_spec(tiny_base, tmp_path / "a", **changes), tmp_path / "a")
    together = train_together(kto_spec(tiny_base, tmp_path / "b", **changes), tmp_path / "b")
    assert together.status == 0
    assert any(metrics.kl for metrics in alone.steps)
    assert_same(together, alone.steps, alone.exports[-1])


def test_group_that_dies_again_and_again_is_given_up(tiny_base: Path, tmp_path: Path) -> None:
    def kill(message: Message, running: Sequence[psutil.Process]) -> None:
        if isinstance(message, Started):
            running[0].kill()

    together = train_together(make_spec(tiny_base, tmp_path), tmp_path, kill)
    [failed] = together.of(Failed)
    assert together.status == 1
    assert len(together.of(Started)) == RESTARTS + 1
    assert f"started {RESTARTS + 1} times" in failed.message and "SIGKILL" in failed.message
    assert "probably ran out of memory" in failed.message
    assert_gone(together.processes)


def test_failure_of_one_process_ends_both_with_one_message(tiny_base: Path, tmp_path: Path) -> None:
    spec = make_spec(tiny_base, tmp_path)
    (tmp_path / "adapters").write_text("no folder: the first process cannot export")
    together = train_together(spec, tmp_path)
    assert (together.status, len(together.of(Failed)), len(together.of(Started))) == (1, 1, 1)
    assert_gone(together.processes)


def launchers(trainer: TrainerProcess) -> list[psutil.Process]:
    """Find those that have the title of one; what a launcher has forked keeps it."""
    named = [child for child in trainer.children() if any("group_launcher" in word for word in child.cmdline())]
    return [child for child in named if child.parent() not in named]


def test_worker_s_job_succeeds_though_a_process_dies_and_a_cancelled_one_leaves_none(
    trainer: TrainerProcess, settings: Settings
) -> None:
    async def story(client: Client) -> None:
        rows = await client.upload(training_rows(24))
        job_id = await client.submit(rows, replace(LONG, batch_size=2, n_epochs=8))
        await client.reached(job_id, 3)
        [launcher] = launchers(trainer)
        together = launcher.children()
        assert len(together) == 2
        assert {process.nice() for process in together} == {launcher.nice()} != {0}
        together[0].send_signal(signal.SIGKILL)
        record = await client.ended(job_id)
        assert (record.status, record.error, record.attempts) == (JobState.SUCCEEDED, None, 1)
        assert await client.steps(job_id) == list(range(1, 97)), "each step is told once"
        told = await client.story(job_id)
        assert len([message for message in told if "2 processes that train this job died" in message]) == 1
        assert len([message for message in told if message.startswith("Before training")]) == 1

        cancelled = await client.submit(rows, replace(LONG, batch_size=2))
        await client.reached(cancelled, 2)
        [launcher] = launchers(trainer)
        together = launcher.children()
        await client.control.cancel(cancelled, project=DEFAULT_PROJECT)
        await client.released(cancelled)
        assert not [process for process in (launcher, *together) if process.is_running()]
        assert not trainer.children()

    with_client(settings, story)
