"""A job's run on an MLflow server: every step once, the same run after a pause, and a server that is away."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import msgspec

from services.trainer.protocol import Metrics, Stepped, encode_line
from services.trainer.tracking.child import main
from services.trainer.tracking.mlflow import MlflowRun
from services.trainer.tracking.protocol import Ended, MlflowOpened, MlflowTarget, Opened, Outcome, TrackSpec, Trouble
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


def follow(spec: TrackSpec, steps: range, outcome: Outcome = "finished") -> list[object]:
    """Let the tracking process's code do one attempt at a job; returns what it reports."""
    said: list[object] = []
    lines = [spec, *map(step, steps), Ended(outcome=outcome)]
    main(io.BytesIO(b"".join(map(encode_line, lines))), said.append)
    return said


def test_every_attempt_writes_to_the_job_s_one_run(tmp_path: Path) -> None:
    with Mlflow() as server:
        spec = track_spec(tmp_path, server.url)
        opened = MlflowOpened(run_id="run0", experiment="pets")
        assert follow(spec, range(1, 3)) == [opened]
        assert follow(spec, range(3, 5), "killed") == [opened]
        server.shutdown()
    [run] = server.runs.values()
    assert (run["run_name"], run["tags"]) == ("first", [{"key": "selftune.job_id", "value": "ftjob-1"}])
    assert run["experiment_id"] == server.experiments["pets"]
    assert run["status"] == ["RUNNING", "FINISHED", "RUNNING", "KILLED"]
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
        run.finish("finished")
        server.shutdown()
    [stored] = server.runs.values()
    assert [m["step"] for m in stored["metrics"] if m["key"] == "train_loss"] == [1, 2]
    assert stored["status"] == ["RUNNING", "FINISHED"]
    assert msgspec.to_builtins(said[-1]) == {"type": "mlflow_opened", "run_id": "run0", "experiment": "pets"}


def test_refused_batch_is_dropped_and_the_run_is_made_once(tmp_path: Path) -> None:
    refusals = {"params": 400, "metrics": 400}
    with Mlflow() as server:
        answer = server.answer

        def refusing(method: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
            for kind in [kind for kind in body if kind in refusals]:
                return refusals.pop(kind), {"message": "no"}
            return answer(method, body)

        server.answer = refusing  # type: ignore[method-assign]
        said = follow(track_spec(tmp_path, server.url), range(1, 3))
        server.shutdown()
    [run] = server.runs.values()
    assert [m["step"] for m in run["metrics"] if m["key"] == "train_loss"] == [2]
    assert [type(message).__name__ for message in said] == ["Trouble", "MlflowOpened"], "told once"


def test_run_whose_params_failed_is_gone_on_with_and_a_server_that_fails_is_left_alone_for_a_while(
    tmp_path: Path,
) -> None:
    asked: list[str] = []
    with Mlflow() as server:
        answer = server.answer

        def failing(method: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
            asked.append(method)
            return (503, {}) if asked.count(method) == 1 and "params" in body else answer(method, body)

        server.answer = failing  # type: ignore[method-assign]
        follow(track_spec(tmp_path, server.url), range(1, 9))
        server.shutdown()
    [run] = server.runs.values()
    assert {item["key"] for item in run["params"]} == {"n_epochs", "model"}
    assert [m["step"] for m in run["metrics"] if m["key"] == "train_loss"] == list(range(1, 9))
    assert asked.count("runs/log-batch") == 3, "the failed one, then params and all the steps at the end"
