"""What a request for reinforcement fine-tuning may not ask for: options that do not fit it, forms that mean nothing."""

from __future__ import annotations

import re
from typing import Any

from services.api.jobs.schema_form import fault_of_schema
from shared.errors import InvalidRequest
from shared.schemas.jobs import CreateJob
from shared.schemas.methods import Method, ReinforcementMethod
from shared.schemas.options import TrainingOptions

GRADER = "method.reinforcement.grader"
"""Where the request has it."""
_UNFIT = {
    "packing": "answers are laid out as they are sampled; leave it out",
    "neftune_noise_alpha": "noise would make the model another one than the one that answers; leave it out",
    "early_stopping": "it watches a loss, which reinforcement has none of; the best checkpoints by reward are kept",
    "evaluation_interval": "give method.reinforcement.hyperparameters.eval_interval instead",
}
"""Options that are for learning from given answers alone, and why."""
_FORMATS = ("text", "json_object", "json_schema")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def reinforcement_of(method: Method) -> ReinforcementMethod:
    """Return what is asked for. Raises InvalidRequest that names the field."""
    if method.reinforcement is None:
        raise InvalidRequest(
            f"Missing required parameter: '{GRADER}'.", code="missing_required_parameter", param=GRADER
        )
    _check_format(method.reinforcement.response_format)
    return method.reinforcement


def check_reinforcement(request: CreateJob, *, longest: int) -> None:
    """Refuse options that do not go with the method; `longest` is what is served, in tokens. Raises InvalidRequest."""
    options = request.options
    for name, reason in _UNFIT.items():
        if getattr(options, name):
            _refuse(name, reason)
    if options.finetuning_type == "full":
        _refuse(
            "finetuning_type",
            "answers are sampled from the model as it learns, which servers can load as an adapter alone; leave it out",
        )
    if options.quantization == "nf4":
        _refuse("quantization", "answers are sampled on the base as it is, and would be another model's; leave it out")
    if options.dropout:
        _refuse("dropout", "it would make the model another one than the one that answers; leave it out")
    if options.overlong == "truncate_prompt":
        _refuse("overlong", "a question is not answered without its beginning; use 'refuse' or 'drop'")
    _check_lengths(options, longest)


def refuse_without(options: TrainingOptions) -> None:
    """Refuse options of reinforcement in a job of another method. Raises InvalidRequest."""
    if options.reinforcement is not None:
        _refuse("reinforcement", "it is for the method 'reinforcement'; leave it out")


def _check_lengths(options: TrainingOptions, longest: int) -> None:
    answer = None if options.reinforcement is None else options.reinforcement.max_completion_tokens
    room = min(longest, options.max_length or longest)
    if answer is not None and answer >= room:
        _refuse(
            "reinforcement.max_completion_tokens",
            f"question and answer have {room} tokens together; leave some for both",
        )


def _check_format(wanted: dict[str, Any] | None) -> None:
    if wanted is None:
        return
    where = "method.reinforcement.response_format"
    if wanted.get("type") not in _FORMATS:
        raise _misformed(f"{where}.type", f"expected one of {', '.join(_FORMATS)}")
    if wanted["type"] == "json_schema":
        _check_schema(wanted.get("json_schema"), f"{where}.json_schema")


def _check_schema(described: Any, where: str) -> None:
    if not isinstance(described, dict) or not isinstance(described.get("schema"), dict):
        raise _misformed(where, "expected an object with a 'schema'")
    name = described.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise _misformed(f"{where}.name", "expected 1 to 64 letters, digits, '_' or '-'")
    if fault := fault_of_schema(described["schema"], f"{where}.schema"):
        raise _misformed(*fault)


def _misformed(where: str, reason: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid value for '{where}': {reason}.", code="invalid_value", param=where)


def _refuse(option: str, reason: str) -> None:
    raise InvalidRequest(
        f"Invalid value for 'selftune.{option}': {reason}.", code="invalid_value", param=f"selftune.{option}"
    )
