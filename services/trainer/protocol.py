"""What the training process and its supervisor say to each other.

They have a channel of their own, so that whatever a library prints to stdout or stderr cannot be mistaken for a word in
it: the child writes `Message`s as JSON lines, and reads `Command`s. `TrainSpec` is the job folder's spec.json.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from shared.overlong import Overlong
from shared.rollout_records import RolloutStats
from shared.schemas.methods import MethodName
from shared.schemas.options import EarlyStopping

SPEC_FILE = "spec.json"
METRICS_FILE = "metrics.jsonl"
EXPORTS_FILE = "exports.jsonl"
LOG_FILE = "train.log"
EVENT_FILES_FOLDER = "tensorboard"
CHECKPOINTS_FOLDER = "checkpoints"
REFERENCE_FILE = "reference.json"

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class ReinforcementSpec(Struct, frozen=True, kw_only=True):
    """What a reinforcement job trains with; see ReinforcementOptions and ReinforcementHyperparameters."""

    group_size: int = 8
    max_completion_tokens: int = 512
    temperature: float = 1.0
    kl_coefficient: float = 0.01
    clip_low: float = 0.2
    clip_high: float = 0.28
    scale_advantages: bool = True
    mask_truncated: bool = False
    updates_per_step: int = 1
    eval_interval: int = 10
    eval_samples: int = 1


class TrainSpec(Struct, frozen=True, kw_only=True):
    """Everything the training process needs to know; paths are absolute."""

    job_id: str
    base_id: str
    base_folder: str
    base_fingerprint: str
    base_weights: str = ""
    """base.weights.weights_digest() of base_folder when the job began; empty in a spec of an earlier version."""
    adapters_folder: str
    """Where finished folders go, adapters or whole models, each named by its digest."""
    training_path: str
    validation_path: str | None = None
    training_sha256: str = ""
    n_epochs: Annotated[int, Meta(ge=1)]
    batch_size: Annotated[int, Meta(ge=1)]
    learning_rate_multiplier: Annotated[float, Meta(gt=0)]
    seed: int
    method: MethodName = "supervised"
    beta: float = 0.1
    """DPO, KTO: the pull towards the model that training starts from. ORPO: the odds ratio's weight."""
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    """Only for KTO: factors on the losses of rows, by their label."""
    reinforcement: ReinforcementSpec | None = None
    """Only for reinforcement."""
    finetuning_type: Literal["lora", "full"] = "lora"
    """`full` trains every weight; what is said of the adapter below is without meaning then."""
    rank: int = 16
    alpha: float = 32
    use_rslora: bool = False
    dropout: float = 0.0
    targets: tuple[str, ...] = LORA_TARGETS
    parent_folder: str | None = None
    """Adapter that training goes on from; its form is this spec's. None starts with a fresh one."""
    parent_sha256: str | None = None
    quantization: Literal["none", "nf4"] = "none"
    packing: bool = False
    lr_schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_ratio: float = 0.05
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    gradient_accumulation_steps: int = 1
    neftune_noise_alpha: float | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    checkpoint_interval: int | None = None
    """Steps between resume points; None goes by time."""
    evaluation_interval: int | None = None
    """Steps between evaluations of all held-out rows; None is at epochs' ends alone."""
    early_stopping: EarlyStopping | None = None
    max_length: int = 2048
    """Longest row in tokens."""
    overlong: Overlong = "refuse"
    """What becomes of longer ones."""
    tokens_folder: str = ""
    """Where tokenised files are kept; "" keeps none."""
    snapshot_interval_s: float = 60.0
    """A resume point is written at the end of each epoch and, unless there is a checkpoint_interval, whenever the last
    one is this old."""
    n_probes: int = 2
    """Held-out prompts offered for the parity check."""
    traceparent: str = ""
    """The attempt's span, in W3C's form; empty where nothing is traced."""
    memory_parts: dict[str, int] = {}
    """Bytes that the training process is expected to need, part by part (estimate.MemoryEstimate); empty if unknown."""

    @property
    def estimated_memory_bytes(self) -> int | None:
        return sum(self.memory_parts.values()) or None

    @property
    def rows_at_once(self) -> int | None:
        """Most rows to go through the model at once; None leaves it to their tokens."""
        if self.gradient_accumulation_steps == 1:
            return None
        return math.ceil(self.batch_size / self.gradient_accumulation_steps)


