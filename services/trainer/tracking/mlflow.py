"""One run on an MLflow tracking server, over its REST API 2.0 (https://mlflow.org/docs/latest/rest-api.html).

Runs in the tracking process. Credentials are those of MLflow's own client: MLFLOW_TRACKING_TOKEN, or
MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, in the trainer's environment.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import httpx2
import msgspec
from msgspec import Struct

from services.trainer.curves import curves
from services.trainer.protocol import Stepped
from services.trainer.tracking.protocol import MlflowOpened, MlflowTarget, Outcome, TrackSpec, Trouble
from shared.paths import write_atomic

TIMEOUT_S = 10.0
RUN_FILE = "mlflow_run"
MAX_METRICS = 1000
"""Metrics that runs/log-batch takes at once."""
RETRY_S = 5.0
"""A server that is away is asked again at the first step after so long: each try may take TIMEOUT_S."""
MAX_WAITING = 100_000
"""Numbers that wait for a server that is away; the oldest are dropped beyond."""
_MAY_CHANGE = {401, 403, 408, 429}
"""Refusals that say nothing of what was sent."""
_NO_CURVES = ("step", "total_steps")
_NAME = "MLflow"

Value = dict[str, str | int | float]
Report = Callable[[MlflowOpened | Trouble], None]


class _Info(Struct, frozen=True):
    run_id: str


class _Run(Struct, frozen=True):
    info: _Info


class _RunMade(Struct, frozen=True):
    run: _Run


class _Experiment(Struct, frozen=True):
    experiment_id: str


class _ExperimentFound(Struct, frozen=True):
    experiment: _Experiment


class MlflowRun:
    """The job's run, the same one in each attempt. What a server that is away does not take waits for the next step."""

    def __init__(self, spec: TrackSpec, target: MlflowTarget, report: Report) -> None:
        self._spec = spec
        self._target = target
        self._report = report
        self._file = Path(spec.folder) / RUN_FILE
        self._http = httpx2.Client(
            base_url=target.tracking_uri.rstrip("/") + "/api/2.0/mlflow/", timeout=TIMEOUT_S, headers=_bearer(),
            auth=_password(), trust_env=False,
        )  # fmt: skip
        self._run_id = ""
        self._waiting: list[Value] = []
        self._is_open = False
        self._is_away = False
        self._tried_at = 0.0
        self._has_refused = False

    def log(self, step: Stepped) -> None:
        """Send a step's numbers."""
        now = int(time.time() * 1000)
        self._waiting += [
            {"key": name, "value": value, "timestamp": now, "step": step.metrics.step}
            for name, value in curves(step.metrics).items()
            if name not in _NO_CURVES
        ]
        del self._waiting[:-MAX_WAITING]
        if not self._is_away or time.monotonic() - self._tried_at > RETRY_S:
            self._attempt(self._send)

    def open(self) -> None:
        """Begin, or go on with, the run; one that cannot be opened now is opened at a later step."""
        self._attempt(self._ensure_open)

    def finish(self, outcome: Outcome) -> None:
        """Send what waits and end the run; what is not taken now stays in the job's own metrics."""
        self._attempt(lambda: self._end(outcome.upper()))
        self._http.close()

    def _end(self, status: str) -> None:
        self._send()
        self._update(status)

    def _send(self) -> None:
        self._ensure_open()
        while self._waiting:
            self._log_batch("metrics", self._waiting[:MAX_METRICS])
            del self._waiting[:MAX_METRICS]

    def _log_batch(self, kind: str, values: Sequence[Mapping[str, object]]) -> None:
        """Send values; what the server will never take is dropped, and the owner told of the first."""
        try:
            self._post("runs/log-batch", {"run_id": self._run_id, kind: values})
        except httpx2.HTTPStatusError as error:
            if error.response.is_server_error or error.response.status_code in _MAY_CHANGE:
                raise
            if not self._has_refused:
                self._has_refused = True
                self._report(Trouble(target=_NAME, message=f"the server refused some {kind}: {_reason(error)}"))

    def _ensure_open(self) -> None:
        if self._is_open:
            return
        if self._file.exists():
            self._run_id = self._file.read_text(encoding="utf-8")
            self._update("RUNNING")
        else:
            self._run_id = self._run_id or self._create()
            write_atomic(self._file, self._run_id.encode())
        self._log_batch("params", [{"key": name, "value": str(value)} for name, value in self._spec.config.items()])
        self._is_open = True
        self._report(MlflowOpened(run_id=self._run_id, experiment=self._target.experiment))

    def _create(self) -> str:
        body = {
            "experiment_id": self._experiment(),
            "run_name": self._target.name or self._spec.job_id,
            "start_time": int(time.time() * 1000),
            "tags": [{"key": "selftune.job_id", "value": self._spec.job_id}],
        }
        return msgspec.json.decode(self._post("runs/create", body), type=_RunMade).run.info.run_id

    def _experiment(self) -> str:
        name = self._target.experiment
        found = self._http.get("experiments/get-by-name", params={"experiment_name": name})
        if found.status_code == httpx2.codes.NOT_FOUND:
            return msgspec.json.decode(self._post("experiments/create", {"name": name}), type=_Experiment).experiment_id
        found.raise_for_status()
        return msgspec.json.decode(found.content, type=_ExperimentFound).experiment.experiment_id

    def _update(self, status: str) -> None:
        ended = {} if status == "RUNNING" else {"end_time": int(time.time() * 1000)}
        self._post("runs/update", {"run_id": self._run_id, "status": status, **ended})

    def _post(self, method: str, body: dict[str, object]) -> bytes:
        answer = self._http.post(method, json=body)
        answer.raise_for_status()
        return answer.content

    def _attempt(self, act: Callable[[], object]) -> None:
        """Do something with the server; of a failure the owner hears once, until it works again."""
        try:
            act()
            self._is_away = False
        except (httpx2.HTTPError, msgspec.MsgspecError, OSError) as error:
            self._tried_at = time.monotonic()
            if not self._is_away:
                self._is_away = True
                reason = _reason(error)
                self._report(
                    Trouble(target=_NAME, message=f"the server did not take a step: {reason}; it will be sent later")
                )


def _reason(error: Exception) -> str:
    """Say what went wrong without the server's address, which may hold a password."""
    if isinstance(error, httpx2.HTTPStatusError):
        return f"status {error.response.status_code}: {' '.join(error.response.text.split())[:200]}"
    return type(error).__name__


def _bearer() -> dict[str, str]:
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    return {"Authorization": f"Bearer {token}"} if token else {}


def _password() -> tuple[str, str] | None:
    name = os.environ.get("MLFLOW_TRACKING_USERNAME")
    return (name, os.environ.get("MLFLOW_TRACKING_PASSWORD", "")) if name else None
