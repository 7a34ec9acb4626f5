"""Training methods and their hyperparameters, as a request gives them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Struct

Epochs: TypeAlias = Annotated[int, Meta(ge=1, le=50, description="Passes over the training file.")]
BatchSize: TypeAlias = Annotated[int, Meta(ge=1, le=256, description="Examples per optimizer step.")]
LearningRateMultiplier: TypeAlias = Annotated[
    float, Meta(gt=0, description="Factor on the server's base learning rate.")
]

Beta: TypeAlias = Annotated[
    float, Meta(gt=0, le=2, description="Pull towards the model that training starts from; higher stays closer.")
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


class Method(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Which training, and how: `supervised` or `dpo`.

    Settings of other methods may stand beside it and are ignored, as OpenAI does.
    """

    type: Literal["supervised", "dpo", "reinforcement"]
    supervised: SupervisedMethod | None = None
    dpo: DpoMethod | None = None
    reinforcement: Annotated[dict[str, Any] | None, Meta(description="Not offered yet; ignored beside another.")] = None
