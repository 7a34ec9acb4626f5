"""Several jobs in one process: each as if it were alone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import torch

from services.trainer.jobs.places import Places
from services.trainer.launch.shared_process import SharedChildProcess, SharedProcess
from services.trainer.protocol import SPEC_FILE, Exported, Finish, Message, Stepped, Stopped, TrainSpec, encoder
from services.trainer.training.bases import SharedBases
from services.trainer.training.model import build_model
from shared.settings import Settings
from tests.unit.trainer.test_trainer_loop import train
from tests.unit.trainer.tiny import make_spec, preference_rows, write_rows


def specs(base: Path, folder: Path) -> list[TrainSpec]:
    """Jobs that differ in everything that could leak from one to the other; dropout draws random numbers."""
    pairs = write_rows(folder / "pairs.jsonl", preference_rows(16))
    kinds: list[dict[str, Any]] = [
        {"dropout": 0.2, "seed": 1},
        {"dropout": 0.2, "seed": 2, "rank": 8},
        {"seed": 3, "neftune_noise_alpha": 5.0, "n_epochs": 2},
        {"seed": 4, "method": "dpo", "training_path": str(pairs), "validation_path": None},
    ]
    return [make_spec(base, folder / str(number), **kind) for number, kind in enumerate(kinds)]


def prepared(spec: TrainSpec, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SPEC_FILE).write_bytes(encoder.encode(spec))
    return folder


async def heard(process: SharedChildProcess) -> list[Message]:
    messages: list[Message] = []
    async for message in process.messages():
        messages.append(message)
        if isinstance(message, Exported) and message.final:
            await process.send(Finish())
    await process.stop()
    return messages


def curve(messages: list[Message]) -> list[tuple[float, float, float | None]]:
    steps = [message.metrics for message in messages if isinstance(message, Stepped)]
    return [(step.train_loss, step.grad_norm, step.full_valid_loss) for step in steps]


def adapters(messages: list[Message]) -> list[str]:
    return [message.sha256 for message in messages if isinstance(message, Exported)]


@contextmanager
def shared() -> Iterator[SharedProcess]:
    before = set(psutil.Process().children(recursive=True))
    yield SharedProcess(Settings(threads=1))
    assert (
        not {p for p in psutil.Process().children(recursive=True) if "shared_child" in " ".join(p.cmdline())} - before
    )


def test_every_job_gets_what_it_would_get_alone(tiny_base: Path, tmp_path: Path) -> None:
    async def together(jobs: list[TrainSpec]) -> list[list[Message]]:
        with shared() as process:
            members = [await process.join(prepared(job, tmp_path / "with" / job.job_id)) for job in jobs]
            assert len({member.pid for member in members}) == 1
            return await asyncio.gather(*map(heard, members))

    async def alone(job: TrainSpec) -> list[Message]:
        with shared() as process:
            return await heard(await process.join(prepared(job, tmp_path / "alone" / job.job_id)))

    def jobs(folder: Path) -> list[TrainSpec]:
        folder.mkdir()
        return [msgspec.structs.replace(s, job_id=f"job-{n}") for n, s in enumerate(specs(tiny_base, folder))]

    found = asyncio.run(together(jobs(tmp_path / "a")))
    for messages, job in zip(found, jobs(tmp_path / "b"), strict=True):
        by_itself = asyncio.run(alone(job))
        assert curve(messages) == curve(by_itself) != []
        assert adapters(messages) == adapters(by_itself)


def test_a_job_in_company_gets_what_a_process_of_its_own_gives(tiny_base: Path, tmp_path: Path) -> None:
    spec = make_spec(tiny_base, tmp_path / "a", dropout=0.2)

    async def in_company() -> list[Message]:
        with shared() as process:
            other = await process.join(prepared(make_spec(tiny_base, tmp_path / "b", seed=9), tmp_path / "b"))
            this = await process.join(prepared(spec, tmp_path / "a"))
            found, _ = await asyncio.gather(heard(this), heard(other))
            return found

    messages = asyncio.run(in_company())
    run = train(make_spec(tiny_base, tmp_path / "c", dropout=0.2), tmp_path / "c")
    assert curve(messages) == [(step.train_loss, step.grad_norm, step.full_valid_loss) for step in run.steps]


def test_one_that_stops_or_fails_leaves_the_others_alone(tiny_base: Path, tmp_path: Path) -> None:
    async def story() -> None:
        with shared() as process:
            long = await process.join(prepared(make_spec(tiny_base, tmp_path / "a", n_epochs=500), tmp_path / "a"))
            bad = await process.join(prepared(make_spec(tmp_path / "none", tmp_path / "b"), tmp_path / "b"))
            good = await process.join(prepared(make_spec(tiny_base, tmp_path / "c"), tmp_path / "c"))
            failed, done = await asyncio.gather(heard(bad), heard(good))
            assert [type(message).__name__ for message in failed] == ["Failed"]
            assert len(curve(done)) == 12 and adapters(done)
            long.ask_to_stop()
            stopped = [message async for message in long.messages()]
            assert isinstance(stopped[-1], Stopped) and stopped[-1].step == len(curve(stopped)) < 2000
            assert await long.wait() == 0
            await long.stop()

    asyncio.run(story())


def test_death_of_the_process_is_each_one_s_death(tiny_base: Path, tmp_path: Path) -> None:
    async def story() -> None:
        with shared() as process:
            jobs = [make_spec(tiny_base, tmp_path / name, n_epochs=500) for name in "ab"]
            members = [await process.join(prepared(job, tmp_path / name)) for job, name in zip(jobs, "ab", strict=True)]
            await asyncio.gather(*(anext(aiter(member.messages())) for member in members))
            psutil.Process(members[0].pid).kill()
            assert [await member.wait() for member in members] == [-9, -9]
            for member in members:
                await member.stop()
            third = await process.join(prepared(make_spec(tiny_base, tmp_path / "c"), tmp_path / "c"))
            assert len(curve(await heard(third))) == 12, "a new process takes the next"

    asyncio.run(story())


def test_one_base_is_in_memory_once(tiny_base: Path, tmp_path: Path) -> None:
    bases = SharedBases()
    models = [build_model(make_spec(tiny_base, tmp_path / str(seed), seed=seed), load=bases) for seed in (1, 2)]
    places = [{p.data_ptr() for name, p in model.module.named_parameters() if "lora_" not in name} for model in models]
    assert places[0] == places[1]
    assert not any(model.plain_because for model in models)
    adapters = [torch.cat([p.flatten() for p in model.trainable().values()]) for model in models]
    assert not torch.equal(*adapters)


def test_nobody_overtakes_a_job_that_waits() -> None:
    order: list[str] = []

    async def job(places: Places, name: str, key: str | None, ends: asyncio.Event) -> None:
        await places.enter(key)
        order.append(name)
        await ends.wait()
        order.append(f"-{name}")
        await places.leave()

    async def story() -> None:
        places, ends = Places(2), {name: asyncio.Event() for name in "abcdefg"}
        keys = {"a": "x", "b": "x", "c": "x", "d": "y", "e": "x", "f": None, "g": "x"}
        tasks = {}
        for name, key in keys.items():
            tasks[name] = asyncio.create_task(job(places, name, key, ends[name]))
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        assert order == ["a", "b"], "no more than two, with one key"
        tasks["d"].cancel()
        with suppress(asyncio.CancelledError):
            await tasks["d"]
        for name in "abcefg":
            ends[name].set()
            await asyncio.sleep(0.01)
        assert order == ["a", "b", "-a", "c", "-b", "e", "-c", "-e", "f", "-f", "g", "-g"]

    asyncio.run(story())


@pytest.mark.parametrize("together", [0, -1])
def test_setting_has_a_lower_bound(together: int) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"jobs_together": together}, Settings)
