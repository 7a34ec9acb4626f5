"""The loop of a reinforcement job: have prompts answered by the model as it is, learn from the rewards, go on.

Step N exports the adapter of step N - 1, asks the supervisor for answers by it, and takes one or more clipped updates
on them. Who samples and grades is not seen here; that the server sampled from this very adapter is checked each time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from msgspec.structs import replace

from services.trainer.data.dataset import Dataset
from services.trainer.data.prompts import Completion, Prompt, completion
from services.trainer.failures import StopRequested, TrainingFailed
from services.trainer.protocol import Metrics, Rehearsed, ReinforcementSpec, Reporter, Rollouts, TrainSpec, WantRollouts
from services.trainer.training.grpo import Grpo
from services.trainer.training.keeping import kept_steps
from services.trainer.training.loop import TrainingLoop
from services.trainer.training.losses import group_advantages
from services.trainer.training.objectives import Measured, Served
from services.trainer.training.rehearsal import Rehearsal
from services.trainer.training.session import TrainingSession
from shared.rollout_records import RolloutGroup, RolloutStats, read_rollouts

Ask = Callable[[WantRollouts], Rollouts | None]

NOISE = {torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 1e-2}
"""Mean difference of log probabilities, in nats, that rounding alone makes between server and trainer, at most."""
_MOST_NOISE = 5.0
_SURELY_MOVED = 2.0
_MADE_UP = -10.0
"""Log probability of the tokens of an answer that only tries out how much memory one needs."""


class ReinforcementLoop(TrainingLoop[Any]):
    """Its data are prompts, and what its session learns from are completions, made anew in each step."""

    def __init__(
        self,
        session: TrainingSession[Completion],
        objective: Grpo,
        spec: TrainSpec,
        data: Dataset[Prompt],
        folder: Path,
        report: Reporter,
        ask: Ask,
    ) -> None:
        super().__init__(session, spec, Dataset(data.train, ()), folder, report)
        assert spec.reinforcement is not None
        self._chosen: ReinforcementSpec = spec.reinforcement
        self._objective = objective
        self._valid = data.valid
        self._ask = ask
        self._policy: tuple[int, Path, str] | None = None
        self._ended_at = time.monotonic()

    def rehearse(self) -> None:
        """Report what a look ahead finds: memory for the longest answers, and the reward to start from."""
        if self._is_over():
            return
        longest = sorted(self.data.train, key=lambda prompt: -prompt.width)[: self.spec.batch_size]
        made_up = [_made_up(prompt) for prompt in longest for _ in range(self._chosen.group_size)]
        spec = replace(self.spec, batch_size=len(made_up))
        found = Rehearsal(self.session, spec, Dataset(made_up, ())).run(baseline=False)
        self.report(self._with_baseline(found))
        self._ended_at = time.monotonic()

    def _with_baseline(self, found: Rehearsed) -> Rehearsed:
        if self.position.step or not self._valid:
            return found
        return replace(found, valid_rollouts=self._evaluated(0))

    def _is_exported(self, step: int) -> bool:
        """Whether the model after this step stays as a checkpoint: one of the best evaluated, else at epochs' ends."""
        if not self._valid:
            return super()._is_exported(step)
        if not self._evaluates(step):
            return False
        evaluated = [metrics for metrics in self.history.steps() if metrics.valid_rollouts and metrics.step <= step]
        return step in kept_steps(evaluated)

    def _evaluates(self, step: int) -> bool:
        return bool(self._valid) and (step % self._chosen.eval_interval == 0 or step == self.total_steps)

    def _step(self, step: int, rows: list[Prompt]) -> Metrics:
        stats, groups = self._rollouts(step, rows, samples=self._chosen.group_size, validation=False)
        if all(sample.reward is None for group in groups for sample in group.samples):
            raise TrainingFailed(f"No answer of step {step} can be learnt from: none has a reward.")
        completions = completions_of(groups, self._chosen)
        metrics = replace(self._updated(step, completions) if completions else self._idle(step), rollouts=stats)
        if self._evaluates(step):
            metrics = replace(metrics, valid_rollouts=self._evaluated(step, metrics))
        now, before = time.monotonic(), self._ended_at
        self._ended_at = now
        return replace(self._accounted(metrics, completions), step_s=round(now - before, 3))

    def _updated(self, step: int, completions: Sequence[Completion]) -> Metrics:
        """Learn from a step's answers, and return its metrics."""
        started = time.monotonic()
        self.group.seed(self.spec.seed, step)
        rows = self._objective.referring(completions)
        learning_rate = self._learning_rate(step)
        measured, grad_norm, served = self._update(step, rows, learning_rate)
        return replace(
            self._metrics(step, measured, learning_rate, grad_norm, time.monotonic() - started),
            kl=measured.divergence,
            clip_share=served.clip_share,
            served_difference=None if measured.served is None else measured.served.difference,
        )

    def _idle(self, step: int) -> Metrics:
        """Return the metrics of a step all of whose answers are left out, as those that were cut off may be."""
        nothing = Measured(loss=0.0, accuracy=0.0, n_tokens=0)
        return self._metrics(step, nothing, self._learning_rate(step), grad_norm=0.0, took_s=1.0)

    def _update(self, step: int, rows: Sequence[Completion], learning_rate: float) -> tuple[Measured, float, Served]:
        """Return what the first update has measured, its gradient's norm, and what the last one saw of the answers."""
        measured = self.session.forward_backward(rows)
        assert measured.served is not None
        check_served(measured.served, self.session.model.dtype, step)
        last, grad_norm = measured.served, self.session.optim_step(learning_rate)
        for _ in range(self._chosen.updates_per_step - 1):
            again = self.session.forward_backward(rows)
            assert again.served is not None
            last = again.served
            self.session.optim_step(learning_rate)
        return measured, grad_norm, last

    def _evaluated(self, step: int, metrics: Metrics | None = None) -> RolloutStats:
        """Have the validation file answered by the model after `step`, whose metrics these are."""
        stats, _ = self._rollouts(
            step, self._valid, samples=self._chosen.eval_samples, validation=True, metrics=metrics
        )
        return stats

    def _rollouts(
        self,
        step: int,
        rows: Sequence[Prompt],
        *,
        samples: int,
        validation: bool,
        metrics: Metrics | None = None,
    ) -> tuple[RolloutStats, list[RolloutGroup]]:
        """Have prompts answered by the model as it is now. Raises StopRequested, having saved what can be."""
        folder, digest = self._exported_policy(step if validation else step - 1, metrics)
        wanted = WantRollouts(
            step=step,
            validation=validation,
            folder=str(folder),
            sha256=digest,
            lines=[row.line for row in rows],
            samples=samples,
        )
        given = self._ask(wanted)
        if given is None:
            self._put_down(step if validation else step - 1)
        header, groups = read_rollouts(Path(given.path))
        return header.stats, groups

    def _put_down(self, model_step: int) -> NoReturn:
        """Stop while the model is that of `model_step`; between a step's update and its end nothing can be saved."""
        if model_step > self.position.step:
            raise StopRequested(self._saved_step)
        self._stop()

    def _exported_policy(self, step: int, metrics: Metrics | None) -> tuple[Path, str]:
        """Export the adapter as it is after `step`, once."""
        if self._policy is None or self._policy[0] != step:
            known = metrics or next((one for one in reversed(self.history.steps()) if one.step == step), None)
            self._policy = (step, *self._written(known))
        return self._policy[1:]


