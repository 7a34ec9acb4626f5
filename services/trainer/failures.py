"""Why a job cannot go on, in the words its owner reads.

SelftuneError
└── TrainingFailed            the job ends as failed with this code and message
    ├── NonFiniteLoss         the training diverged
    ├── OutOfMemory           the machine has too little memory for the job
    ├── DiskFull              the data folder takes no more
    ├── ProcessDied           the training process ended without a word
    └── ParityMismatch        the served model is not the trained one
"""

from __future__ import annotations

from shared.errors import SelftuneError


class TrainingFailed(SelftuneError):
    """The training process could not do its job."""

    default_code = "training_failed"


class NonFiniteLoss(TrainingFailed):
    """Loss or gradient became infinite or not a number, or a step is larger than the weights' numbers hold."""

    default_code = "non_finite_loss"


class OutOfMemory(TrainingFailed):
    """A step needs more memory than there is."""

    default_code = "out_of_memory"


class DiskFull(TrainingFailed):
    """A resume point or an adapter could not be written."""

    default_code = "disk_full"


class ProcessDied(TrainingFailed):
    """The training process ended without saying why: killed, most often."""


class ParityMismatch(TrainingFailed):
    """A replica's greedy tokens or log probabilities differ from the trainer's by more than the tolerance."""

    default_code = "parity_mismatch"


class PeersLost(Exception):
    """Not this process's failure: another one of its group has ended, and they start anew together."""


class StopRequested(Exception):
    """Not a failure: training stopped between two steps, as asked; `step` is saved."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.step = step
