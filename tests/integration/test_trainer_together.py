"""A trainer that takes several jobs on one base at a time."""

from __future__ import annotations

import signal
from pathlib import Path

from shared.schemas.methods import SupervisedHyperparameters
from shared.settings import Settings
from shared.states import JobState
from shared.store.jobs import event
from tests.integration.trainer_stack import LONG, SHORT, Client, TrainerProcess, with_client
from tests.unit.trainer.tiny import training_rows


def test_jobs_share_a_process_and_nothing_else(settings: Settings, tmp_path: Path) -> None:
    trainer = TrainerProcess(settings, tmp_path / "trainer.log")
    trainer.start(SELFTUNE_JOBS_TOGETHER="3")

    async def story(client: Client) -> None:
        rows = await client.upload(training_rows(400))
        long, cancelled = [await client.submit(rows, LONG) for _ in range(2)]
        for job_id in (long, cancelled):
            await client.reached(job_id, 2)
        assert len(trainer.children()) == 1
        few = await client.upload(training_rows(16))
        diverging = await client.submit(
            few, SupervisedHyperparameters(n_epochs=2, batch_size=8, learning_rate_multiplier=1e38)
        )
        assert (await client.ended(diverging)).status is JobState.FAILED
        await client.stores.jobs.finish(cancelled, JobState.CANCELLED, events=[event("cancelled")])
        await client.released(cancelled)
        paused = await client.submit(few, LONG)
        await client.reached(paused, 2)
        await client.pause(paused)
        await client.released(paused)
        short = await client.submit(few, SHORT)
        done = await client.ended(short)
        assert done.status is JobState.SUCCEEDED
        assert (await client.stores.jobs.get(long)).status is JobState.RUNNING
        for process in trainer.children():
            process.kill()
        step = (await client.steps(long))[-1]
        await client.reached(long, step + 1)
        assert (await client.stores.jobs.get(paused)).status is JobState.PAUSED
        trainer.signal(signal.SIGTERM)
        assert (await client.stores.jobs.get(long)).status is JobState.QUEUED

    try:
        with_client(settings, story)
    finally:
        if trainer.process is not None and trainer.process.poll() is None:
            trainer.signal(signal.SIGTERM)
        print(trainer.log.read_text())  # noqa: T201
