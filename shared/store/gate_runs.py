"""What the gates of aliases saw last of each model."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from shared import keys
from shared.alias_records import AliasRecord
from shared.promotion_records import GateRun
from shared.store.client import Client

_MOST = 100
"""Models of one alias; those that were seen longest ago are forgotten."""

_decode = msgspec.json.Decoder(GateRun).decode
_encode = msgspec.json.Encoder().encode


class GateRunStore:
    """The last run of each model behind an alias's gate."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def note(self, alias: AliasRecord, seen: GateRun, *, rejudges: bool = True) -> None:
        """Note it in place of the model's run before, unless that is newer, or the alias was deleted meanwhile.

        Without `rejudges` a verdict over the same run is left alone, too. A `passed_run_id` that is empty is taken over
        from the run before, if that was asked the same; if there is none, it is this run once that has passed.
        """
        found = await self.all(alias.uid)
        others = sorted((one for one in found.values() if one.model != seen.model), key=lambda one: one.at)
        await self._client.script(
            "note_gate_run",
            [keys.alias(alias.project, alias.name), keys.gate_runs(alias.uid)],
            [
                *(alias.uid, seen.model, _encode(seen), int(rejudges)),
                *(one.model for one in others[: len(others) + 1 - _MOST]),
            ],
        )

    async def find(self, uid: str, model: str) -> GateRun | None:
        raw = await self._client.call("HGET", keys.gate_runs(uid), model)
        return None if raw is None else _decode(raw)

    async def all(self, uid: str) -> Mapping[str, GateRun]:
        """Return them by model."""
        found = await self._client.call("HGETALL", keys.gate_runs(uid))
        return {model.decode(): _decode(raw) for model, raw in found.items()}
