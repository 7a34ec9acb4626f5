"""What a model has to show before an alias points to it."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from shared.schemas.evals import CompletionsRun, EvalFileContent, EvalFileId, EvalSampling, InputMessages

MAX_CONFIG_BYTES = 16 << 10
"""Of a gate, and of a monitor, as JSON: they are read with their alias for every request to it."""


class GateSource(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="completions"):
    """The rows that every model answers, as in a run's data source; they must stay the same."""

    source: EvalFileContent | EvalFileId
    input_messages: InputMessages
    sampling_params: EvalSampling | None = None

    def asking(self, model: str) -> CompletionsRun:
        """Form the data source of a run in which a model answers."""
        return CompletionsRun(
            source=self.source, input_messages=self.input_messages, model=model, sampling_params=self.sampling_params
        )


class GateCriteria(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What of a run counts; at least one is given, and all that are must hold."""

    min_pass_rate: (
        Annotated[float, Meta(ge=0, le=1, description="Least share of all rows that pass; rows with errors do not.")]
        | None
    ) = None
    against_current: (
        Annotated[
            Literal["not_worse", "better"],
            Meta(description="Compared over the same rows with the model that the alias points to; p below 0.05."),
        ]
        | None
    ) = None


class Gate(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An eval that a model passes before the alias points to it."""

    eval_id: Annotated[str, Meta(min_length=1, max_length=128)]
    data_source: GateSource
    criteria: GateCriteria
    fresh_hours: Annotated[
        float, Meta(ge=0.1, le=720, description="A run of this gate counts for so long, and is not made again.")
    ] = 24.0
    recheck_hours: (
        Annotated[
            float,
            Meta(ge=0.1, le=8760, description="Evaluate the alias's model so often; the alias goes back if it fails."),
        ]
        | None
    ) = None
