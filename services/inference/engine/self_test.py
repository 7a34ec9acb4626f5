"""The engine's proof before it takes requests: its adapters have an effect, and reach nobody else.

vLLM's own products on the CPU send a base request through the adapter in the last slot when the two are in one batch.
Here a base prompt is continued alone and beside a random adapter that would change it; that its tokens and their log
probabilities stay is what keeps tenants apart.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from vllm.lora.request import LoRARequest
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind, SamplingParams

from services.inference.engine.link import EngineLink
from shared.errors import SelftuneError

PROBE_ID = 2**31 - 1
"""The probe's adapter number; the registry counts up from 1 and does not get there."""
_CPU_WRAPPER = "GroupedPunicaWrapperCPU"
_ROUNDS = ((8, 4), (144, 1))
"""(tokens of the prompt, tokens made): batches small enough for compiled products, and one for torch's."""
_CLOSE = 1e-2
"""How far a token's log probability may move when other rows are in the batch: sums run in another order."""


class EngineFailed(SelftuneError):
    """The engine cannot go on; the process ends and its supervisor starts another."""


@dataclass(frozen=True, slots=True)
class Continuation:
    """What was made of the prompt, with the log probability of each token."""

    tokens: list[int]
    logprobs: list[float]

    def equals(self, other: Continuation) -> bool:
        """Tell whether both are the same up to rounding: at a near tie, the same prefix may go on differently."""
        for mine, theirs, here, there in zip(self.tokens, other.tokens, self.logprobs, other.logprobs, strict=True):
            if abs(here - there) > _CLOSE:
                return False
            if mine != theirs:
                return True
        return True


async def prove(
    engine: Any, link: EngineLink, deadline_s: float, *, generates: bool, max_tokens: int, takes_adapters: bool
) -> None:
    """Raises EngineFailed, with what went wrong, when the engine must not be used.

    An engine that does not generate is asked for its LoRA products only; one that takes no adapters, for some tokens.
    Requests have at most `max_tokens` tokens, prompt and answer.
    """
    if not takes_adapters:
        if generates:
            await _continue(engine, "alone", _ROUNDS[0], None)
        return
    status = await link.status(deadline_s)
    if current_platform.is_cpu() and status.wrapper != _CPU_WRAPPER:
        raise EngineFailed(f"the engine uses {status.wrapper} for LoRA instead of {_CPU_WRAPPER}")
    if not generates:
        return
    await link.install_probe(PROBE_ID)
    try:
        for size in _ROUNDS:
            if sum(size) <= max_tokens:
                await _compare(engine, size)
    finally:
        await link.drop([PROBE_ID])


async def _compare(engine: Any, size: tuple[int, int]) -> None:
    probe = LoRARequest("self-test", PROBE_ID, "/nonexistent")
    alone = await _continue(engine, "alone", size, None)
    beside, adapted = await asyncio.gather(
        _continue(engine, "beside", size, None), _continue(engine, "adapted", size, probe)
    )
    if not alone.equals(beside):
        raise EngineFailed("the self-test failed: an adapter changes what the base model answers beside it")
    if alone.equals(adapted):
        raise EngineFailed("the self-test failed: an adapter has no effect")


async def _continue(engine: Any, name: str, size: tuple[int, int], adapter: LoRARequest | None) -> Continuation:
    prompt_tokens, made_tokens = size
    request_id = f"self-test-{prompt_tokens}-{name}"
    parameters = SamplingParams(
        max_tokens=made_tokens, temperature=0.0, ignore_eos=True, logprobs=0, output_kind=RequestOutputKind.FINAL_ONLY
    )
    # Salted: what one request has left in the prefix cache must not spare the next one its products.
    prompt = {"prompt_token_ids": [1 + place % 7 for place in range(prompt_tokens)], "cache_salt": request_id}
    final = None
    async for output in engine.generate(prompt, parameters, request_id=request_id, lora_request=adapter):
        final = output.outputs[0]
    assert final is not None
    tokens = list(final.token_ids)
    chosen = [step[token].logprob for step, token in zip(final.logprobs, tokens, strict=True)]
    return Continuation(tokens, chosen)
