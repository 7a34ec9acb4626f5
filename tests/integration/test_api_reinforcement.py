"""Jobs for reinforcement fine-tuning as requests make them: what they show, and what is refused before they exist."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import openai
import pytest

from tests.api_server import BASE
from tests.integration.test_api_job_options import create, sdk

__all__ = ["create", "sdk"]

GRADER = {
    "type": "string_check", "name": "right", "input": "{{sample.output_text}}", "reference": "{{item.label}}",
    "operation": "eq",
}  # fmt: skip
JUDGE = {
    "type": "score_model", "name": "tone", "model": BASE,
    "input": [{"role": "user", "content": "How good is {{sample.output_text}}?"}],
}  # fmt: skip
TASTE = {"type": "selftune_reward", "name": "taste", "model": BASE}
AUTO = {
    "n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto", "compute_multiplier": "auto",
    "eval_interval": "auto", "eval_samples": "auto", "reasoning_effort": "default",
}  # fmt: skip


def method(grader: Any = GRADER, **fields: Any) -> dict[str, Any]:
    return {"type": "reinforcement", "reinforcement": {"grader": grader, **fields}}


def multi(**parts: Any) -> dict[str, Any]:
    return {"type": "multi", "name": "both", "graders": parts, "calculate_output": " + ".join(parts)}


def test_job_shows_its_grader_and_hyperparameters(create: Callable[..., Any], sdk: openai.OpenAI) -> None:
    job = create(method=method(hyperparameters={"reasoning_effort": "medium", "compute_multiplier": 2}))
    strict = openai.OpenAI(base_url=sdk.base_url, api_key=sdk.api_key, _strict_response_validation=True)
    shown = strict.fine_tuning.jobs.retrieve(job.id)
    assert shown.method is not None and shown.method.reinforcement is not None
    assert shown.method.type == "reinforcement" and shown.method.reinforcement.grader.to_dict() == GRADER
    expected = AUTO | {"reasoning_effort": "medium", "compute_multiplier": 2}
    assert shown.method.to_dict()["reinforcement"] == {
        "grader": GRADER, "hyperparameters": expected, "response_format": None,
    }  # fmt: skip
    assert shown.hyperparameters.to_dict() == {name: AUTO[name] for name in list(AUTO)[:3]}


def test_response_format_and_a_map_of_graders_come_back_as_sent(create: Callable[..., Any]) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": {"type": "object"}}}
    grader = multi(right=GRADER, tone=JUDGE)
    job = create(method=method(grader, response_format=wanted))
    shown = job.to_dict()["method"]["reinforcement"]
    assert (shown["response_format"], shown["grader"], shown["hyperparameters"]) == (wanted, grader, AUTO)


def test_options_come_back_and_may_be_sent_again(create: Callable[..., Any]) -> None:
    options = {"reinforcement": {"group_size": 4, "kl_coefficient": 0, "max_completion_tokens": 16}}
    job = create(method=method(), extra_body={"selftune": options})
    shown = job.to_dict()
    own = {name: value for name, value in shown["selftune"]["reinforcement"].items() if value is not None}
    assert own == options["reinforcement"]
    again = create(method=shown["method"], extra_body={"selftune": shown["selftune"]})
    assert again.to_dict()["selftune"] == shown["selftune"]


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"type": "reinforcement"}, "method.reinforcement.grader", "missing_required_parameter"),
    ({"type": "reinforcement", "reinforcement": {}}, "method.reinforcement.grader", "missing_required_parameter"),
    (method(JUDGE | {"type": "label_model", "labels": ["a"], "passing_labels": []}),
     "method.reinforcement.grader.type", "invalid_value"),
    (method(GRADER | {"reference": "{{answer}}"}), "method.reinforcement.grader.reference", "invalid_value"),
    (method(multi(a=GRADER) | {"calculate_output": "a + b"}),
     "method.reinforcement.grader.calculate_output", "invalid_value"),
    (method(JUDGE | {"model": "no/such ../model"}), "method.reinforcement.grader.model", "model_not_found"),
    (method(TASTE), "method.reinforcement.grader.model", "invalid_value"),
    (method(multi(a=GRADER, b=TASTE | {"model": "ft:gone"})), "method.reinforcement.grader.graders.b.model",
     "model_not_found"),
    (method(multi(a=GRADER, b=JUDGE | {"model": "gone"})),
     "method.reinforcement.grader.graders.b.model", "model_not_found"),
    (method(hyperparameters={"compute_multiplier": 11}),
     "method.reinforcement.hyperparameters.compute_multiplier", "invalid_value"),
    (method(hyperparameters={"eval_interval": 0}),
     "method.reinforcement.hyperparameters.eval_interval", "invalid_value"),
    (method(hyperparameters={"beta": 0.1}), "method.reinforcement.hyperparameters.beta", "unknown_parameter"),
    (method(response_format={"type": "xml"}), "method.reinforcement.response_format.type", "invalid_value"),
    (method(response_format={"type": "json_schema"}),
     "method.reinforcement.response_format.json_schema", "invalid_value"),
    (method(response_format={"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}),
     "method.reinforcement.response_format.json_schema.name", "invalid_value"),
    (method(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "objekt"}}}),
     "method.reinforcement.response_format.json_schema.schema.type", "invalid_value"),
]  # fmt: skip


@pytest.mark.parametrize(("asked", "param", "code"), WRONG)
def test_what_cannot_be_graded_is_refused_by_field(
    create: Callable[..., Any], asked: dict[str, Any], param: str, code: str
) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        create(method=asked)
    assert (caught.value.param, caught.value.code) == (param, code)
    assert caught.value.status_code == (404 if code == "model_not_found" else 400)


UNFIT: list[tuple[dict[str, Any], str]] = [
    ({"finetuning_type": "full"}, "finetuning_type"),
    ({"quantization": "nf4"}, "quantization"),
    ({"packing": True}, "packing"),
    ({"neftune_noise_alpha": 5}, "neftune_noise_alpha"),
    ({"dropout": 0.1}, "dropout"),
    ({"early_stopping": {}}, "early_stopping"),
    ({"evaluation_interval": 3}, "evaluation_interval"),
    ({"overlong": "truncate_prompt"}, "overlong"),
    ({"rank": 512}, "rank"),
    ({"reinforcement": {"max_completion_tokens": 64}, "max_length": 64}, "reinforcement.max_completion_tokens"),
    ({"reinforcement": {"group_size": 1}}, "reinforcement.group_size"),
]


@pytest.mark.parametrize(("options", "param"), UNFIT)
def test_options_that_do_not_fit_are_named(create: Callable[..., Any], options: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        create(method=method(), extra_body={"selftune": options})
    assert caught.value.param == f"selftune.{param}"


def test_its_options_are_for_no_other_method(create: Callable[..., Any]) -> None:
    with pytest.raises(openai.BadRequestError, match="it is for the method 'reinforcement'") as caught:
        create(extra_body={"selftune": {"reinforcement": {"group_size": 4}}})
    assert caught.value.param == "selftune.reinforcement"


def test_python_grader_is_refused_where_none_can_run(create: Callable[..., Any]) -> None:
    with pytest.raises(openai.BadRequestError, match="they are turned off on this server") as caught:
        create(method=method({"type": "python", "source": "def grade(sample, item):\n    return 1.0\n"}))
    assert (caught.value.param, caught.value.code) == ("method.reinforcement.grader", "python_graders_unavailable")
