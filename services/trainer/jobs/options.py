"""What a job trains with: its options with every default filled in, and `auto` as numbers. No torch.

| option         | default                                                                        |
| -------------- | ------------------------------------------------------------------------------ |
| finetuning_type | lora; `full` has none of the four below, and float32 as dtype                 |
| rank           | the setting lora_rank; with a parent, the parent's                             |
| alpha          | twice the rank; with a parent, the parent's                                    |
| target_modules | all seven linear layers; with a parent, the parent's                           |
| use_rslora     | no; with a parent, the parent's                                                |
| dropout        | 0                                                                              |
| max_length     | what the server serves, or the base's context if that is shorter               |
| overlong       | refuse                                                                         |
| lr_schedule    | linear, after a warm-up over a twentieth of the steps                          |
| weight_decay   | 0: the low rank itself keeps an adapter small                                  |
| max_grad_norm  | 1                                                                              |
| dtype          | auto: the training process sees what the hardware is fast at                   |
| gradient_accumulation_steps | 1; no more than the batch has rows                                |
| reinforcement  | for that method: 8 answers a prompt at temperature 1, of 512 tokens or half of |
|                | max_length; KL 0.01, clip 0.2 and 0.28, scaled advantages, one update a step   |
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Literal

from msgspec.structs import replace

from services.trainer.failures import TrainingFailed
from services.trainer.jobs.hyperparameters import group_size, resolve, resolve_reinforcement
from services.trainer.jobs.parents import AdapterShape, find_parent, read_shape
from services.trainer.stores import Stores
from shared.records import BaseRecord, JobRecord
from shared.schemas.methods import LabelWeights, SupervisedHyperparameters
from shared.schemas.options import ReinforcementOptions, TargetModule, TrainingOptions
from shared.settings import Settings

MAX_COMPLETION_TOKENS = 512
"""Of an answer that reinforcement tries, unless half of max_length is less."""
AUTO_BETA = 0.1
"""`beta` of Rafailov et al. 2023 (arXiv:2305.18290, section 6); KTO's and ORPO's authors have the same."""
MOST_WEIGHT = 1000.0
"""Largest weight that a label may have."""

_TARGETS: tuple[TargetModule, ...] = (
    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
)  # fmt: skip


def effective(
    options: TrainingOptions, settings: Settings, base_context: int, parent: AdapterShape | None = None
) -> TrainingOptions:
    """Replace every None by the value used; `base_context` is in tokens. Twice is the same as once.

    What is off by default stays None: early_stopping, neftune_noise_alpha, and the intervals in steps.
    """
    is_full = options.finetuning_type == "full"
    max_length = options.max_length or min(settings.max_model_len, base_context)
    if not is_full:
        options = _with_shape(options, parent or _shape(options, settings))
    return replace(
        options,
        finetuning_type=options.finetuning_type or "lora",
        quantization=options.quantization or "none",
        packing=bool(options.packing),
        max_length=max_length,
        overlong=options.overlong or "refuse",
        lr_schedule=options.lr_schedule or "linear",
        warmup_ratio=0.05 if options.warmup_ratio is None else options.warmup_ratio,
        weight_decay=0.0 if options.weight_decay is None else options.weight_decay,
        max_grad_norm=1.0 if options.max_grad_norm is None else options.max_grad_norm,
        gradient_accumulation_steps=options.gradient_accumulation_steps or 1,
        dtype="float32" if is_full else options.dtype or "auto",
        priority=options.priority or "normal",
    )


def reinforcement_options(
    asked: ReinforcementOptions | None, max_length: int, compute_multiplier: float | Literal["auto"]
) -> ReinforcementOptions:
    """Replace every None; `max_length` is in tokens. Twice is the same as once."""
    asked = asked or ReinforcementOptions()
    room = min(MAX_COMPLETION_TOKENS, max_length // 2)
    return replace(
        asked,
        group_size=asked.group_size or group_size(compute_multiplier),
        temperature=1.0 if asked.temperature is None else asked.temperature,
        max_completion_tokens=asked.max_completion_tokens or room,
        kl_coefficient=0.01 if asked.kl_coefficient is None else asked.kl_coefficient,
        clip_low=0.2 if asked.clip_low is None else asked.clip_low,
        clip_high=0.28 if asked.clip_high is None else asked.clip_high,
        scale_advantages=True if asked.scale_advantages is None else asked.scale_advantages,
        mask_truncated=bool(asked.mask_truncated),
        updates_per_step=asked.updates_per_step or 1,
    )


def _shape(options: TrainingOptions, settings: Settings) -> AdapterShape:
    rank = options.rank or settings.lora_rank
    return AdapterShape(
        rank=rank,
        alpha=2.0 * rank if options.alpha is None else options.alpha,
        target_modules=_TARGETS if options.target_modules is None else tuple(options.target_modules),
        use_rslora=bool(options.use_rslora),
    )


def _with_shape(options: TrainingOptions, shape: AdapterShape) -> TrainingOptions:
    return replace(
        options,
        rank=shape.rank,
        alpha=shape.alpha,
        target_modules=list(shape.target_modules),
        use_rslora=shape.use_rslora,
        dropout=0.0 if options.dropout is None else options.dropout,
    )


async def job_options(stores: Stores, record: JobRecord) -> TrainingOptions:
    """Fill in a job's options. Raises TrainingFailed(model_not_found) when its base or its parent is gone."""
    base = await offered_base(stores, record)
    parent = await find_parent(stores, record)
    shape = None if parent is None else read_shape(stores.paths, parent)
    return options_of(record, stores.settings, base.context_length, shape)


