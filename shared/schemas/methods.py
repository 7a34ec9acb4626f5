"""Training methods and their hyperparameters, as a request gives them.

OpenAI's methods stand under `method`; those of this server alone under `selftune.method`, so that a job shows what
OpenAI's clients know.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias, get_args

from msgspec import Meta, Struct

from shared.schemas.graders import RunnableGrader

Epochs: TypeAlias = Annotated[int, Meta(ge=1, le=50, description="Passes over the training file.")]
BatchSize: TypeAlias = Annotated[int, Meta(ge=1, le=256, description="Examples per optimizer step.")]
LearningRateMultiplier: TypeAlias = Annotated[
    float, Meta(gt=0, description="Factor on the server's base learning rate.")
]

MethodName: TypeAlias = Literal["supervised", "dpo", "reinforcement", "kto", "orpo", "reward"]
"""What a job may be."""
METHODS: tuple[MethodName, ...] = get_args(MethodName)

Beta: TypeAlias = Annotated[
    float, Meta(gt=0, le=2, description="Pull towards the model that training starts from; higher stays closer.")
]

OddsWeight: TypeAlias = Annotated[
    float, Meta(gt=0, le=10, description="Weight of the odds ratio in the loss: the paper's lambda, TRL's beta.")
]
LabelWeight: TypeAlias = Annotated[
    float, Meta(gt=0, le=1000, description="Factor on the loss of rows with this label.")
]


class SupervisedHyperparameters(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """OpenAI's three; `auto` is resolved from the size of the data when the files have been read."""

    n_epochs: Literal["auto"] | Epochs = "auto"
    batch_size: Literal["auto"] | BatchSize = "auto"
    learning_rate_multiplier: Literal["auto"] | LearningRateMultiplier = "auto"


class DpoHyperparameters(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """OpenAI's four for preferences; `auto` is resolved when the files have been read."""

    n_epochs: Literal["auto"] | Epochs = "auto"
    batch_size: Literal["auto"] | BatchSize = "auto"
    learning_rate_multiplier: Literal["auto"] | LearningRateMultiplier = "auto"
    beta: Literal["auto"] | Beta = "auto"


class SupervisedMethod(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Supervised fine-tuning: learn to give the answers in the file."""

    hyperparameters: SupervisedHyperparameters = SupervisedHyperparameters()


class DpoMethod(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290): prefer one answer to another."""

    hyperparameters: DpoHyperparameters = DpoHyperparameters()


class ReinforcementHyperparameters(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """OpenAI's for reinforcement; `auto` is resolved when the files have been read."""

    n_epochs: Literal["auto"] | Epochs = "auto"
    batch_size: Literal["auto"] | Annotated[int, Meta(ge=1, le=256, description="Prompts per step.")] = "auto"
    learning_rate_multiplier: Literal["auto"] | LearningRateMultiplier = "auto"
    compute_multiplier: (
        Literal["auto"]
        | Annotated[
            float, Meta(gt=0.00001, le=10, description="Factor on the answers per prompt that are tried: 8 at 1.")
        ]
    ) = "auto"
    eval_interval: (
        Literal["auto"] | Annotated[int, Meta(ge=1, description="Steps between evaluations of the validation file.")]
    ) = "auto"
    eval_samples: Literal["auto"] | Annotated[int, Meta(ge=1, le=64, description="Answers per validation prompt.")] = (
        "auto"
    )
    reasoning_effort: Annotated[
        Literal["default", "low", "medium", "high"],
        Meta(description="Handed to the base's chat template, for bases that know of it."),
    ] = "default"


class ReinforcementMethod(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Reinforcement fine-tuning: give more often the answers that a grader rewards (GRPO, arXiv:2402.03300)."""

    grader: RunnableGrader
    hyperparameters: ReinforcementHyperparameters = ReinforcementHyperparameters()
    response_format: Annotated[
        dict[str, Any] | None, Meta(description="Form of the answers, as chat completions have it.")
    ] = None


class Method(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Which training, and how: `supervised`, `dpo` or `reinforcement`.

    Settings of other methods may stand beside it and are ignored, as OpenAI does.
    """

    type: Literal["supervised", "dpo", "reinforcement"]
    supervised: SupervisedMethod | None = None
    dpo: DpoMethod | None = None
    reinforcement: ReinforcementMethod | None = None


class KtoHyperparameters(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """For labelled answers; `auto` is resolved when the files have been read: the rarer label gets more weight."""

    n_epochs: Literal["auto"] | Epochs = "auto"
    batch_size: Literal["auto"] | BatchSize = "auto"
    learning_rate_multiplier: Literal["auto"] | LearningRateMultiplier = "auto"
    beta: Literal["auto"] | Beta = "auto"
    desirable_weight: Literal["auto"] | LabelWeight = "auto"
    undesirable_weight: Literal["auto"] | LabelWeight = "auto"


class OrpoHyperparameters(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """For preferences without a reference; `auto` is resolved when the files have been read."""

    n_epochs: Literal["auto"] | Epochs = "auto"
    batch_size: Literal["auto"] | BatchSize = "auto"
    learning_rate_multiplier: Literal["auto"] | LearningRateMultiplier = "auto"
    beta: Literal["auto"] | OddsWeight = "auto"


class KtoMethod(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Kahneman-Tversky optimization (Ethayarajh et al. 2024, arXiv:2402.01306): answers that are good, or bad."""

    hyperparameters: KtoHyperparameters = KtoHyperparameters()


class OrpoMethod(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Odds ratio preference optimization (Hong et al. 2024, arXiv:2403.07691): learn and prefer at once."""

    hyperparameters: OrpoHyperparameters = OrpoHyperparameters()


class RewardMethod(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A reward model (Bradley and Terry 1952; Stiennon et al. 2020, arXiv:2009.01325): give the better answer more."""

    hyperparameters: SupervisedHyperparameters = SupervisedHyperparameters()


class OwnMethod(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A method beyond OpenAI's, in place of `method`: `kto`, `orpo` or `reward`.

    Settings of other methods may stand beside it and are ignored.
    """

    type: Literal["kto", "orpo", "reward"]
    kto: KtoMethod | None = None
    orpo: OrpoMethod | None = None
    reward: RewardMethod | None = None


class LabelWeights(Struct, frozen=True, kw_only=True):
    """Factors on KTO's losses, by label."""

    desirable: Literal["auto"] | float = "auto"
    undesirable: Literal["auto"] | float = "auto"