class Metrics(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One optimiser step. Losses are nats per supervised token; accuracies are shares of argmax hits, 0 to 1.

    With DPO a loss is nats per pair, an accuracy counts the tokens of the preferred answers, and the rewards are there:
    beta times how much more likely, in nats, an answer is than for the model that training started from. The margin is
    the preferred answer's reward less the other's; rewards_accuracy is the share of pairs where it is above 0.

    With ORPO they are beta times the mean log probability of an answer's tokens, with a reward model its scores. With
    KTO a loss is a mean over rows, an accuracy counts the tokens of all answers, the rewards are means over the rows
    with either label, and the margin is their difference; rewards_accuracy is the share of rows whose reward is on its
    label's side of beta times `kl`, the nats by which the model is estimated to have moved. What a batch with one
    label does not have is left out.
    """

    step: int
    total_steps: int
    epoch: int
    train_loss: float
    train_mean_token_accuracy: float
    tokens: int
    """Tokens in this step's rows, prompts included."""
    tokens_per_s: float
    learning_rate: float
    grad_norm: float
    supervised_tokens: int | None = None
    """Tokens of this step that are learnt; with DPO those of both answers."""
    peak_memory_bytes: int | None = None
    """Most memory so far: tensors on the GPU, or on a CPU the training process's resident set."""
    seconds_left: float | None = None
    """Time until the last step at the pace of this attempt; None after its first step."""
    valid_loss: float | None = None
    valid_mean_token_accuracy: float | None = None
    full_valid_loss: float | None = None
    full_valid_mean_token_accuracy: float | None = None
    rewards_chosen: float | None = None
    rewards_rejected: float | None = None
    rewards_margin: float | None = None
    rewards_accuracy: float | None = None
    valid_rewards_chosen: float | None = None
    valid_rewards_rejected: float | None = None
    valid_rewards_margin: float | None = None
    valid_rewards_accuracy: float | None = None
    full_valid_rewards_chosen: float | None = None
    full_valid_rewards_rejected: float | None = None
    full_valid_rewards_margin: float | None = None
    full_valid_rewards_accuracy: float | None = None
    rollouts: RolloutStats | None = None
    """Reinforcement: the answers that this step has learnt from; `kl` is nats per token of theirs then."""
    valid_rollouts: RolloutStats | None = None
    """Of the validation file, by the model after this step."""
    clip_share: float | None = None
    """Share of the answers' tokens whose ratio was clipped."""
    served_difference: float | None = None
    """Mean absolute difference of their log probabilities, in nats, as sampled by the server and as trained here."""
    step_s: float | None = None
    """Seconds from one step's end to the next: sampling, grading, training, evaluation."""
    kl: float | None = None
    valid_kl: float | None = None
    full_valid_kl: float | None = None


class Started(Struct, frozen=True, kw_only=True, tag="started"):
    """The model is in memory and the data is tokenised."""

    device: str
    dtype: str
    n_examples: int
    total_steps: int
    resumed_from_step: int
    startup_s: float
    plain_because: str = ""
    """Why the fast path is not taken; empty where it is."""
    n_processes: int = 1
    """How many train together."""
    n_restarts: int = 0
    """How often they were started anew, because one of them died."""


class Rehearsed(Struct, frozen=True, kw_only=True, tag="rehearsed", omit_defaults=True):
    """Some rows have gone through the model, before any training of this attempt.

    The losses are those of the model that training starts from; None in a later attempt, without a validation file, and
    where evaluating it would cost much beside the training.
    """

    seconds: float
    """What this took."""
    peak_memory_bytes: int
    longest_rows: bool = True
    """Whether the longest rows went through, forward and backward: not where memory is known to be ample."""
    full_valid_loss: float | None = None
    full_valid_mean_token_accuracy: float | None = None
    valid_rollouts: RolloutStats | None = None
    """Reinforcement: answers to the validation file by that model."""


class Stepped(Struct, frozen=True, kw_only=True, tag="stepped", omit_defaults=True):
    metrics: Metrics
    checkpoint_s: float | None = None
    """How long the resume point took that was written after it; None without one."""


class Exported(Struct, frozen=True, kw_only=True, tag="exported"):
    """An adapter folder is whole and in its final place, named by its digest."""

    folder: str
    sha256: str
    metrics: Metrics
    final: bool
    trained_tokens: int
    probes: list[list[int]] = []
    """Prompts as token ids, for the parity check; only with the final adapter."""
    remark: str = ""
    """What the owner should know about the final adapter, such as that an earlier epoch's was the best."""


class ParityMeasured(Struct, frozen=True, kw_only=True, tag="parity"):
    """How far the served model agrees with the trained one on the probes."""

    agrees: bool
    n_tokens: int
    n_argmax_equal: int
    max_logprob_difference: float
    """Largest absolute difference of a token's log probability, in nats."""
    tolerance: float


class Requantized(Struct, frozen=True, kw_only=True, tag="requantized"):
    """What it changes that an adapter was trained on a base in 4 bits and is served on the base as it is.

    Losses of the same rows, as Metrics has them.
    """

    n_rows: int
    held_out: bool
    """Whether the rows are the validation file's."""
    loss_as_trained: float
    loss_as_served: float


class Failed(Struct, frozen=True, kw_only=True, tag="failed"):
    code: str
    message: str
    param: str | None = None


class Stopped(Struct, frozen=True, kw_only=True, tag="stopped"):
    """The process ends because it was asked to; `step` is the step to go on from."""

    step: int


class WantRollouts(Struct, frozen=True, kw_only=True, tag="want_rollouts"):
    """Answers by the model as it is now are wanted; the process waits for Rollouts.

    For step N `step` is N, and the model that of step N - 1; with `validation` it is the model of step N itself.
    """

    step: int
    validation: bool
    folder: str
    """The adapter, whole and in its final place, named by its digest."""
    sha256: str
    lines: list[int]
    """Of the training or the validation file, from 1, each once."""
    samples: int
    """Answers to each."""


Message = Started | Rehearsed | Stepped | Requantized | Exported | ParityMeasured | WantRollouts | Failed | Stopped

Reporter = Callable[[Message], None]


class ServedSample(Struct, frozen=True, kw_only=True):
    """What a replica answered greedily: generated token ids and their log probabilities in nats."""

    prompt: list[int]
    tokens: list[int]
    logprobs: list[float]


class CheckParity(Struct, frozen=True, kw_only=True, tag="check_parity"):
    samples: list[ServedSample]


class Finish(Struct, frozen=True, kw_only=True, tag="finish"):
    """Nothing more is wanted: exit with status 0."""


class Stop(Struct, frozen=True, kw_only=True, tag="stop"):
    """Save and end: what SIGTERM says to a process that trains one job alone."""


class Rollouts(Struct, frozen=True, kw_only=True, tag="rollouts"):
    """What was wanted lies in the file `path` (shared.rollout_records)."""

    step: int
    validation: bool
    path: str


Command = CheckParity | Rollouts | Finish | Stop

spec_decoder = msgspec.json.Decoder(TrainSpec)
metrics_decoder = msgspec.json.Decoder(Metrics)
message_decoder: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)
command_decoder: msgspec.json.Decoder[Command] = msgspec.json.Decoder(Command)
encoder = msgspec.json.Encoder()


def encode_line(value: Struct) -> bytes:
    """Encode as one JSON line, newline included."""
    return encoder.encode(value) + b"\n"
