"""The trainer process on a real Valkey: a job's whole way, cancelled, killed, stopped, fed with bad files."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

from shared.adapters import verify_adapter
from shared.records import DEFAULT_PROJECT, ReplicaRecord, Residency
from shared.schemas.methods import SupervisedHyperparameters
from shared.settings import Settings
from shared.states import JobState
from shared.store.jobs import event
from tests.integration.trainer_stack import BASE_ID, DEADLINE_S, LONG, SHORT, Client, TrainerProcess, with_client
from tests.unit.trainer.tiny import training_rows


def test_job_succeeds_without_a_replica_and_says_that_serving_is_pending(
    lasting_trainer: TrainerProcess, lasting_settings: Settings, tiny_base: Path
) -> None:
    async def story(client: Client) -> None:
        training, validation = await client.upload(training_rows(24)), await client.upload(training_rows(6))
        job_id = await client.submit(training, validation_file=validation)
        record = await client.ended(job_id)
        assert (record.status, record.error) == (JobState.SUCCEEDED, None)
        assert record.fine_tuned_model == record.model_name and record.finished_at and record.trained_tokens
        assert record.resolved == SHORT

        told = await client.story(job_id)
        assert told.pop(2).startswith("Training is expected to need about ")
        assert told[:4] == [
            f"Created fine-tuning job: {job_id}",
            f"Validating training file: {training} and validation file: {validation}",
            "Files validated, moving job to queued state",
            "Fine-tuning job started",
        ]
        assert told[4].startswith("Before training: full validation loss=") and "memory is ample" in told[4]
        told = told[1:]
        assert told[4].startswith("Step 1/6: training loss=") and "validation loss=" in told[4]
        assert "full validation loss=" in told[6]
        assert told[7].startswith("Checkpoint created at step 3 with Snapshot ID: ft:tiny-llama:selftune:t:")
        assert told[11].startswith(f"{record.model_name} is published but not served yet: no inference server")
        assert told[12:] == [
            f"New fine-tuned model created: {record.model_name}", "The job has successfully completed",
        ]  # fmt: skip

        checkpoints = await client.stores.jobs.checkpoints(job_id)
        assert [checkpoint.step_number for checkpoint in checkpoints] == [6, 3]
        assert checkpoints[0].fine_tuned_model_checkpoint == record.model_name
        assert checkpoints[0].metrics.full_valid_loss is not None
        named = {checkpoint.fine_tuned_model_checkpoint for checkpoint in checkpoints}
        assert await client.models_of(job_id) == named
        adapter = await client.stores.registry.get(record.model_name)
        assert adapter is not None
        folder = lasting_settings.home / adapter.folder
        verify_adapter(folder, base_folder=tiny_base, base_id=BASE_ID, max_rank=4, expected_sha256=adapter.sha256)

        [result_id] = record.result_files
        result = await client.stores.files.get(result_id, project=DEFAULT_PROJECT)
        assert not client.stores.paths.unrecorded_mark(result_id).exists()
        lines = client.stores.paths.file_content(result_id).read_text().splitlines()
        assert (result.filename, result.purpose) == ("step_metrics.csv", "fine-tune-results")
        assert lines[0] == "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy" and len(lines) == 7

    with_client(lasting_settings, story)


def test_cancelled_job_stops_within_five_seconds_and_publishes_nothing(
    lasting_trainer: TrainerProcess, lasting_settings: Settings
) -> None:
    async def story(client: Client) -> None:
        job_id = await client.submit(await client.upload(training_rows(40)), LONG)
        await client.reached(job_id, 5)
        started = time.monotonic()
        await client.stores.jobs.finish(job_id, JobState.CANCELLED, events=[event("cancelled")])

        async def quiet() -> bool:
            return not lasting_trainer.children()

        await client.until(quiet, "the end of the training process")
        assert time.monotonic() - started < 5
        second = await client.submit(await client.upload(training_rows(12)))
        assert (await client.ended(second)).status is JobState.SUCCEEDED
        assert (await client.stores.jobs.get(job_id)).status is JobState.CANCELLED
        assert await client.models_of(second) and not await client.models_of(job_id)
        points = client.stores.paths.job_folder(job_id) / "checkpoints"

        async def dropped() -> bool:
            return not points.exists()

        await client.until(dropped, "the end of its resume points")

    with_client(lasting_settings, story)


def test_job_of_a_killed_worker_goes_on_from_its_checkpoint(
    lasting_trainer: TrainerProcess, lasting_settings: Settings
) -> None:
    async def story(client: Client) -> None:
        many = SupervisedHyperparameters(n_epochs=30, batch_size=2, learning_rate_multiplier=1.0)
        job_id = await client.submit(await client.upload(training_rows(24)), many)
        await client.reached(job_id, 30)
        orphans = lasting_trainer.children()
        lasting_trainer.signal(signal.SIGKILL)
        psutil.wait_procs(orphans, timeout=5)
        assert not any(orphan.is_running() for orphan in orphans), "the training process outlived its worker"
        lasting_trainer.start()
        record = await client.ended(job_id)
        assert (record.status, record.attempts) == (JobState.SUCCEEDED, 1), "a death after progress does not count"
        assert record.reached_step >= 24
        assert "Fine-tuning job resumed" in await client.story(job_id)
        assert await client.steps(job_id) == list(range(1, 361)), "each step is told once"
        metrics = (client.stores.paths.job_folder(job_id) / "train.log").read_text()
        assert "Traceback" not in metrics

    with_client(lasting_settings, story)


def test_stopped_worker_hands_its_job_back(lasting_trainer: TrainerProcess, lasting_settings: Settings) -> None:
    async def story(client: Client) -> None:
        job_id = await client.submit(await client.upload(training_rows(40)), LONG)
        await client.reached(job_id, 5)
        started = time.monotonic()
        lasting_trainer.signal(signal.SIGTERM)
        assert time.monotonic() - started < 6
        record = await client.stores.jobs.get(job_id)
        assert (record.status, record.attempts) == (JobState.QUEUED, 0)
        assert not await client.stores.leases.held(job_id)
        assert lasting_trainer.id not in {worker.id for worker in await client.stores.presence.workers()}
        step = (await client.steps(job_id))[-1]
        lasting_trainer.start()
        await client.reached(job_id, step + 1)
        await client.stores.jobs.finish(job_id, JobState.CANCELLED)

    with_client(lasting_settings, story)


def test_job_goes_on_when_its_process_is_killed_and_fails_with_the_signal_the_third_time(
    lasting_trainer: TrainerProcess, lasting_settings: Settings
) -> None:
    async def story(client: Client) -> None:
        job_id = await client.submit(await client.upload(training_rows(400)), LONG)
        for _ in range(3):
            await client.reached(job_id, 3)
            while not (found := lasting_trainer.children()):
                await asyncio.sleep(0.05)
            for child in found:
                child.kill()
                child.wait(10)
        record = await client.ended(job_id)
        warnings = [message for message in await client.story(job_id) if "goes on from its last checkpoint" in message]
        assert len(warnings) == 2 and all("killed by signal 9" in warning for warning in warnings)
        assert record.status is JobState.FAILED and record.error is not None
        assert record.error.code == "training_failed"
        assert "killed by signal 9 (SIGKILL)" in record.error.message
        assert "set selftune.quantization to nf4" in record.error.message

    with_client(lasting_settings, story)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "The file is empty."),
        (b"\xff\xfe{}\n" * 12, "line 1: not UTF-8 at byte 0. 12 of 12 lines are invalid."),
        (b'{"messages": []}\n' * 12, "line 1: "),
    ],
    ids=["empty", "not utf-8", "no messages"],
)
def test_bad_training_file_fails_the_job(
    lasting_trainer: TrainerProcess, lasting_settings: Settings, content: bytes, message: str
) -> None:
    async def story(client: Client) -> None:
        record = await client.ended(await client.submit(await client.upload(content)))
        assert record.status is JobState.FAILED and record.error is not None
        assert (record.error.code, record.error.param) == ("invalid_training_file", "training_file")
        assert message in record.error.message

    with_client(lasting_settings, story)


def test_rows_over_the_model_s_length_fail_the_job_with_their_lines(
    lasting_trainer: TrainerProcess, lasting_settings: Settings
) -> None:
    async def story(client: Client) -> None:
        rows = training_rows(12)
        rows[4]["messages"][0]["content"] = "dog " * 200
        record = await client.ended(await client.submit(await client.upload(rows)))
        assert record.error is not None and record.error.code == "invalid_training_file"
        assert "line 5: " in record.error.message and "more than the 128" in record.error.message

    with_client(lasting_settings, story)


def test_job_that_was_never_queued_is_found_and_done(
    lasting_trainer: TrainerProcess, lasting_settings: Settings
) -> None:
    async def story(client: Client) -> None:
        async def lose_the_message(_job_id: str, **_place: object) -> None:
            return

        client.stores.queue.validate = lose_the_message  # type: ignore[method-assign,assignment]
        job_id = await client.submit(await client.upload(training_rows(12)))
        assert (await client.ended(job_id)).status is JobState.SUCCEEDED

    with_client(lasting_settings, story)


def test_model_that_no_server_can_load_fails_the_job(
    lasting_trainer: TrainerProcess, lasting_settings: Settings
) -> None:
    async def story(client: Client) -> None:
        replica = ReplicaRecord(id="r1", url="http://127.0.0.1:9", base=BASE_ID, state="ready")
        await client.stores.presence.beat_replica(replica, ttl_s=DEADLINE_S)
        job_id = await client.submit(await client.upload(training_rows(12)))
        name = (await client.stores.jobs.get(job_id)).model_name
        await client.stores.registry.acknowledge("r1", {name: Residency(state="failed", reason="too big")})
        record = await client.ended(job_id)
        assert record.status is JobState.FAILED and record.error is not None
        assert record.error.code == "not_servable" and "too big" in record.error.message
        assert await client.stores.registry.get(name) is None

    with_client(lasting_settings, story)


class LyingReplica(ThreadingHTTPServer):
    """Streams completions like the real server's, with log probabilities of some other model."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            chunk = b'data: {"choices": [{"token_ids": [9], "logprobs": {"token_logprobs": [-0.01]}}]}\n\n'
            self.wfile.write(chunk * 8 + b"data: [DONE]\n\n")

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), self.Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


