"""One job inside the training process: load, resume, train, export, then answer the supervisor's questions."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from transformers import AutoTokenizer

from services.trainer.data.chat import Example, tokenize_rows
from services.trainer.failures import TrainingFailed
from services.trainer.loop import Dataset, TrainingLoop
from services.trainer.model import build_model
from services.trainer.parity import measure_parity
from services.trainer.protocol import (
    SPEC_FILE,
    CheckParity,
    Reporter,
    Started,
    TrainSpec,
    command_decoder,
    spec_decoder,
)
from services.trainer.session import TrainingSession
from shared.training_data import read_examples


def run_job(folder: Path, report: Reporter, should_stop: Callable[[], bool], commands: BinaryIO) -> None:
    """Do everything a job needs from torch. Raises StopRequested, or SelftuneError with the reason."""
    session = train(folder, report, should_stop)
    answer(session, report, commands)


def train(folder: Path, report: Reporter, should_stop: Callable[[], bool]) -> TrainingSession:
    """Train the job in `folder` to its end and export it; returns the session of the finished model."""
    started = time.monotonic()
    spec = spec_decoder.decode((folder / SPEC_FILE).read_bytes())
    data = load_data(spec)
    session = TrainingSession(build_model(spec))
    loop = TrainingLoop(session, spec, data, folder, report)
    resumed_from = loop.resume()
    report(
        Started(
            device=session.model.device.type,
            dtype=str(session.model.dtype).removeprefix("torch."),
            n_examples=len(data.train),
            total_steps=loop.total_steps,
            resumed_from_step=resumed_from,
            startup_s=round(time.monotonic() - started, 2),
        )
    )
    loop.run(should_stop)
    return session


def load_data(spec: TrainSpec) -> Dataset:
    """Read and tokenise both files. Raises InvalidTrainingData, TrainingFailed for a base without a chat template."""
    tokenizer: Any = AutoTokenizer.from_pretrained(spec.base_folder, local_files_only=True, trust_remote_code=False)
    if not tokenizer.chat_template:
        raise TrainingFailed(
            f"The base model {spec.base_id} has no chat template, so it cannot be fine-tuned on conversations.",
            code="unsupported_base_model",
        )

    def examples(path: str, param: str) -> list[Example]:
        return tokenize_rows(list(read_examples(Path(path))), tokenizer, max_length=spec.max_length, param=param)

    valid = examples(spec.validation_path, "validation_file") if spec.validation_path else []
    return Dataset(examples(spec.training_path, "training_file"), valid)


def answer(session: TrainingSession, report: Reporter, commands: BinaryIO) -> None:
    """Serve commands until Finish, or until the supervisor closes the pipe."""
    while line := commands.readline():
        command = command_decoder.decode(line)
        if not isinstance(command, CheckParity):
            return
        report(measure_parity(session, command.samples))
