"""A model whose every weight was trained: published, refused where nothing serves it, then served as a base."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from msgspec.structs import replace
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.api_server import ApiServer, know_key
from tests.integration.inference_stack import BASE_ID, InferenceStack, inference_stack, make_base
from tests.integration.trainer_stack import running_trainer
from tests.unit.trainer.tiny import training_rows, write_rows

QUESTION = [{"role": "user", "content": "what is a red apple"}]
SHORT = {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 10}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InferenceStack]:
    """Valkey and a trainer; the test starts the replica."""
    base = make_base(tmp_path_factory.mktemp("base"))
    with (
        inference_stack(base, threads=1, lora_rank=4, max_model_len=256, lease_ttl_s=5.0) as running,
        running_trainer(running.settings, tmp_path_factory.mktemp("log")),
    ):
        yield running


@pytest.fixture(scope="module")
def api(stack: InferenceStack) -> Iterator[ApiServer]:
    given = stack.settings
    server = ApiServer(
        stack.home, given.redis_url, base_model=given.base_model, base_model_id=BASE_ID, threads=1,
        internal_key=given.internal_key, max_lora_rank=given.max_lora_rank, max_model_len=given.max_model_len,
        lora_rank=given.lora_rank,
    )  # fmt: skip
    yield server
    server.stop()


def finished(sdk: openai.OpenAI, **asked: Any) -> Any:
    job = sdk.fine_tuning.jobs.create(**asked)
    deadline = time.monotonic() + 120
    while job.status not in ("succeeded", "failed", "cancelled"):
        assert time.monotonic() < deadline, job
        time.sleep(0.2)
        job = sdk.fine_tuning.jobs.retrieve(job.id)
    assert job.status == "succeeded", job.error
    return job


def story(sdk: openai.OpenAI, job_id: str) -> list[str]:
    return [told.message for told in sdk.fine_tuning.jobs.list_events(job_id, limit=100)]


def greedy(folder: Path, count: int) -> str:
    """What transformers answers with the published folder."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**prompt, max_new_tokens=count, do_sample=False)
    text = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    return str(text).rstrip("\ufffd")  # the server holds back a character whose last bytes are missing


def test_whole_model_is_trained_served_trained_on_and_deleted(
    stack: InferenceStack, api: ApiServer, tmp_path: Path
) -> None:
    with openai.OpenAI(base_url=f"{api.url}/v1", api_key=api.key, max_retries=0) as sdk:
        stack.wait_for(lambda: any(model.id == BASE_ID for model in sdk.models.list()) or None)
        rows = write_rows(tmp_path / "rows.jsonl", training_rows(12))
        file_id = sdk.files.create(file=rows.open("rb"), purpose="fine-tune").id
        asked = {"model": BASE_ID, "training_file": file_id, "hyperparameters": SHORT, "suffix": "whole"}
        job = finished(sdk, **asked, extra_body={"selftune": {"finetuning_type": "full"}})
        name = job.fine_tuned_model
        assert name.startswith(f"ft:{BASE_ID}:selftune:whole:")
        assert job.selftune["finetuning_type"] == "full" and job.selftune["rank"] is None
        assert [c.fine_tuned_model_checkpoint for c in sdk.fine_tuning.jobs.checkpoints.list(job.id)] == [name]
        [folder] = (stack.home / "models" / job.id).iterdir()
        [told] = [message for message in story(sdk, job.id) if "is a whole model" in message]
        assert f"models/{job.id}/{folder.name}" in told and "base_model set to this name" in told
        assert [model.owned_by for model in sdk.models.list() if model.id == name] == ["selftune"]
        with pytest.raises(openai.InternalServerError, match="whole model: start one with base_model set") as caught:
            sdk.chat.completions.create(model=name, messages=QUESTION)  # type: ignore[arg-type]
        assert caught.value.status_code == 503

        serve(stack, name)
        answer = sdk.chat.completions.create(model=name, messages=QUESTION, max_tokens=8, temperature=0)  # type: ignore[arg-type]
        assert answer.model == name
        assert answer.choices[0].message.content == greedy(folder, 8) != greedy(stack.base, 8)

        on_top = finished(sdk, **(asked | {"model": name, "suffix": "top"}))
        assert on_top.model == name and on_top.fine_tuned_model.startswith(f"ft:{BASE_ID}:selftune:top:")
        assert any(message.startswith("The served model answers like the trained one") for message in
                   story(sdk, on_top.id))  # fmt: skip

        stranger = know_key(stack.settings.redis_url, "sk-of-another-project", project="proj_other")
        with openai.OpenAI(base_url=f"{api.url}/v1", api_key=stranger, max_retries=0) as other:
            assert name not in [model.id for model in other.models.list()]
            for ask in (
                lambda: other.models.retrieve(name),
                lambda: other.chat.completions.create(model=name, messages=QUESTION),  # type: ignore[arg-type]
                lambda: other.fine_tuning.jobs.create(model=name, training_file=file_id),
                lambda: other.models.delete(name),
            ):
                with pytest.raises(openai.NotFoundError):
                    ask()

        with pytest.raises(openai.BadRequestError, match=r"the base of 3 fine-tuned model\(s\)"):
            sdk.models.delete(name)
        for checkpoint in sdk.fine_tuning.jobs.checkpoints.list(on_top.id):
            sdk.models.delete(checkpoint.fine_tuned_model_checkpoint)
        assert sdk.models.delete(name).deleted
        assert not folder.exists()
        with pytest.raises(openai.NotFoundError):
            sdk.chat.completions.create(model=name, messages=QUESTION)  # type: ignore[arg-type]


def serve(stack: InferenceStack, name: str) -> None:
    """Start a replica whose base is the model."""
    stack.settings = replace(stack.settings, base_model=name, base_model_id="")
    stack.start()
    stack.wait_ready()
