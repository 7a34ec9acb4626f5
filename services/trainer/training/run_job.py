"""One job inside the training process: load, resume, train, export, then answer the supervisor's questions."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from msgspec.structs import replace

from services.trainer.data.chat import Example
from services.trainer.data.cutting import R
from services.trainer.data.dataset import Dataset
from services.trainer.data.labelled import Labelled
from services.trainer.data.loading import TokenSource
from services.trainer.data.pairs import Pair
from services.trainer.data.prompts import Prompt
from services.trainer.data.table import Fitting, TokenTable, examples, fit, labelled, pairs, prompts
from services.trainer.failures import TrainingFailed
from services.trainer.protocol import (
    REFERENCE_FILE,
    SPEC_FILE,
    CheckParity,
    Exported,
    Message,
    Reporter,
    Requantized,
    Rollouts,
    Started,
    TrainSpec,
    WantRollouts,
    command_decoder,
    spec_decoder,
)
from services.trainer.training.asking import Asking, Commands
from services.trainer.training.bases import LoadBase
from services.trainer.training.following import Follower
from services.trainer.training.grpo import Grpo
from services.trainer.training.kto import Kto
from services.trainer.training.loop import TrainingLoop
from services.trainer.training.model import TrainableModel, build_model, load_base
from services.trainer.training.objectives import Objective, Preference, Supervised
from services.trainer.training.orpo import Orpo
from services.trainer.training.parallel import ALONE, Group
from services.trainer.training.parity import measure_parity
from services.trainer.training.reading import Reader
from services.trainer.training.references import with_reference
from services.trainer.training.rehearsal import few_rows
from services.trainer.training.reinforcement import Ask, ReinforcementLoop
from services.trainer.training.reward import BradleyTerry
from services.trainer.training.session import TrainingSession
from shared import tracing

SAMPLE_TOKENS = 1024
"""Tokens of the rows by which a model in 4 bits is compared with what is served."""

MakeObjective: TypeAlias = Callable[[Reader], Objective[R]]

ShouldStop = Callable[[], bool]
"""Asked between steps, and wherever else a job may be put down; in a shared process others compute meanwhile."""


def _nobody(wanted: WantRollouts) -> Rollouts | None:
    raise TrainingFailed(f"Nobody is there to answer the prompts of step {wanted.step}.")


def run_job(
    folder: Path,
    report: Reporter,
    should_stop: ShouldStop,
    commands: Commands,
    load: LoadBase = load_base,
    group: Group = ALONE,
) -> None:
    """Do everything a job needs from torch; of a group's processes only the first reports and answers.

    Raises StopRequested, SelftuneError with the reason, or PeersLost.
    """
    model = train(folder, report, should_stop, load, group, Asking(report, commands))
    if model is not None:
        answer(model, report, commands)


def train(
    folder: Path,
    report: Reporter,
    should_stop: ShouldStop,
    load: LoadBase = load_base,
    group: Group = ALONE,
    ask: Ask = _nobody,
) -> TrainableModel | None:
    """Train the job in `folder` to its end and export it; returns the finished model as it is served.

    None in those processes of a group that follow the first. `ask` is where rollouts come from.
    """
    spec = spec_decoder.decode((folder / SPEC_FILE).read_bytes())
    if spec.method == "reinforcement":
        return reinforce(spec, folder, report, should_stop, load, ask)
    if spec.quantization == "none":
        finished = _trained(spec, folder, report, should_stop, load, group)
        return None if finished is None else finished.model
    held: list[Exported] = []  # the adapter is told of when the model is ready to be compared with the served one

    def hold_final(message: Message) -> None:
        if isinstance(message, Exported) and message.final:
            held.append(message)
        else:
            report(message)

    finished = _trained(spec, folder, hold_final, should_stop, load, group)
    if finished is None:
        return None
    sample, as_trained = finished.sample, finished.sample.loss(finished.model)
    del finished  # two models may not fit into memory, and its replaced parts refer to one another
    gc.collect()
    [final] = held
    model = build_model(replace(spec, quantization="none", parent_folder=final.folder))
    report(
        Requantized(
            n_rows=sample.n_rows,
            held_out=sample.held_out,
            loss_as_trained=as_trained,
            loss_as_served=sample.loss(model),
        )
    )
    report(final)
    return model


@dataclass(frozen=True, slots=True)
class _Sample:
    """A few rows by whose loss, as the job has it, models are compared."""

    n_rows: int
    held_out: bool
    loss: Callable[[TrainableModel], float]


@dataclass(frozen=True, slots=True)
class _Finished:
    """The model as it was trained, with the final adapter."""

    model: TrainableModel
    sample: _Sample


def _trained(
    spec: TrainSpec, folder: Path, report: Reporter, should_stop: ShouldStop, load: LoadBase, group: Group
) -> _Finished | None:
    started = time.monotonic()

    def finished(data: Dataset[R], objective: Objective[R], alone: MakeObjective[R]) -> _Finished | None:
        done = _run(_loop(_session(spec, objective), spec, data, folder, report), started, should_stop)
        return None if done is None else _Finished(done, _sample(spec, data, alone))

    if spec.method == "supervised":
        data = group.first_one_first(lambda: load_data(spec))
        return finished(data, Supervised(_reader(spec, load, group), group), Supervised)
    if spec.method == "kto":
        rows = group.first_one_first(lambda: load_labelled(spec))
        kto = make_kto(spec, _reader(spec, load, group), group)
        rows = with_reference(rows, kto, folder / REFERENCE_FILE, should_stop)
        return finished(rows, kto, lambda reader: make_kto(spec, reader))
    pairs = group.first_one_first(lambda: load_pairs(spec))
    reader = _reader(spec, load, group)
    if spec.method == "orpo":
        return finished(pairs, Orpo(reader, spec.beta, group), lambda reader: Orpo(reader, spec.beta))
    if spec.method == "reward":
        return finished(pairs, BradleyTerry(reader, group), BradleyTerry)
    preference = Preference(reader, spec.beta, group)
    pairs = with_reference(pairs, preference, folder / REFERENCE_FILE, should_stop)
    return finished(pairs, preference, lambda reader: Preference(reader, spec.beta))


def reinforce(
    spec: TrainSpec, folder: Path, report: Reporter, should_stop: ShouldStop, load: LoadBase, ask: Ask
) -> TrainableModel | None:
    """Train a reinforcement job, always in one process: most of its time goes into answers."""
    started = time.monotonic()
    assert spec.reinforcement is not None
    data = load_prompts(spec)
    objective = Grpo(_reader(spec, load, ALONE), spec.reinforcement)
    loop = ReinforcementLoop(_session(spec, objective), objective, spec, data, folder, report, ask)
    return _run(loop, started, should_stop)


def make_kto(spec: TrainSpec, reader: Reader, group: Group = ALONE) -> Kto:
    """Make the objective of a KTO job."""
    return Kto(
        reader,
        beta=spec.beta,
        desirable_weight=spec.desirable_weight,
        undesirable_weight=spec.undesirable_weight,
        group=group,
    )


def _sample(spec: TrainSpec, data: Dataset[R], objective: MakeObjective[R]) -> _Sample:
    rows = few_rows(data.valid or data.train, SAMPLE_TOKENS)

    def loss(model: TrainableModel) -> float:
        model.module.eval()
        reader = Reader(model, packing=spec.packing, most_rows=spec.rows_at_once)
        with torch.no_grad():
            return objective(reader).measure(rows, backward=False).loss

    return _Sample(len(rows), bool(data.valid), loss)


def _reader(spec: TrainSpec, load: LoadBase, group: Group) -> Reader:
    why_plain = "" if spec.neftune_noise_alpha is None else "NEFTune's noise depends on the length of padded rows"
    with tracing.span("model.load"):
        model = build_model(spec, why_plain=why_plain, load=load)
    group.divide(model)
    return Reader(model, packing=spec.packing, most_rows=spec.rows_at_once)


def _session(spec: TrainSpec, objective: Objective[R]) -> TrainingSession[R]:
    return TrainingSession(
        objective,
        weight_decay=spec.weight_decay,
        max_grad_norm=spec.max_grad_norm,
        noise_alpha=spec.neftune_noise_alpha,
    )


def _loop(
    session: TrainingSession[R], spec: TrainSpec, data: Dataset[R], folder: Path, report: Reporter
) -> TrainingLoop[R]:
    if session.group.leads:
        return TrainingLoop(session, spec, data, folder, report)
    return Follower(session, spec, data, folder, lambda _: None)


def _run(loop: TrainingLoop[R], started: float, should_stop: ShouldStop) -> TrainableModel | None:
    """Train to the end; `started` is a time of time.monotonic()."""
    resumed_from = loop.resume()
    model = loop.session.model
    loop.report(
        Started(
            device=model.device.type,
            dtype=str(model.dtype).removeprefix("torch."),
            n_examples=len(loop.data.train),
            total_steps=loop.total_steps,
            resumed_from_step=resumed_from,
            startup_s=round(time.monotonic() - started, 2),
            plain_because=model.plain_because,
            n_processes=loop.group.size,
            n_restarts=loop.group.restarts,
        )
    )
    if not loop.group.any(should_stop()):
        loop.rehearse()
    final = loop.run(should_stop)
    return None if final is None else model


def load_data(spec: TrainSpec) -> Dataset[Example]:
    """Have both files as rows. Raises InvalidTrainingData, and TrainingFailed for a base without a chat template."""
    return _load(spec, examples)


def load_pairs(spec: TrainSpec) -> Dataset[Pair]:
    """The same for preferences."""
    return _load(spec, pairs)


def load_labelled(spec: TrainSpec) -> Dataset[Labelled]:
    """The same for labelled answers, each with one of another row's."""
    return _load(spec, lambda table, fitting: labelled(table, fitting, spec.max_length))


def load_prompts(spec: TrainSpec) -> Dataset[Prompt]:
    """The same for prompts, which leave room for an answer."""
    assert spec.reinforcement is not None
    room = spec.reinforcement.max_completion_tokens
    shorter = replace(spec, max_length=spec.max_length - room)
    return _load(shorter, lambda table, fitting: prompts(table, fitting, room))


def _load(spec: TrainSpec, rows_of: Callable[[TokenTable, Fitting], list[R]]) -> Dataset[R]:
    source = TokenSource(spec.base_folder, spec.tokens_folder, spec.method)

    def rows(path: str | None, param: str) -> list[R]:
        if path is None:
            return []
        _, table = source.table(path, param)
        return rows_of(table, fit(table, spec.max_length, spec.overlong, param))

    valid = rows(spec.validation_path, "validation_file")
    return Dataset(rows(spec.training_path, "training_file"), valid)


def answer(model: TrainableModel, report: Reporter, commands: Commands) -> None:
    """Serve commands until Finish, or until the supervisor closes the pipe."""
    while line := commands.readline():
        command = command_decoder.decode(line)
        if not isinstance(command, CheckParity):
            return
        with tracing.span("parity.measure"):
            measured = measure_parity(model, command.samples)
        report(measured)
