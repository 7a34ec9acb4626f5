"""What serving has to hold, on CUDA: `pytest -m gpu tests/gpu` where there is a device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.inference_stack import InferenceStack, make_adapter, make_base
from tests.integration.serving_cases import NAMES, ask, check_base_beside_adapters, check_memory_is_flat, held_stack

torch = pytest.importorskip("torch")

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [make_adapter(tmp_path_factory.mktemp("adapter"), base, seed=seed) for seed in range(len(NAMES))]


@pytest.fixture(scope="module")
def stack(base: Path, adapters: list[Path]) -> Iterator[InferenceStack]:
    with held_stack(base, adapters) as stack:
        yield stack


def test_base_requests_never_get_an_adapter(stack: InferenceStack) -> None:
    check_base_beside_adapters(stack, NAMES, cases=200)


def test_memory_stays_flat_while_adapters_come_and_go(stack: InferenceStack, base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", base, seed=9)
    check_memory_is_flat(stack, lambda name: stack.publish(name, adapter), cycles=500)


def test_log_probabilities_are_those_of_plain_peft(stack: InferenceStack, base: Path, adapters: list[Path]) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    prompt = [20, 30, 40, 50, 60]
    with stack.http() as client:
        answer = ask(client, NAMES[2], prompt)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapters[2])
    with torch.no_grad():
        logits = plain(torch.tensor([prompt + answer.tokens])).logits[0, len(prompt) - 1 : -1]
    chosen = logits.log_softmax(-1).gather(-1, torch.tensor(answer.tokens).unsqueeze(-1)).squeeze(-1)
    assert answer.logprobs == pytest.approx(chosen.tolist(), abs=5e-2)  # the engine computes in bfloat16
