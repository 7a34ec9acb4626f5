"""Sampled answers of aliases: those that are to be graded, those of the baseline, those of late, and what they show.

Whatever is added is added only while the alias is there and has a monitor, in the same step.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec

from shared import keys
from shared.alias_records import AliasRecord
from shared.monitor_records import DueSample, Sample, TrainingTraits
from shared.schemas.quality import QualityWindow
from shared.store.aliases import alias_event_id
from shared.store.client import Argument, Client

MOST_DUE = 1000
"""Where graders are too slow, the oldest that wait are dropped."""
MOST_FIRST = 1000
"""Of the baseline; of more, so many are kept at random (reservoir sampling: J. Vitter, ACM Transactions on Mathematical
Software 11, 1985), each as likely as the others."""
MOST_IN_WINDOW = 1000
"""The same of a window."""
MOST_SAMPLES = 2 * MOST_IN_WINDOW
"""The window that is going on, and the one before, which may be graded late."""
MOST_WINDOWS = 200

_decode_due = msgspec.json.Decoder(DueSample).decode
_decode_sample = msgspec.json.Decoder(Sample).decode
_decode_training = msgspec.json.Decoder(TrainingTraits).decode
_decode_window = msgspec.json.Decoder(QualityWindow).decode
_encode = msgspec.json.Encoder().encode


class SampleStore:
    """Samples by the alias's uid."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def claim(self, alias: AliasRecord, *, most: int, now: float) -> bool:
        """Count one more of this hour, of `most`; False when there were as many, or nobody wants any."""
        places = [keys.alias(alias.project, alias.name), keys.alias_hour(alias.uid, int(now // 3600))]
        return bool(await self._client.script("claim_sample", places, [alias.uid, most]))

    async def add_due(self, alias: AliasRecord, sample: DueSample) -> None:
        """Have an answer graded, whose completion is stored."""
        places = [keys.alias(alias.project, alias.name), keys.alias_due_samples(alias.uid)]
        await self._client.script("add_due_sample", places, [alias.uid, _encode(sample), MOST_DUE])

    async def due(self, uid: str, *, limit: int) -> Sequence[DueSample]:
        """List those that are to be graded, oldest first."""
        found = await self._client.call("LRANGE", keys.alias_due_samples(uid), 0, limit - 1)
        return [_decode_due(one) for one in found]

    async def count_due(self, uid: str) -> int:
        return int(await self._client.call("LLEN", keys.alias_due_samples(uid)))

    async def keep(self, alias: AliasRecord, due: DueSample, sample: Sample | None, *, window: float | None) -> None:
        """Take one off those that are to be graded, and keep what came of it; None keeps nothing.

        `window` is when its window begins, None for the baseline. Of what is more than a window or the baseline may
        have, some are kept at random. What was kept of an earlier model of the alias is forgotten.
        """
        uid = alias.uid
        places = [
            keys.alias(alias.project, alias.name), keys.alias_due_samples(uid), keys.alias_first_samples(uid),
            keys.alias_samples(uid), keys.alias_seen_samples(uid),
        ]  # fmt: skip
        kept = b"" if sample is None else _encode(sample)
        stretch, most = ("first", MOST_FIRST) if window is None else (f"{window:.0f}", MOST_IN_WINDOW)
        arguments: list[Argument] = [uid, _encode(due), kept, due.since, stretch, most, MOST_SAMPLES, random.random()]
        await self._client.script("keep_sample", places, arguments)

    async def first(self, uid: str, *, since: int) -> Sequence[Sample]:
        """List those of the baseline, oldest first, of the model that the alias has had since that revision."""
        return await self._samples(keys.alias_first_samples(uid), since)

    async def latest(self, uid: str, *, since: int) -> Sequence[Sample]:
        """List those of late, newest first."""
        return await self._samples(keys.alias_samples(uid), since)

    async def newest_at(self, uid: str) -> float:
        """Return the Unix time of the newest answer of late; 0 without any."""
        raw = await self._client.call("LINDEX", keys.alias_samples(uid), 0)
        return 0.0 if raw is None else _decode_sample(raw).at

    async def training(self, uid: str) -> TrainingTraits | None:
        raw = await self._client.call("GET", keys.alias_training(uid))
        return None if raw is None else _decode_training(raw)

    async def keep_training(self, alias: AliasRecord, found: TrainingTraits) -> None:
        places = [keys.alias(alias.project, alias.name), keys.alias_training(alias.uid)]
        await self._client.script("keep_training", places, [alias.uid, _encode(found)])

    async def windows(self, uid: str, *, limit: int = MOST_WINDOWS) -> Sequence[QualityWindow]:
        """List windows, newest first."""
        found = await self._client.call("LRANGE", keys.alias_windows(uid), 0, limit - 1)
        return [_decode_window(one) for one in found]

    async def add_window(self, alias: AliasRecord, window: QualityWindow, *, tell: bool) -> bool:
        """Add a window behind the others; False if it is there, or a later one. With `tell`, webhooks are told."""
        event = alias_event_id(alias.project, alias.name, int(window.ends_at), window.id)
        places = [keys.alias(alias.project, alias.name), keys.alias_windows(alias.uid), keys.OUTCOMES]
        outcome = f"{event} drifted" if tell else ""
        arguments: list[Argument] = [alias.uid, _encode(window), window.starts_at, MOST_WINDOWS, outcome]
        return bool(await self._client.script("add_window", places, arguments))

    async def _samples(self, key: str, since: int) -> Sequence[Sample]:
        found = [_decode_sample(one) for one in await self._client.call("LRANGE", key, 0, -1)]
        return [one for one in found if one.since == since]
