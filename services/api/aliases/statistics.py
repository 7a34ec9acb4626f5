"""How the models of an alias did lately, as the API shows it."""

from __future__ import annotations

import time
from collections import Counter
from typing import Literal, TypeAlias

from services.api.aliases.tally import Tally, tallies
from shared.alias_records import AliasRecord
from shared.schemas.aliases import AliasTraffic, ModelTraffic
from shared.store.alias_traffic import TrafficStore

Role: TypeAlias = Literal["target", "canary", "shadow", "former"]

_ORDER: dict[Role, int] = {"target": 0, "canary": 1, "shadow": 2, "former": 3}


async def statistics(record: AliasRecord, traffic: TrafficStore, *, window_s: int) -> AliasTraffic:
    """Add up the last `window_s` seconds by model: the alias's own first, then those that it had."""
    counted = await traffic.read(record.uid, window_s=window_s, now=time.time())
    found = {model: Tally(Counter()) for model in record.models()} | tallies(counted)
    shown = [_shown(model, _role(record, model), tally) for model, tally in found.items()]
    return AliasTraffic(window_s=window_s, data=sorted(shown, key=lambda one: (_ORDER[one.role], one.id)))


def _role(record: AliasRecord, model: str) -> Role:
    if model == record.target:
        return "target"
    if record.canary is not None and model == record.canary.model:
        return "canary"
    return "shadow" if model in record.models() else "former"


def _shown(model: str, role: Role, tally: Tally) -> ModelTraffic:
    counts = tally.counts
    return ModelTraffic(
        id=model,
        role=role,
        requests=tally.requests,
        errors=tally.errors,
        error_rate=round(tally.error_rate, 4),
        refused=counts["refused"],
        abandoned=counts["abandoned"],
        first_byte_ms=tally.latency("first"),
        total_ms=tally.latency("total"),
        input_tokens=counts["input_tokens"],
        output_tokens=counts["output_tokens"],
        shadowed=counts["shadowed"],
        shadow_skipped=counts["skipped"],
    )
