"""What an engine has to hold on every device: asserted on the CPU in test_inference_held.py, on CUDA in tests/gpu."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx2

from tests.integration.inference_stack import BASE_ID, InferenceStack, inference_stack

NEAR_TIE = 1e-3
"""Log probability by which two tokens may be apart and still change places when sums run in another order."""


NAMES = [f"ft:{BASE_ID}:org:held-{number}:1" for number in range(4)]
"""The adapters that `held_stack` publishes, in order."""


@contextmanager
def held_stack(base: Path, adapters: Sequence[Path]) -> Iterator[InferenceStack]:
    """Run a ready server with four adapters, all of them in one step and two more in memory at most."""
    with inference_stack(base, max_loras=4, max_cpu_loras=6) as stack:
        stack.register_base()
        for name, folder in zip(NAMES, adapters, strict=True):
            stack.publish(name, folder)
        stack.start()
        stack.wait_ready()
        yield stack


class Answer(NamedTuple):
    """Greedy tokens, the log probability of each, and how far the next best one was below it."""

    tokens: list[int]
    logprobs: list[float]
    leads: list[float]


def equal(mine: Answer, theirs: Answer) -> bool:
    """Tell whether two answers are the same up to a near tie, from which on greedy texts go different ways."""
    for here, there, lead in zip(mine.tokens, theirs.tokens, mine.leads, strict=True):
        if here != there:
            return lead < NEAR_TIE
    return True


def ask(client: httpx2.Client, model: str, prompt: list[int], *, tokens: int = 16) -> Answer:
    body = {
        "model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "logprobs": 2,
        "return_token_ids": True,
    }  # fmt: skip
    answer = client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    choice: dict[str, Any] = answer.json()["choices"][0]
    best = [sorted(step.values(), reverse=True) for step in choice["logprobs"]["top_logprobs"]]
    leads = [step[0] - step[1] if len(step) > 1 else 1.0 for step in best]
    return Answer(choice["token_ids"], choice["logprobs"]["token_logprobs"], leads)


def check_base_beside_adapters(stack: InferenceStack, adapters: list[str], *, cases: int) -> None:
    """The base's answers beside requests to adapters are those that it gives alone, and the adapters' are others."""
    drawn = random.Random(7)
    prompts = [[drawn.randrange(20, 300) for _ in range(drawn.randrange(1, 40))] for _ in range(cases)]
    with stack.http() as client, ThreadPoolExecutor(8) as pool:
        alone = [ask(client, BASE_ID, prompt) for prompt in prompts]
        asked = [(name, prompt) for prompt in prompts for name in (BASE_ID, *adapters)]
        found = list(pool.map(lambda one: ask(client, *one), asked))
    of = {name: [answer for (model, _), answer in zip(asked, found, strict=True) if model == name] for name, _ in asked}
    wrong = [place for place, answer in enumerate(of[BASE_ID]) if not equal(answer, alone[place])]
    assert not wrong, f"{len(wrong)} of {cases} answers of the base differ beside adapters: {wrong[:10]}"
    for name in adapters:
        changed = sum(answer.tokens != alone[place].tokens for place, answer in enumerate(of[name]))
        assert changed > cases * 0.9, f"{name} changed {changed} of {cases} answers"


def check_memory_is_flat(stack: InferenceStack, publish: Any, *, cycles: int) -> None:
    """Adapters that come, answer and go leave the engine's memory as it was, within 2 %."""
    assert stack.replica is not None

    def turn(number: int) -> None:
        name = f"ft:{BASE_ID}:org:cycle:{number}"
        publish(name)
        with stack.http() as client:
            ask(client, name, [20, 30], tokens=1)
        stack.retire(name)
        stack.wait_residency(name, "gone")

    for number in range(20):  # caches of torch and of the allocator fill first
        turn(number)
    before = _memory(stack)
    for number in range(20, 20 + cycles):
        turn(number)
    time.sleep(0.5)
    after = _memory(stack)
    assert after <= before * 1.02, f"{before >> 20} MiB before, {after >> 20} MiB after {cycles} adapters"


def _memory(stack: InferenceStack) -> int:
    return sum(process.memory_full_info().uss for process in stack.processes())
