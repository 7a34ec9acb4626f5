"""Weights & Biases on a real trainer, with the real wandb: offline, out of reach, and broken."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

from shared.schemas.integrations import JobIntegration, WandbRun
from shared.schemas.methods import SupervisedHyperparameters
from shared.settings import Settings
from shared.states import JobState
from tests.integration.trainer_stack import Client, TrainerProcess, running_trainer, with_client
from tests.unit.trainer.tiny import training_rows

MANY = SupervisedHyperparameters(n_epochs=20, batch_size=2, learning_rate_multiplier=1.0)
INTEGRATION = JobIntegration(wandb=WandbRun(project="pets", name="first", entity="team", tags=["a"]))


BLOCK_BYTES = 32768
HEADER = struct.Struct("<IHB")  # checksum, length, kind of a piece; an ident of the same size leads the file
LAST_PIECES = {1, 4}  # a record in one piece, the last piece of a record


def pieces(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Take a log in LevelDB's format apart into pieces of records."""
    offset = HEADER.size
    while offset + HEADER.size <= len(data):
        left = BLOCK_BYTES - offset % BLOCK_BYTES
        if left < HEADER.size:  # too small for another piece, filled with zeros
            offset += left
            continue
        _, length, kind = HEADER.unpack_from(data, offset)
        offset += HEADER.size
        yield kind, data[offset : offset + length]
        offset += length


def records(folder: Path) -> list[Any]:
    """Read what a run's file holds."""
    [path] = folder.glob("*.wandb")
    data = path.read_bytes()
    assert data.startswith(b":W&B")
    found, record = [], b""
    for kind, piece in pieces(data):
        record += piece
        if kind in LAST_PIECES:
            found.append(wandb_internal_pb2.Record.FromString(record))
            record = b""
    return found


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the steps in a run's file."""
    return [
        {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records(folder)
        if record.WhichOneof("record_type") == "history"
    ]


async def warnings(client: Client, job_id: str) -> list[str]:
    page, _ = await client.stores.jobs.events(job_id, limit=1000)
    return [told.message for told in reversed(page) if told.level == "warn" and "Weights" in told.message]


def test_offline_run_holds_every_step_across_a_pause(
    lasting_trainer: TrainerProcess, lasting_settings: Settings
) -> None:
    async def story(client: Client) -> None:
        rows, held_out = await client.upload(training_rows(24)), await client.upload(training_rows(6))
        job_id = await client.submit(rows, MANY, held_out, integrations=[INTEGRATION])
        await client.reached(job_id, 20)
        await client.pause(job_id)
        await client.released(job_id)
        await client.resume(job_id)
        record = await client.ended(job_id)
        assert (record.status, await warnings(client, job_id)) == (JobState.SUCCEEDED, [])
        assert [(i.wandb.run_id, i.wandb.project) for i in record.integrations] == [(job_id, "pets")]
        told = await client.story(job_id)
        assert told.count(f"Weights & Biases: run {job_id} is kept in files for `wandb sync`") == 2

        folders = sorted((client.stores.paths.job_folder(job_id) / "wandb").glob(f"offline-run-*-{job_id}"))
        assert len(folders) == 2, "one for each attempt, with one run's id"
        steps = [step for folder in folders for step in metrics(folder)]
        page, _ = await client.stores.jobs.events(job_id, limit=1000)
        events = [told.data for told in reversed(page) if told.type == "metrics"]
        assert len(events) == 240
        assert [{name: step[name] for name in told} for step, told in zip(steps, events, strict=True)] == events
        assert {"train_loss", "train_mean_token_accuracy", "learning_rate", "valid_loss", "full_valid_loss"} <= {
            name for step in steps for name in step
        }
        [run] = [r.run for r in records(folders[0]) if r.WhichOneof("record_type") == "run"][:1]
        assert (run.project, run.display_name, run.entity, run.run_id) == ("pets", "first", "team", job_id)
        assert "a" in run.tags and f"selftune/{job_id}" in run.tags
        assert not list(client.stores.paths.job_folder(job_id).rglob("requirements.txt"))

    with_client(lasting_settings, story)


def test_server_out_of_reach_is_a_warning_and_the_run_is_kept(settings: Settings, tmp_path: Path) -> None:
    async def story(client: Client) -> None:
        job_id = await client.submit(await client.upload(training_rows(24)), integrations=[INTEGRATION])
        record = await client.ended(job_id)
        assert (record.status, record.error) == (JobState.SUCCEEDED, None)
        [warning] = await warnings(client, job_id)
        assert warning.startswith("Weights & Biases: a run could not be opened online: ")
        [folder] = (client.stores.paths.job_folder(job_id) / "wandb").glob(f"offline-run-*-{job_id}")
        assert [step["step"] for step in metrics(folder)] == list(range(1, 7))

    with running_trainer(
        settings, tmp_path, WANDB_API_KEY="a" * 40, WANDB_BASE_URL="http://127.0.0.1:9", WANDB_INIT_TIMEOUT="2"
    ):
        with_client(settings, story)


def test_death_of_the_process_is_a_warning_and_training_goes_on(
    lasting_trainer: TrainerProcess, lasting_settings: Settings
) -> None:
    async def story(client: Client) -> None:
        job_id = await client.submit(await client.upload(training_rows(24)), MANY, integrations=[INTEGRATION])
        await client.reached(job_id, 3)
        [process] = [
            child for child in lasting_trainer.children() if "services.trainer.tracking.child" in child.cmdline()
        ]
        process.kill()
        assert (await client.ended(job_id)).status is JobState.SUCCEEDED
        assert await warnings(client, job_id) == [
            "Weights & Biases: the process that writes there has ended with status -9; the training goes on without it"
        ]

    with_client(lasting_settings, story)


def test_job_without_integrations_starts_no_such_process(
    lasting_trainer: TrainerProcess, lasting_settings: Settings
) -> None:
    async def story(client: Client) -> None:
        job_id = await client.submit(await client.upload(training_rows(24)), MANY)
        await client.reached(job_id, 3)
        assert not [
            child for child in lasting_trainer.children() if "services.trainer.tracking.child" in child.cmdline()
        ]
        assert (await client.ended(job_id)).status is JobState.SUCCEEDED
        assert not (client.stores.paths.job_folder(job_id) / "wandb").exists()

    with_client(lasting_settings, story)


def test_host_that_may_not_be_called_keeps_the_run_in_files(settings: Settings, tmp_path: Path) -> None:
    async def story(client: Client) -> None:
        job_id = await client.submit(await client.upload(training_rows(24)), integrations=[INTEGRATION])
        assert (await client.ended(job_id)).status is JobState.SUCCEEDED
        [warning] = await warnings(client, job_id)
        assert warning.startswith("Weights & Biases: the runs are kept in files: its host 'api.wandb.ai' is none of")
        assert f"Weights & Biases: run {job_id} is kept in files for `wandb sync`" in await client.story(job_id)

    with running_trainer(settings, tmp_path, WANDB_API_KEY="a" * 40, SELFTUNE_OUTGOING_HOSTS='["none"]'):
        with_client(settings, story)
