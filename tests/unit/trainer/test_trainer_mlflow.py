"""A job's run on an MLflow server: every step once, the same run after a pause, and a server that is away."""

from __future__ import annotations

import io
from pathlib import Path

import msgspec

from services.trainer.protocol import Metrics, Stepped, encode_line
from services.trainer.tracking_child import main
from services.trainer.tracking_mlflow import MlflowRun
from services.trainer.tracking_protocol import Ended, MlflowOpened, MlflowTarget, Opened, TrackSpec, Trouble
from tests.fakes.mlflow import Mlflow


def track_spec(folder: Path, url: str) -> TrackSpec:
    target = MlflowTarget(tracking_uri=url, experiment="pets", name="first")
    config: dict[str, str | int | float | None] = {"n_epochs": 2, "model": "tiny"}
    return TrackSpec(job_id="ftjob-1", folder=str(folder), online=False, runs=[], tags=[], config=config, mlflow=target)


def step(number: int) -> Stepped:
    return Stepped(
        metrics=Metrics(
            step=number, total_steps=4, epoch=1, train_loss=1.0 / number, train_mean_token_accuracy=0.5, tokens=9,
            tokens_per_s=3.0, learning_rate=1e-4, grad_norm=1.0,
        )
    )  # fmt: skip


def follow(spec: TrackSpec, steps: range, *, failed: bool = False) -> list[object]:
    """Let the tracking process's code do one attempt at a job; returns what it reports."""
    said: list[object] = []
    lines = [spec, *map(step, steps), Ended(failed=failed)]
    main(io.BytesIO(b"".join(map(encode_line, lines))), said.append)
    return said


def test_every_attempt_writes_to_the_job_s_one_run(tmp_path: Path) -> None:
    with Mlflow() as server:
        spec = track_spec(tmp_path, server.url)
        opened = MlflowOpened(run_id="run0", experiment="pets")
        assert follow(spec, range(1, 3)) == [opened]
        assert follow(spec, range(3, 5), failed=True) == [opened]
        server.shutdown()
    [run] = server.runs.values()
    assert (run["run_name"], run["tags"]) == ("first", [{"key": "selftune.job_id", "value": "ftjob-1"}])
    assert run["experiment_id"] == server.experiments["pets"]
    assert run["status"] == ["RUNNING", "FINISHED", "RUNNING", "FAILED"]
    assert {(item["key"], item["value"]) for item in run["params"]} == {("n_epochs", "2"), ("model", "tiny")}
    losses = [(m["step"], m["value"]) for m in run["metrics"] if m["key"] == "train_loss"]
    assert losses == [(1, 1.0), (2, 0.5), (3, 1 / 3), (4, 0.25)]
    assert "total_steps" not in {metric["key"] for metric in run["metrics"]}


def test_server_that_is_away_gets_the_steps_when_it_is_back(tmp_path: Path) -> None:
    with Mlflow() as server:
        port = server.server_port
        server.shutdown()
    spec = track_spec(tmp_path, f"http://127.0.0.1:{port}")
    assert spec.mlflow is not None
    said: list[Opened | MlflowOpened | Trouble] = []
    run = MlflowRun(spec, spec.mlflow, said.append)
    run.open()
    run.log(step(1))
    [trouble] = said
    assert isinstance(trouble, Trouble) and trouble.target == "MLflow" and "127.0.0.1" not in trouble.message
    with Mlflow(port) as server:
        run.log(step(2))
        run.finish(0)
        server.shutdown()
    [stored] = server.runs.values()
    assert [m["step"] for m in stored["metrics"] if m["key"] == "train_loss"] == [1, 2]
    assert stored["status"] == ["RUNNING", "FINISHED"]
    assert msgspec.to_builtins(said[-1]) == {"type": "mlflow_opened", "run_id": "run0", "experiment": "pets"}
