"""The trainer's view of the inference servers: wait until one holds a new adapter, and ask it a few tokens."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import httpx2
import msgspec
import structlog
from msgspec import Struct

from services.trainer.protocol import ServedSample
from services.trainer.stores import Stores, persist
from shared import tracing
from shared.errors import NoReplica
from shared.placement import OWNERS
from shared.records import AdapterRecord, ReplicaRecord
from shared.stream_lines import stream_lines

ANSWER_TOKENS = 8
WARM_TIMEOUT_S = 30.0
START_TIMEOUT_S = 180.0
"""How long a job waits for a replica that is still starting; a running one has WARM_TIMEOUT_S."""
RESTART_S = 60.0
"""How long after its last heartbeat a replica that did not say goodbye is still expected to come back."""
ANSWER_TIMEOUT_S = 60.0
_POLL_S = 0.03

log = structlog.get_logger()


class AdapterRefused(NoReplica):
    """Every live replica refuses the adapter; the message is the replica's reason."""


@dataclass(frozen=True, slots=True)
class Answers:
    """Greedy answers of a replica, and when the first token of any of them arrived (Unix time)."""

    samples: list[ServedSample]
    first_token_at: float


class _Logprobs(Struct):
    token_logprobs: list[float]


class _Choice(Struct):
    token_ids: list[int] | None = None
    logprobs: _Logprobs | None = None


class _Chunk(Struct):
    choices: list[_Choice] = []


_decode_chunk = msgspec.json.Decoder(_Chunk).decode


class _Patience:
    """How long one wait goes on: WARM_TIMEOUT_S while a replica is ready, START_TIMEOUT_S until one is."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._ready_since: float | None = None

    def is_over(self, *, is_ready: bool) -> bool:
        now = time.monotonic()
        if not is_ready:
            self._ready_since = None
            return now - self._started > START_TIMEOUT_S
        self._ready_since = self._ready_since or now
        return now - self._ready_since > WARM_TIMEOUT_S


class Serving:
    """Asks replicas directly, past the gateway: a model is not listed before it has answered."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores
        headers = {"Authorization": f"Bearer {stores.internal_key()}"}
        timeout = httpx2.Timeout(ANSWER_TIMEOUT_S, connect=5.0)
        # Replicas are reached over plain HTTP on a private network; loading a trust store would take 0.1 s.
        self._http = httpx2.AsyncClient(headers=headers, timeout=timeout, trust_env=False)

    async def close(self) -> None:
        await self._http.aclose()

    async def wait_until_warm(self, adapter: AdapterRecord) -> ReplicaRecord:
        """Return a replica that holds the adapter.

        Raises NoReplica when none is alive for the base or gets there in time, AdapterRefused when all say why not.
        """
        patience = _Patience()
        while True:
            replicas = await persist(lambda: self._replicas_of(adapter.base))
            standing = await persist(lambda: self._stores.registry.residency(adapter.name))
            for replica in replicas:
                residency = standing.get(replica.id)
                if residency is not None and residency.state == "warm" and replica.state == "ready":
                    return replica
            await self._give_up_if(
                replicas, [standing[r.id].reason for r in replicas if _refused(standing, r)], patience
            )
            await asyncio.sleep(_POLL_S)

    async def _replicas_of(self, base: str) -> list[ReplicaRecord]:
        """List the living replicas that serve a base with its adapters, or do not know yet what they serve."""
        alive = await self._stores.presence.replicas()
        return [replica for replica in alive if replica.base in ("", base) and not replica.merged]

    async def _give_up_if(self, replicas: list[ReplicaRecord], reasons: list[str], patience: _Patience) -> None:
        alive = [replica for replica in replicas if replica.state != "draining"]
        if not alive:
            silent_s = await persist(self._stores.presence.seconds_without_replica)
            if silent_s > RESTART_S:
                raise NoReplica("no inference server is running for this base model")
        elif len(reasons) >= min(OWNERS, len(alive)):  # the others have not tried
            raise AdapterRefused(f"the inference server refuses it: {reasons[0]}")
        if patience.is_over(is_ready=any(replica.state == "ready" for replica in alive)):
            raise NoReplica("no inference server has loaded it in time")

    async def answers(self, replica: ReplicaRecord, model: str, prompts: list[list[int]]) -> Answers:
        """Let a replica go on greedily from each prompt. Raises NoReplica when it does not answer properly."""
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                found = await asyncio.gather(*(self._answer(replica.url, model, prompt) for prompt in prompts))
        except (httpx2.HTTPError, TimeoutError, msgspec.MsgspecError) as error:
            raise NoReplica(f"the inference server did not answer: {type(error).__name__}") from error
        return Answers([sample for sample, _ in found], min(at for _, at in found))

    async def _answer(self, url: str, model: str, prompt: list[int]) -> tuple[ServedSample, float]:
        body: dict[str, Any] = {
            "model": model, "prompt": prompt, "max_tokens": ANSWER_TOKENS, "temperature": 0, "logprobs": 1,
            "stream": True, "return_token_ids": True, "ignore_eos": True,
        }  # fmt: skip
        tokens: list[int] = []
        logprobs: list[float] = []
        first_token_at = 0.0
        async with self._http.stream("POST", f"{url}/v1/completions", json=body, headers=tracing.headers()) as response:
            if response.status_code != 200:
                text = (await response.aread()).decode(errors="replace")
                log.warning("serving.refused", status=response.status_code, body=text[:500])
                raise NoReplica(f"the inference server answered with status {response.status_code}")
            async for line in stream_lines(response.aiter_bytes()):
                choice = _choice(line)
                if choice is not None and choice.logprobs is not None:
                    first_token_at = first_token_at or time.time()
                    tokens += choice.token_ids or []
                    logprobs += choice.logprobs.token_logprobs
        if not tokens or len(tokens) != len(logprobs):
            raise NoReplica(f"the inference server sent {len(tokens)} tokens and {len(logprobs)} log probabilities")
        return ServedSample(prompt=prompt, tokens=tokens, logprobs=logprobs), first_token_at


def _refused(standing: dict[str, Any], replica: ReplicaRecord) -> bool:
    residency = standing.get(replica.id)
    return residency is not None and residency.is_refusal


def _choice(line: bytes) -> _Choice | None:
    """Read one line of the event stream; None for anything but a piece of the answer."""
    data = line.removeprefix(b"data:").strip()
    if not line.startswith(b"data:") or data == b"[DONE]":
        return None
    chunk = _decode_chunk(data)
    return chunk.choices[0] if chunk.choices else None
