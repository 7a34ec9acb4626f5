"""A model merged into its base on an engine of its own: the same answers, for its name alone, until it is retired."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from msgspec.structs import replace
from peft import PeftModel
from transformers import AutoModelForCausalLM

from services.api.adapters import staging
from services.inference.engine.merging import with_adapter
from shared.adapters import CONFIG_NAME
from shared.blobs.local import LocalBlobs
from shared.paths import Paths
from shared.records import BaseRecord
from tests.integration.inference_stack import BASE_ID, InferenceStack, inference_stack, make_adapter, make_base

PROMPT = [20, 30, 40, 50, 60]
COUNT = 12
NAME = f"ft:{BASE_ID}:org:merged:1"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What somebody else's PEFT has written, who calls the base by a path of theirs."""
    return make_adapter(tmp_path_factory.mktemp("adapter"), base, seed=3, base_id="/home/else/llama")


@pytest.fixture(scope="module")
def stack(base: Path) -> Iterator[InferenceStack]:
    with inference_stack(base, max_loras=2, max_cpu_loras=4) as stack:
        stack.register_base()
        yield stack


def publish(stack: InferenceStack, adapter: Path) -> None:
    """Take the adapter in as POST /v1/models does, and publish it."""
    paths = Paths(stack.home)
    paths.prepare()
    record = BaseRecord(id=BASE_ID, path=str(stack.base), fingerprint="tiny", context_length=512, created_at=1)
    config, weights = adapter / CONFIG_NAME, adapter / "adapter_model.safetensors"

    async def take_in() -> Path:
        async with staging.staged(config, weights, base=record, max_rank=8, paths=paths) as staged:
            return await staging.publish(staged, record, LocalBlobs(paths))

    folder = asyncio.run(take_in())
    stack.publish(NAME, folder, listed=True)


def ask(stack: InferenceStack, name: str) -> httpx2.Response:
    body = {"model": name, "prompt": PROMPT, "max_tokens": COUNT, "temperature": 0, "ignore_eos": True}
    with stack.http() as client:
        return client.post("/v1/completions", json={**body, "return_token_ids": True})


def tokens(stack: InferenceStack, name: str) -> list[int]:
    response = ask(stack, name)
    assert response.status_code == 200, response.text
    assert response.json()["model"] == name
    ids: list[int] = response.json()["choices"][0]["token_ids"]
    return ids


def greedy_with_peft(base: Path, adapter: Path) -> list[int]:
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return greedy_of(PeftModel.from_pretrained(plain, str(adapter)).eval())


def greedy(base: Path) -> list[int]:
    return greedy_of(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval())


def greedy_of(model: Any) -> list[int]:
    ids = list(PROMPT)
    for _ in range(COUNT):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(PROMPT) :]


def test_merged_model_answers_as_the_adapter_does_and_for_itself_alone(
    stack: InferenceStack, base: Path, adapter: Path
) -> None:
    stack.settings = replace(stack.settings, merged_model=NAME)
    stack.start()
    stack.wait_for(lambda: [r for r in stack.replicas() if r.state == "waiting" and "which is not here" in r.reason])
    publish(stack, adapter)
    replica = stack.wait_ready()
    assert (replica.base, replica.merged, replica.max_loras) == (BASE_ID, NAME, 0)
    # An engine that has it beside the base answers so, too: test_greedy_tokens_and_logprobs_equal_plain_peft.
    assert tokens(stack, NAME) == greedy_with_peft(base, adapter) != greedy(base)
    stack.wait_residency(NAME, "warm")
    other = f"ft:{BASE_ID}:org:other:1"
    stack.publish(other, adapter, listed=True)
    for name in (BASE_ID, other, "unknown"):
        refused = ask(stack, name)
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found"), refused.text
        assert f"answers for '{NAME}' alone" in refused.json()["error"]["message"]

    stack.retire(NAME)
    assert stack.process is not None
    assert stack.process.wait(timeout=30) == 1, stack.tail()
    assert stack.replicas() == []
    assert "model.retired" in stack.tail() and "replica.failed" not in stack.tail()


def test_weights_that_cannot_be_merged_are_named(base: Path, adapter: Path, tmp_path: Path) -> None:
    strong = shutil.copytree(adapter, tmp_path / "strong")
    config = json.loads((adapter / CONFIG_NAME).read_text())
    (strong / CONFIG_NAME).write_text(json.dumps(config | {"lora_alpha": 4e4}))
    module = "model.layers.0.self_attn.q_proj"
    whole = dict(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).state_dict())
    merged = dict(with_adapter(whole.items(), adapter))
    assert merged.keys() == whole.keys()
    assert torch.equal(merged["model.norm.weight"], whole["model.norm.weight"])
    weight = whole[f"{module}.weight"]
    for changed, folder, reason in (
        (weight.to(torch.int8), adapter, "stored as torch.int8"),
        (weight.to(torch.float8_e4m3fn), adapter, "stored as torch.float8_e4m3fn"),
        (weight[:-1], adapter, "has shape"),
        (torch.full_like(weight, 65504.0).half(), strong, "not finite any more"),
    ):
        with pytest.raises(ValueError, match=reason):
            dict(with_adapter({**whole, f"{module}.weight": changed}.items(), folder))
    del whole[f"{module}.weight"]
    with pytest.raises(ValueError, match=f"no plain weight of {module}"):
        dict(with_adapter(whole.items(), adapter))