def completions_of(groups: Sequence[RolloutGroup], chosen: ReinforcementSpec) -> list[Completion]:
    """Return the answers that are learnt from, each with its advantage over its group.

    One without a reward is left out; so is, with `mask_truncated`, one that was cut off, after it was compared.
    """
    found = []
    for group in groups:
        rewards = [float("nan") if one.reward is None else one.reward for one in group.samples]
        [advantages] = group_advantages(torch.tensor([rewards], dtype=torch.float64), scale=chosen.scale_advantages)
        for sample, advantage in zip(group.samples, advantages.tolist(), strict=True):
            is_masked = chosen.mask_truncated and sample.is_truncated
            if sample.reward is not None and sample.tokens and not is_masked:
                found.append(
                    completion(
                        group.line,
                        group.prompt_tokens,
                        sample.tokens,
                        advantage=advantage,
                        behaviour=sample.logprobs,
                    )
                )
    return found


def check_served(served: Served, dtype: torch.dtype, step: int) -> None:
    """Raise TrainingFailed unless the server sampled from the adapter as it is here, and the adapter had an effect.

    Had the server sampled from the model that training starts from, its log probabilities would be nearer to that
    model's than to this one's.
    """
    noise = NOISE[dtype]
    is_far = served.difference > _MOST_NOISE * noise
    is_without_effect = served.moved > _SURELY_MOVED * noise and served.difference > served.moved_served
    if is_far or is_without_effect:
        raise TrainingFailed(
            f"The answers of step {step} were not sampled from the model as it is trained: log probabilities differ by "
            f"{served.difference:.3g} nats on average, and the adapter moves them by {served.moved:.3g}.",
            code="parity_mismatch",
        )


def _made_up(prompt: Prompt) -> Completion:
    """Make the longest row that a prompt may become."""
    answer = [prompt.prompt[-1]] * prompt.room
    made = completion(prompt.line, prompt.prompt, answer, advantage=1.0, behaviour=[_MADE_UP] * prompt.room)
    return made.referring(made.behaviour_N)
