"""What the supervisor and the process that writes to Weights & Biases and MLflow say to each other, in JSON lines."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import Struct

from services.trainer.protocol import Stepped
from shared.schemas.integrations import WandbRun

Outcome = Literal["finished", "failed", "killed"]
"""How an attempt ended; killed is one that was cancelled, paused or handed back."""


class MlflowTarget(Struct, frozen=True, kw_only=True):
    """Where the job's MLflow run is."""

    tracking_uri: str
    experiment: str
    name: str | None = None


class TrackSpec(Struct, frozen=True, kw_only=True):
    """The first line: which runs to open. Each of them gets every step."""

    job_id: str
    folder: str
    """Where wandb keeps its files, in a folder `wandb`."""
    online: bool
    """Whether to send them; if not, they wait for `wandb sync`."""
    runs: list[WandbRun]
    tags: list[str]
    config: dict[str, str | int | float | None]
    mlflow: MlflowTarget | None = None


class Ended(Struct, frozen=True, kw_only=True, tag="ended"):
    """No step follows; the runs are to be finished."""

    outcome: Outcome = "finished"


class Opened(Struct, frozen=True, kw_only=True, tag="opened"):
    """A run exists. `number` counts TrackSpec.runs from 0."""

    number: int
    run_id: str
    online: bool


class MlflowOpened(Struct, frozen=True, kw_only=True, tag="mlflow_opened"):
    """The MLflow run exists."""

    run_id: str
    experiment: str


class Trouble(Struct, frozen=True, kw_only=True, tag="trouble"):
    """What wandb or MLflow could not do, as a sentence for the job's owner."""

    message: str
    target: str = "Weights & Biases"


spec_decoder = msgspec.json.Decoder(TrackSpec)
input_decoder: msgspec.json.Decoder[Stepped | Ended] = msgspec.json.Decoder(Stepped | Ended)
output_decoder: msgspec.json.Decoder[Opened | MlflowOpened | Trouble] = msgspec.json.Decoder(
    Opened | MlflowOpened | Trouble
)
