"""Which of a job's models stay beside its final one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from services.trainer.protocol import Exported, Metrics

KEPT_CHECKPOINTS = 3
"""The final model and the epochs before it that stay usable, as OpenAI keeps them; for reinforcement the best ones."""


def kept_steps(earlier: Iterable[Metrics]) -> list[int]:
    """Return after which steps before the final model's the model stays, in their order: the last ones.

    For reinforcement with a validation file it is those with the highest rewards on it, the earlier of equals.
    """
    known = {metrics.step: metrics for metrics in earlier}
    steps = sorted(known)
    rewards = {step: stats.reward_mean for step in steps if (stats := known[step].valid_rollouts)}
    if len(rewards) == len(steps):
        steps = sorted(sorted(steps, key=lambda step: -rewards[step])[: KEPT_CHECKPOINTS - 1])
    return steps[-(KEPT_CHECKPOINTS - 1) :]


def still_of_use(exports: Sequence[Exported]) -> list[Exported]:
    """Leave out what cannot become a checkpoint any more: two models of reinforcement had higher rewards.

    Of other methods' models early stopping may want any.
    """
    earlier = [exported.metrics for exported in exports if not exported.final]
    if any(metrics.valid_rollouts is None for metrics in earlier):
        return list(exports)
    kept = kept_steps(earlier)
    return [exported for exported in exports if exported.final or exported.metrics.step in kept]