def test_model_that_answers_differently_fails_the_job(
    lasting_trainer: TrainerProcess, lasting_settings: Settings
) -> None:
    async def story(client: Client) -> None:
        with LyingReplica() as server:
            replica = ReplicaRecord(id="r1", url=server.url, base=BASE_ID, state="ready")
            await client.stores.presence.beat_replica(replica, ttl_s=DEADLINE_S)
            job_id = await client.submit(await client.upload(training_rows(12)))
            name = (await client.stores.jobs.get(job_id)).model_name
            await client.stores.registry.acknowledge("r1", {name: Residency(state="warm")})
            record = await client.ended(job_id)
            server.shutdown()
        assert record.status is JobState.FAILED and record.error is not None
        assert record.error.code == "parity_mismatch" and "0.02 is allowed" in record.error.message
        assert record.fine_tuned_model is None
        assert await client.stores.registry.get(name) is None
        assert await client.models_of(job_id) == set()

    with_client(lasting_settings, story)


def test_heartbeat_says_what_the_trainer_does(lasting_trainer: TrainerProcess, lasting_settings: Settings) -> None:
    async def story(client: Client) -> None:
        async def idle() -> bool:
            return any(worker.state == "idle" for worker in await client.stores.presence.workers())

        await client.until(idle, "an idle trainer")
        job_id = await client.submit(await client.upload(training_rows(40)), LONG)
        await client.reached(job_id, 1)

        async def training() -> bool:
            workers = await client.stores.presence.workers()
            return [(worker.state, worker.job_id) for worker in workers] == [("training", job_id)]

        await client.until(training, "a heartbeat of the training worker")
        await client.stores.jobs.finish(job_id, JobState.CANCELLED)

    with_client(lasting_settings, story)


def test_worker_process_imports_no_model_library() -> None:
    code = (
        "import sys, services.trainer.__main__\n"
        "print(sorted({'torch', 'transformers', 'peft', 'tokenizers', 'numpy'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "[]"
