"""Requests as OpenAI's SDK makes them: tried up to three times, each time at the other api process."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any

import httpx2

from tests.faults.ledger import Answer, KnownFile, Ledger

_TRIES = 3
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 8.0
_TIMEOUT_S = 30.0
"""More than any process is frozen for: what is given up is not done later, unless it was done already."""
_EXCUSED = frozenset({502, 503, 504, 507})
"""What a fault may be answered with."""


class Calls:
    """The requests of one client; `name` is in everything that it makes, `urls` are those of the api processes."""

    def __init__(self, name: str, urls: Sequence[str], key: str, ledger: Ledger, dice: random.Random) -> None:
        self.name = name
        self.ledger = ledger
        self.dice = dice
        self.lost = 0
        """Tries whose outcome nobody knows, or that were refused for a fault."""
        self._count = 0
        self._key = key
        self._urls = cycle(dice.sample(urls, len(urls)))
        self._http = httpx2.AsyncClient(timeout=_TIMEOUT_S, trust_env=False)

    async def close(self) -> None:
        await self._http.aclose()

    def new_name(self, what: str) -> str:
        self._count += 1
        return f"{what}-{self.name}-{self._count}"

    async def ask(
        self,
        method: str,
        path: str,
        *,
        fine: Sequence[int] = (),
        fine_again: Sequence[int] = (),
        excuse: Callable[[int], bool] = lambda _: False,
        **more: Any,
    ) -> Answer | None:
        """Return the answer; None if none came, or a fault's, or a refusal that is right.

        These are the statuses `fine`, `fine_again` once an earlier try may have done it, and what `excuse` is true of.
        Everything else is wrong.
        """
        headers = {"authorization": f"Bearer {self._key}", "idempotency-key": self.new_name("key")}
        headers |= more.pop("headers", {})
        lost_before = self.lost
        for pauses in range(_TRIES):
            response = await self._try(method, path, headers, more)
            if response is not None and response.status_code == 200:
                return dict(response.json())
            expected = (*fine, *(fine_again if self.lost > lost_before else ()))
            if response is None or response.status_code in _EXCUSED:
                self.lost += 1
                self.ledger.unavailable += 1
            elif response.status_code not in expected and not excuse(response.status_code):
                self.ledger.blame(method, path, "was answered", response.status_code, response.text[:300])
            if response is not None and not _is_tried_again(response):
                return None
            if pauses < _TRIES - 1:
                await asyncio.sleep(self._pause_s(pauses, response))
        self.ledger.given_up += 1
        return None

    async def upload(self, content: bytes | None = None, *, purpose: str = "user_data") -> str | None:
        """Upload a file; returns its id if that was acknowledged. One for another purpose is not deleted."""
        name = self.new_name("file")
        content = content if content is not None else f'{{"n": "{name}"}}\n'.encode() * self.dice.randint(1, 4000)
        digest = hashlib.sha256(content).hexdigest()
        self.ledger.maybe_files[name] = digest
        lost_before = self.lost
        made = await self.ask("POST", "/files", data={"purpose": purpose}, files={"file": (name, content)})
        if made is None:
            return None
        if self.lost == lost_before:
            del self.ledger.maybe_files[name]
        self.ledger.files[made["id"]] = KnownFile(digest, in_use=purpose != "user_data")
        return str(made["id"])

    async def _try(self, method: str, path: str, headers: Answer, more: Answer) -> httpx2.Response | None:
        try:
            return await self._http.request(method, f"{next(self._urls)}/v1{path}", headers=headers, **more)
        except httpx2.HTTPError:
            return None

    def _pause_s(self, pauses: int, response: httpx2.Response | None) -> float:
        told = response.headers.get("retry-after", "") if response is not None else ""
        if told.isdigit() and int(told):
            return float(told)
        return min(_FIRST_PAUSE_S * 2.0**pauses, _LONGEST_PAUSE_S) * self.dice.uniform(0.75, 1)


def _is_tried_again(response: httpx2.Response) -> bool:
    told = response.headers.get("x-should-retry")
    return told == "true" or (told != "false" and (response.status_code in (408, 409, 429) or response.is_server_error))
