"""A job's story in OpenAI's words: training messages -> events, checkpoint metrics, the result file."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from services.trainer.jobs.rewards import reward_data
from services.trainer.protocol import Exported, Metrics, ParityMeasured, Rehearsed, Requantized, Started
from shared.rollout_records import RolloutStats
from shared.schemas.checkpoints import CheckpointMetrics
from shared.schemas.events import Event
from shared.schemas.graders import Grader
from shared.schemas.rollouts import RolloutAlarm
from shared.store.jobs import event

RESULT_FILE_NAME = "step_metrics.csv"
_RESULT_COLUMNS = "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"
_REWARD_COLUMNS = "train_reward_mean,valid_reward_mean,completion_tokens_mean,zero_variance_share,kl"


def step_event(metrics: Metrics, grader: Grader | None = None) -> Event:
    """Form the event of an optimiser step; its data are all the numbers there are.

    `grader` is the job's, for reinforcement.
    """
    if grader is not None and metrics.rollouts is not None:
        return _rewarded_event(metrics, metrics.rollouts, grader)
    parts = [f"training loss={metrics.train_loss:.2f}"]
    if metrics.valid_loss is not None:
        parts.append(f"validation loss={metrics.valid_loss:.2f}")
    if metrics.full_valid_loss is not None:
        parts.append(f"full validation loss={metrics.full_valid_loss:.2f}")
    message = f"Step {metrics.step}/{metrics.total_steps}: {', '.join(parts)}"
    return event(message, type="metrics", data=msgspec.to_builtins(metrics))


def _rewarded_event(metrics: Metrics, rollouts: RolloutStats, grader: Grader) -> Event:
    parts = [f"training reward={rollouts.reward_mean:.2f}"]
    if metrics.valid_rollouts is not None:
        parts.append(f"full validation reward={metrics.valid_rollouts.reward_mean:.2f}")
    message = f"Step {metrics.step}/{metrics.total_steps}: {', '.join(parts)}"
    data = {**msgspec.to_builtins(metrics), **reward_data(metrics, grader)}
    return event(message, type="metrics", data=data)


def alarm_event(alarm: RolloutAlarm) -> Event:
    """Tell of a sign of reward hacking."""
    return event(alarm.message, level="warn", data={"alarm": msgspec.to_builtins(alarm)})


def plain_event(reason: str) -> Event:
    """Tell why training takes longer than it could."""
    return event(f"The model is trained the plain way, which is slower: {reason}", data={"plain_because": reason})


def restarted_event(started: Started) -> Event:
    """Tell that a process of a group died, and where the group goes on."""
    return event(
        f"One of the {started.n_processes} processes that train this job died; they go on together after step "
        f"{started.resumed_from_step}",
        level="warn",
        data={"resumed_from_step": started.resumed_from_step},
    )


def other_way_event(difference: str) -> Event:
    """Tell why the numbers may differ from those of an unbroken run."""
    return event(f"Training goes on with {difference}; its numbers may differ slightly", level="warn")


def rehearsed_event(rehearsed: Rehearsed) -> Event:
    """Form the event that comes before the first step."""
    loss, rewards = rehearsed.full_valid_loss, rehearsed.valid_rollouts
    baseline = "" if loss is None else f"full validation loss={loss:.2f}; "
    if rewards is not None:
        baseline = f"full validation reward={rewards.reward_mean:.2f}; "
    fit = "the longest rows fit, with" if rehearsed.longest_rows else "memory is ample; so far it took"
    message = f"Before training: {baseline}{fit} {rehearsed.peak_memory_bytes / 1e9:.2f} GB"
    data = {"step": 0, "longest_rows": rehearsed.longest_rows, **msgspec.to_builtins(rehearsed)}
    return event(message, data=data)


def requantized_event(found: Requantized) -> Event:
    """Tell what serving on the base as it is does to an adapter that was trained on it in 4 bits."""
    rows = f"{found.n_rows} {'held-out' if found.held_out else 'training'} rows"
    message = (
        f"Trained on the base in 4 bits, served on the base as it is: the loss of {rows} is "
        f"{found.loss_as_trained:.4f} as trained, {found.loss_as_served:.4f} as served"
    )
    return event(message, data={"requantized": msgspec.to_builtins(found)})


def checkpoint_event(step: int, name: str) -> Event:
    return event(f"Checkpoint created at step {step} with Snapshot ID: {name}", data={"step": step})


def parity_event(measured: ParityMeasured, seconds_to_first_token: float) -> Event:
    """Form the event that says how far the served model agrees with the trained one.

    `seconds_to_first_token` runs from the event of the last step.
    """
    verdict = "answers like the trained one" if measured.agrees else "does not answer like the trained one"
    message = (
        f"The served model {verdict}: {measured.n_argmax_equal}/{measured.n_tokens} greedy tokens, log probabilities "
        f"within {measured.max_logprob_difference:.2g}; first token {seconds_to_first_token:.2f} s after the last step"
    )
    data = {"parity": msgspec.to_builtins(measured), "seconds_to_first_token": round(seconds_to_first_token, 3)}
    return event(message, level="info" if measured.agrees else "error", data=data)


def pending_event(name: str, reason: str) -> Event:
    message = f"{name} is published but not served yet: {reason}. It will answer as soon as a server has loaded it."
    return event(message, level="warn", data={"serving": "pending"})


def whole_model_event(name: str, folder: str) -> Event:
    """Tell how a whole model can be served: no replica holds two bases."""
    message = (
        f"{name} is a whole model, in {folder} of the data folder. It is not served beside adapters but as a base of "
        "its own, by an inference server with base_model set to this name"
    )
    return event(message, data={"serving": "own_server", "folder": folder})


def reward_model_event(name: str, folder: str) -> Event:
    """Tell what a reward model is for: nobody can ask it for text."""
    message = (
        f"{name} is a reward model, in {folder} of the data folder: it scores answers, and is not served as a model "
        "that writes"
    )
    return event(message, data={"serving": "none", "folder": folder})


def checkpoint_metrics(exported: Exported) -> CheckpointMetrics:
    metrics = exported.metrics
    values = msgspec.to_builtins(metrics)
    train, valid = metrics.rollouts, metrics.valid_rollouts
    values["train_reward_mean"] = train.reward_mean if train else None
    values["valid_reward_mean"] = valid.reward_mean if valid else None
    return CheckpointMetrics(**{name: values.get(name) for name in CheckpointMetrics.__struct_fields__})


def result_csv(steps: Iterable[Metrics]) -> bytes:
    """Write OpenAI's step_metrics.csv, for reinforcement with columns of rewards; cells without a value are empty."""
    steps = list(steps)
    rewarded = any(metrics.rollouts is not None for metrics in steps)
    columns = f"{_RESULT_COLUMNS},{_REWARD_COLUMNS}" if rewarded else _RESULT_COLUMNS
    rows = [(*_losses(metrics), *(_rewards(metrics) if rewarded else ())) for metrics in steps]
    lines = [",".join("" if value is None else str(value) for value in row) for row in rows]
    return "\n".join([columns, *lines, ""]).encode()


def _losses(m: Metrics) -> tuple[float | None, ...]:
    return m.step, m.train_loss, m.train_mean_token_accuracy, m.valid_loss, m.valid_mean_token_accuracy


def _rewards(metrics: Metrics) -> tuple[float | None, ...]:
    train, valid = metrics.rollouts, metrics.valid_rollouts
    return (
        train.reward_mean if train else None,
        valid.reward_mean if valid else None,
        train.completion_tokens_mean if train else None,
        train.zero_variance_share if train else None,
        metrics.kl,
    )
