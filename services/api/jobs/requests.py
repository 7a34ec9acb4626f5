"""What a job's request asks for, read and checked as far as it says so itself: method, hyperparameters, options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from services.api.jobs.reinforcement import check_reinforcement, refuse_without, reinforcement_of
from shared.errors import InvalidRequest
from shared.schemas.integrations import JobIntegration, WandbIntegration, WandbRun
from shared.schemas.jobs import CreateJob
from shared.schemas.methods import (
    DpoHyperparameters,
    KtoHyperparameters,
    LabelWeights,
    MethodName,
    OrpoHyperparameters,
    OwnMethod,
    ReinforcementHyperparameters,
    ReinforcementMethod,
    SupervisedHyperparameters,
)
from shared.schemas.options import TrainingOptions
from shared.settings import Settings

_ADAPTER_SHAPE = ("alpha", "target_modules", "use_rslora")

BALANCED = LabelWeights()
"""Both weights are found from the data."""


@dataclass(frozen=True)
class Asked:
    """Method and hyperparameters of a request, wherever in it they stood."""

    method: MethodName
    hyperparameters: SupervisedHyperparameters
    beta: float | Literal["auto"] = "auto"
    weights: LabelWeights = BALANCED
    reinforcement: ReinforcementMethod | None = None


def asked(request: CreateJob) -> Asked:
    """Read `method` and `selftune.method`; where there are no hyperparameters, the deprecated ones count.

    Raises InvalidRequest for two methods, and for reinforcement without a grader.
    """
    old = request.hyperparameters or SupervisedHyperparameters()
    if request.own_method is not None:
        if request.method is not None:
            _refuse("method", "the request has a 'method' too; give one of them")
        return _own(request.own_method, old)
    if request.method is None:
        return Asked("supervised", old)
    if request.method.type == "reinforcement":
        reinforcement = reinforcement_of(request.method)
        return Asked("reinforcement", _common(reinforcement.hyperparameters), reinforcement=reinforcement)
    if request.method.type == "dpo":
        if request.method.dpo is None:
            return Asked("dpo", old)
        return Asked("dpo", _common(request.method.dpo.hyperparameters), request.method.dpo.hyperparameters.beta)
    return Asked("supervised", old if request.method.supervised is None else request.method.supervised.hyperparameters)


def _own(method: OwnMethod, old: SupervisedHyperparameters) -> Asked:
    """Read a method that OpenAI does not have."""
    if method.type == "kto" and method.kto is not None:
        kto = method.kto.hyperparameters
        weights = LabelWeights(desirable=kto.desirable_weight, undesirable=kto.undesirable_weight)
        return Asked("kto", _common(kto), kto.beta, weights)
    if method.type == "orpo" and method.orpo is not None:
        return Asked("orpo", _common(method.orpo.hyperparameters), method.orpo.hyperparameters.beta)
    if method.type == "reward" and method.reward is not None:
        return Asked("reward", method.reward.hyperparameters)
    return Asked(method.type, old)


def _common(
    chosen: DpoHyperparameters | KtoHyperparameters | OrpoHyperparameters | ReinforcementHyperparameters,
) -> SupervisedHyperparameters:
    """Pick the hyperparameters that every method has."""
    return SupervisedHyperparameters(
        n_epochs=chosen.n_epochs,
        batch_size=chosen.batch_size,
        learning_rate_multiplier=chosen.learning_rate_multiplier,
    )


def check_options(request: CreateJob, settings: Settings, *, context_length: int, parent_rank: int | None) -> None:
    """Refuse options that could not be trained with or served. Raises InvalidRequest that names the option.

    `context_length` is the base's in tokens; `parent_rank` the rank of the model that training goes on from, if any.
    """
    options = request.options
    longest = min(settings.max_model_len, context_length)
    if asked(request).method == "reinforcement":
        check_reinforcement(request, longest=longest)
    else:
        refuse_without(options)
    if options.finetuning_type == "full":
        _check_full(options, parent_rank)
        if asked(request).method == "reward":
            _refuse("finetuning_type", "a reward model is an adapter with a head; leave the option out")
    _check_rank(options, settings, parent_rank)
    if options.max_length is not None and options.max_length > longest:
        _refuse("max_length", f"this server trains and serves at most {longest} tokens")
    if options.early_stopping is not None and request.validation_file is None:
        _refuse("early_stopping", "it watches the loss of a validation file; give the job a 'validation_file'")
    if options.evaluation_interval is not None and request.validation_file is None:
        _refuse("evaluation_interval", "it evaluates a validation file; give the job a 'validation_file'")
    if options.mlflow is not None and not settings.mlflow_tracking_uri:
        _refuse("mlflow", "this server knows no MLflow server; the operator sets mlflow_tracking_uri")
    _check_accumulation(request, options)
    for name in _ADAPTER_SHAPE:
        if parent_rank is not None and getattr(options, name) is not None:
            _refuse(name, "a job that goes on from a fine-tuned model has that model's adapter shape; leave it out")


def _check_full(options: TrainingOptions, parent_rank: int | None) -> None:
    """Training every weight leaves nothing to an adapter, and starts from a base of which nothing is rounded away."""
    if parent_rank is not None:
        _refuse(
            "finetuning_type",
            "the job goes on from an adapter, and can train that alone; leave the option out, or start from a base or "
            "from a model that was fully fine-tuned",
        )
    for name in ("rank", *_ADAPTER_SHAPE, "dropout"):
        if getattr(options, name) is not None:
            _refuse(name, "it is an adapter's, and with finetuning_type 'full' there is none; leave it out")
    if options.quantization not in (None, "none"):
        _refuse("quantization", "weights in 4 bits cannot be trained; leave it out, or finetuning_type 'full'")
    if options.dtype == "bfloat16":
        _refuse("dtype", "with finetuning_type 'full' weights are trained in float32: bfloat16 would lose small steps")


def _check_accumulation(request: CreateJob, options: TrainingOptions) -> None:
    """A batch is not cut into more pieces than it has rows; one of size `auto` is not known yet."""
    batch_size, pieces = asked(request).hyperparameters.batch_size, options.gradient_accumulation_steps
    if pieces is not None and batch_size != "auto" and pieces > batch_size:
        _refuse("gradient_accumulation_steps", f"a batch of {batch_size} rows cannot be cut into {pieces} pieces")


def _check_rank(options: TrainingOptions, settings: Settings, parent_rank: int | None) -> None:
    if parent_rank is not None and options.rank not in (None, parent_rank):
        _refuse("rank", f"the fine-tuned model that training goes on from has rank {parent_rank}")
    rank, served = parent_rank or options.rank or settings.lora_rank, settings.max_lora_rank
    if rank > served:
        _refuse(
            "rank",
            f"adapters of rank {rank} cannot be served here, at most {served}; lower it, or have the operator raise "
            "max_lora_rank",
            code="rank_not_servable",
        )


def _refuse(option: str, reason: str, *, code: str = "invalid_value") -> None:
    raise InvalidRequest(f"Invalid value for 'selftune.{option}': {reason}.", code=code, param=f"selftune.{option}")


def shown_integrations(asked_for: list[WandbIntegration] | None) -> list[JobIntegration]:
    """Form what a job shows of the integrations it was asked for, before any run exists."""
    return [
        JobIntegration(wandb=WandbRun(project=w.project, name=w.name, entity=w.entity, tags=w.tags))
        for w in (integration.wandb for integration in asked_for or [])
    ]
