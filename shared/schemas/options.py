"""What a job may ask for beyond OpenAI's API, under one name: with the SDK, `extra_body={"selftune": {…}}`."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct

from shared.schemas.costs import JobCost
from shared.schemas.methods import OwnMethod

TargetModule: TypeAlias = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class EarlyStopping(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Stop when the validation file's loss no longer falls; needs a validation file. The best epoch is the model."""

    patience: Annotated[int, Meta(ge=1, le=50, description="Epochs without improvement before training stops.")] = 1
    min_delta: Annotated[float, Meta(ge=0, le=10, description="Least fall of the loss, in nats, that counts.")] = 0.0


class MlflowSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Log every step to a run on the MLflow server that the operator has configured."""

    experiment: Annotated[str, Meta(min_length=1, max_length=256, description="Made if it does not exist.")]
    name: (
        Annotated[str, Meta(min_length=1, max_length=256, description="Name of the run; the job's id if left out.")]
        | None
    ) = None


class ReinforcementOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Choices of reinforcement fine-tuning that OpenAI makes for its users. Left out means the default."""

    group_size: (
        Annotated[int, Meta(ge=2, le=64, description="Answers per prompt, in place of 8 times compute_multiplier.")]
        | None
    ) = None
    temperature: Annotated[float, Meta(gt=0, le=2, description="Of the answers that are tried; 1.")] | None = None
    max_completion_tokens: (
        Annotated[int, Meta(ge=1, le=1 << 20, description="Longest answer in tokens; 512, at most half of max_length.")]
        | None
    ) = None
    kl_coefficient: (
        Annotated[
            float,
            Meta(ge=0, le=10, description="Pull towards the model that training starts from, in nats per token; 0.01."),
        ]
        | None
    ) = None
    clip_low: (
        Annotated[float, Meta(gt=0, lt=1, description="How far a token's ratio counts downwards; 0.2.")] | None
    ) = None
    clip_high: Annotated[float, Meta(gt=0, le=10, description="The same upwards; 0.28 (arXiv:2503.14476).")] | None = (
        None
    )
    scale_advantages: (
        Annotated[
            bool,
            Meta(
                description="Divide a group's rewards by their standard deviation, as GRPO does; no: only take the "
                "mean away (arXiv:2503.20783). Default: yes."
            ),
        ]
        | None
    ) = None
    mask_truncated: (
        Annotated[bool, Meta(description="Learn nothing from answers that were cut off (arXiv:2503.14476); no.")] | None
    ) = None
    updates_per_step: (
        Annotated[int, Meta(ge=1, le=8, description="Optimizer steps that the answers of a step are used for; 1.")]
        | None
    ) = None


class TrainingOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of this server. Null, or left out, means the server's default; a job shows the values that it uses."""

    finetuning_type: (
        Annotated[
            Literal["lora", "full"],
            Meta(
                description="What is trained: a LoRA adapter, which is served beside others on its base, or every "
                "weight, which makes a whole model that needs an inference server of its own."
            ),
        ]
        | None
    ) = None
    rank: Annotated[int, Meta(ge=1, le=512, description="LoRA rank; at most what the server serves.")] | None = None
    alpha: (
        Annotated[
            float, Meta(gt=0, le=4096, description="LoRA alpha: the adapter's product is scaled by alpha / rank.")
        ]
        | None
    ) = None
    dropout: Annotated[float, Meta(ge=0, lt=1, description="Dropout on the adapter's input.")] | None = None
    target_modules: (
        Annotated[
            list[TargetModule], Meta(min_length=1, max_length=7, description="Linear layers that get an adapter.")
        ]
        | None
    ) = None
    use_rslora: (
        Annotated[bool, Meta(description="Scale by alpha / sqrt(rank) (Kalajdzievski 2023, arXiv:2312.03732).")] | None
    ) = None
    quantization: (
        Annotated[
            Literal["none", "nf4"],
            Meta(description="Frozen base in training: as it is, or in 4 bits (QLoRA, arXiv:2305.14314)."),
        ]
        | None
    ) = None
    packing: (
        Annotated[bool, Meta(description="Lay rows end to end instead of padding them; no row sees another.")] | None
    ) = None
    max_length: (
        Annotated[int, Meta(ge=16, le=1 << 20, description="Longest row in tokens; at most the server's limit.")] | None
    ) = None
    overlong: (
        Annotated[
            Literal["refuse", "drop", "truncate_prompt"],
            Meta(
                description="What becomes of rows with more than `max_length` tokens: the job is refused, they are "
                "left out, or they lose the left of their prompt, never anything that is learnt."
            ),
        ]
        | None
    ) = None
    lr_schedule: (
        Annotated[
            Literal["linear", "cosine", "constant"], Meta(description="Course of the learning rate after warm-up.")
        ]
        | None
    ) = None
    warmup_ratio: (
        Annotated[float, Meta(ge=0, le=1, description="Share of the steps over which the learning rate rises.")] | None
    ) = None
    weight_decay: Annotated[float, Meta(ge=0, le=1, description="AdamW's weight decay.")] | None = None
    max_grad_norm: Annotated[float, Meta(gt=0, le=1000, description="Gradients are clipped to this norm.")] | None = (
        None
    )
    gradient_accumulation_steps: (
        Annotated[
            int,
            Meta(
                ge=1,
                le=256,
                description="Least number of pieces that a step's batch goes through the model in, to save memory; "
                "batch_size stays the examples of one optimizer step.",
            ),
        ]
        | None
    ) = None
    neftune_noise_alpha: (
        Annotated[
            float, Meta(gt=0, le=1000, description="Noise on the embeddings in training (NEFTune, arXiv:2310.05914).")
        ]
        | None
    ) = None
    dtype: (
        Annotated[
            Literal["auto", "float32", "bfloat16"],
            Meta(description="Numbers of the frozen base; auto: bfloat16 where the trainer's hardware is fast at it."),
        ]
        | None
    ) = None
    checkpoint_interval: (
        Annotated[
            int,
            Meta(
                ge=1,
                le=1_000_000,
                description="Steps between resume points, besides epochs' ends; null: a minute, or more.",
            ),
        ]
        | None
    ) = None
    evaluation_interval: (
        Annotated[
            int,
            Meta(
                ge=1,
                le=1_000_000,
                description="Steps between evaluations of the whole validation file, besides epochs' ends.",
            ),
        ]
        | None
    ) = None
    early_stopping: EarlyStopping | None = None
    reinforcement: ReinforcementOptions | None = None
    mlflow: MlflowSettings | None = None
    priority: (
        Annotated[
            Literal["low", "normal", "high"],
            Meta(description="Place in the queue, in turns of projects within it; `high` needs the scope `admin`."),
        ]
        | None
    ) = None
    memory_gb: (
        Annotated[
            float,
            Meta(
                gt=0,
                le=100_000,
                description="Memory in GB that a trainer must have to take the job, in place of the estimate.",
            ),
        ]
        | None
    ) = None


class ShownOptions(TrainingOptions, frozen=True, kw_only=True):
    """What a job shows: its options, its method if OpenAI has none like it, and what this server found out about it."""

    method: (
        Annotated[
            OwnMethod, Meta(description="A training method that OpenAI does not have, in place of the job's `method`.")
        ]
        | None
    ) = None

    estimated_memory_bytes: (
        Annotated[
            int,
            Meta(description="Most memory that training is expected to need, once files are read; no input."),
        ]
        | None
    ) = None
    waiting_reason: (
        Annotated[
            str,
            Meta(description="Why no trainer takes the job: none has the memory, or those are at work; no input."),
        ]
        | None
    ) = None
    cost: Annotated[JobCost, Meta(description="What it has taken of devices so far; no input.")] | None = None
