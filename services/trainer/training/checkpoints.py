"""Resume points: trained parameters, optimiser, random state and position, enough to go on bit for bit.

A point is a folder `step-00000123` that appears by rename when it is whole: safetensors only, and a state.json with the
sizes to expect. The last three are kept, and the one of the best epoch.

Where processes hold a share each (sharding.Sharded), all of them gather and take, and the first one writes.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import msgspec
import structlog
import torch
from msgspec import Struct
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import Parameter

from services.trainer.failures import TrainingFailed
from services.trainer.training.parallel import Group
from shared.paths import publish_folder

KEPT = 3
_TENSORS = "state.safetensors"
_STATE = "state.json"
_OPTIMIZER_FIELDS = ("exp_avg", "exp_avg_sq", "step")

log = structlog.get_logger()


class Position(Struct, frozen=True, kw_only=True):
    """How far training has come."""

    step: int
    """Optimiser steps done."""
    trained_tokens: int


class _State(Struct, frozen=True, kw_only=True):
    position: Position
    tensors_bytes: int


def save(
    folder: Path,
    parameters: Mapping[str, Parameter],
    optimizer: torch.optim.Optimizer,
    position: Position,
    *,
    group: Group,
    best_step: int | None = None,
) -> None:
    """Write the resume point of `position`, then drop the oldest ones beyond three, but never that of `best_step`."""
    tensors = _tensors(parameters, optimizer, group)
    if group.leads:
        _write(folder, tensors, position)
        for old in saved_points(folder)[KEPT:]:
            if old.name != _name(best_step):
                shutil.rmtree(old)


def _write(folder: Path, tensors: Mapping[str, Tensor], position: Position) -> None:
    staged = folder / f".partial-{position.step}"
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    try:
        save_file(dict(tensors), staged / _TENSORS)
        state = _State(position=position, tensors_bytes=(staged / _TENSORS).stat().st_size)
        (staged / _STATE).write_bytes(msgspec.json.encode(state))
        final = folder / _name(position.step)
        shutil.rmtree(final, ignore_errors=True)  # a damaged one: whole ones are not reached a second time
        publish_folder(staged, final)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise


def _name(step: int | None) -> str:
    return "" if step is None else f"step-{step:08d}"


def saved_points(folder: Path) -> list[Path]:
    """List resume points, newest first."""
    return sorted(folder.glob("step-*"), reverse=True)


def load_newest(
    folder: Path, parameters: Mapping[str, Parameter], optimizer: torch.optim.Optimizer, *, group: Group
) -> Position | None:
    """Restore the newest point that is whole; damaged ones are passed over."""
    if group.leads:
        for partial in folder.glob(".partial-*"):  # of a process that died while it wrote
            shutil.rmtree(partial)
    for point in saved_points(folder):
        try:
            position, tensors = _read(point)
        except (OSError, msgspec.MsgspecError, SafetensorError) as error:
            log.warning("checkpoint.damaged", folder=point.name, reason=str(error))
            continue
        _restore(tensors, parameters, optimizer, group)
        return position
    return None


def load_parameters(folder: Path, step: int, parameters: Mapping[str, Parameter], *, group: Group) -> None:
    """Take the parameters of the resume point at `step`, and nothing else. Raises TrainingFailed if it is damaged."""
    try:
        _, tensors = _read(folder / _name(step))
    except (OSError, msgspec.MsgspecError, SafetensorError) as error:
        raise TrainingFailed(f"The resume point of step {step}, the best epoch's, is damaged: {error}") from error
    _copy(tensors, parameters, group)


def _read(point: Path) -> tuple[Position, dict[str, Tensor]]:
    state = msgspec.json.decode((point / _STATE).read_bytes(), type=_State)
    return state.position, _load(point / _TENSORS, state.tensors_bytes)


def _load(path: Path, size_bytes: int) -> dict[str, Tensor]:
    """Read all tensors. Raises OSError, SafetensorError when they are not all there."""
    if path.stat().st_size != size_bytes:
        raise OSError(f"{path.name} has {path.stat().st_size} bytes instead of {size_bytes}")
    tensors: dict[str, Tensor] = load_file(path)
    return tensors


def _tensors(parameters: Mapping[str, Parameter], optimizer: torch.optim.Optimizer, group: Group) -> dict[str, Tensor]:
    tensors = {f"adapter.{name}": group.whole(parameter.detach()) for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        state = optimizer.state.get(parameter, {})
        tensors |= {
            f"optimizer.{field}.{name}": group.whole(state[field]) for field in _OPTIMIZER_FIELDS if field in state
        }
    tensors["rng.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    return tensors


def _copy(tensors: Mapping[str, Tensor], parameters: Mapping[str, Parameter], group: Group) -> None:
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(group.part(tensors[f"adapter.{name}"], like=parameter))


def _restore(
    tensors: Mapping[str, Tensor],
    parameters: Mapping[str, Parameter],
    optimizer: torch.optim.Optimizer,
    group: Group,
) -> None:
    _copy(tensors, parameters, group)
    for name, parameter in parameters.items():
        optimizer.state[parameter] = {
            # `step` stays on the CPU: AdamW reads it there, whatever device the parameter is on.
            field: value.clone() if field == "step" else group.part(value.to(parameter.device), like=parameter)
            for field in _OPTIMIZER_FIELDS
            if (value := tensors.get(f"optimizer.{field}.{name}")) is not None
        }
    torch.set_rng_state(tensors["rng.cpu"])
    if torch.cuda.is_available() and "rng.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["rng.cuda"])