def options_of(
    record: JobRecord, settings: Settings, base_context: int, parent: AdapterShape | None
) -> TrainingOptions:
    """Fill in a job's options; those of reinforcement only where that is its method."""
    options = effective(record.options, settings, base_context, parent)
    if record.reinforcement is None:
        return options
    assert options.max_length is not None
    compute = record.reinforcement.hyperparameters.compute_multiplier
    return replace(options, reinforcement=reinforcement_options(options.reinforcement, options.max_length, compute))


async def offered_base(stores: Stores, record: JobRecord) -> BaseRecord:
    """Return the record of a job's base, with an absolute path.

    Raises TrainingFailed(model_not_found) when it is gone, or is a fine-tuned model that is not the project's to use.
    """
    base = await stores.registry.base(record.model)
    if base is None or (base.origin and await stores.registry.usable(base.id, record.project) is None):
        raise TrainingFailed(f"The base model {record.model} is not offered here any more.", code="model_not_found")
    placed = base.placed(stores.paths.home)
    if base.origin:  # the operator's own are on every host
        with suppress(FileNotFoundError):  # whoever reads it says so
            await stores.blobs.fetch(Path(placed.path))
    return placed


def settle(record: JobRecord, n_examples: int, options: TrainingOptions, *, n_desirable: int = 0) -> JobRecord:
    """Write down what a job will train with, so that it shows it from the queue on.

    `n_desirable` of the examples have the label true; it matters for KTO alone.
    """
    beta = resolve_beta(record.requested_beta) if record.method in ("dpo", "kto", "orpo") else None
    weights = None
    if record.method == "kto":
        weights = resolve_weights(record.requested_weights, n_desirable, n_examples - n_desirable)
    record = _with_resolved(record, n_examples, options)
    chosen = record.resolved
    assert chosen is not None and chosen.batch_size != "auto"
    pieces = min(options.gradient_accumulation_steps or 1, chosen.batch_size)
    options = replace(options, gradient_accumulation_steps=pieces)
    return replace(record, resolved_beta=beta, resolved_weights=weights, options=options)


def _with_resolved(record: JobRecord, n_examples: int, options: TrainingOptions) -> JobRecord:
    if record.reinforcement is None:
        return replace(record, resolved=resolve(record.requested, n_examples, record.method))
    own = options.reinforcement
    assert own is not None and own.group_size is not None
    chosen = resolve_reinforcement(record.reinforcement.hyperparameters, n_examples, answers=own.group_size)
    shared = {name: getattr(chosen, name) for name in SupervisedHyperparameters.__struct_fields__}
    return replace(record, resolved=SupervisedHyperparameters(**shared), resolved_reinforcement=chosen)


def resolve_beta(asked: float | Literal["auto"]) -> float:
    return AUTO_BETA if asked == "auto" else float(asked)


def resolve_weights(asked: LabelWeights, n_desirable: int, n_undesirable: int) -> LabelWeights:
    """Replace each `auto` so that both labels weigh alike: the lower end of arXiv:2402.01306's range (equation 8).

    With both `auto` the commoner label has the weight 1. There is at least one row of each label.
    """
    alike = n_undesirable / n_desirable
    if asked.desirable != "auto":
        desirable = asked.desirable
    else:
        desirable = max(1.0, alike) if asked.undesirable == "auto" else asked.undesirable * alike
    undesirable = desirable / alike if asked.undesirable == "auto" else asked.undesirable
    return LabelWeights(desirable=_as_weight(desirable), undesirable=_as_weight(undesirable))


def _as_weight(weight: float) -> float:
    return min(MOST_WEIGHT, float(f"{weight:.4g}"))
