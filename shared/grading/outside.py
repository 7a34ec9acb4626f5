"""Servers outside that speak OpenAI's API: where they are, with which key, and one question to one of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import httpx2

from shared.grading.means import JudgeFailed
from shared.outgoing import Outgoing, Refused
from shared.settings import JudgeEndpoint

_MAX_ANSWER_BYTES = 4 << 20
_BUSY = frozenset({408, 429, 500, 502, 503, 504})
_AWAY = frozenset({429, 503})


class Busy(JudgeFailed):
    """A judge that may answer when it is asked again."""


class Away(Busy):
    """A judge that answers nothing at the moment, whatever it is asked."""


class OutsideJudges:
    """The configured endpoints by name. Follows no redirect, takes no proxy from the environment."""

    def __init__(self, endpoints: Mapping[str, JudgeEndpoint], outgoing: Outgoing) -> None:
        self._endpoints = endpoints
        self._outgoing = outgoing
        # Every question has its own limit of time, which whoever asks sets.
        self._http = httpx2.AsyncClient(timeout=None, trust_env=False, follow_redirects=False)

    def __contains__(self, name: str) -> bool:
        return name in self._endpoints

    async def ask(self, name: str, body: bytes) -> bytes:
        """Post a chat completion's request and return the answer's body. Raises JudgeFailed, Busy when it may help."""
        endpoint = self._endpoints[name]
        try:
            self._outgoing.check_host(urlsplit(endpoint.base_url).hostname or "")
        except Refused as error:
            raise JudgeFailed(f"the judge endpoint '{name}' may not be asked: {error}") from error
        headers = {
            "content-type": "application/json",
            "user-agent": "selftune-graders",
            **_authorization(name, endpoint),
        }
        try:
            return await self._post(name, f"{endpoint.base_url.rstrip('/')}/chat/completions", headers, body)
        except (httpx2.TransportError, httpx2.InvalidURL) as error:
            raise Away(f"the connection to the judge endpoint '{name}' failed ({type(error).__name__})") from error

    async def close(self) -> None:
        await self._http.aclose()

    async def _post(self, name: str, url: str, headers: dict[str, str], body: bytes) -> bytes:
        async with self._http.stream("POST", url, headers=headers, content=body) as response:
            status = response.status_code
            if status != 200:
                kind = Away if status in _AWAY else Busy if status in _BUSY else JudgeFailed
                raise kind(f"the judge endpoint '{name}' answered {status}")
            answer = bytearray()
            async for piece in response.aiter_bytes():
                answer += piece
                if len(answer) > _MAX_ANSWER_BYTES:
                    raise JudgeFailed(f"the answer of the judge endpoint '{name}' is longer than 4 MiB")
            return bytes(answer)


def _authorization(name: str, endpoint: JudgeEndpoint) -> dict[str, str]:
    key = os.environ.get(endpoint.key_env, "") if endpoint.key_env else ""
    if endpoint.key_file:
        try:
            key = Path(endpoint.key_file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeError) as error:
            raise JudgeFailed(f"the key of the judge endpoint '{name}' cannot be read") from error
    if not (key.isascii() and key.isprintable()):
        raise JudgeFailed(f"the key of the judge endpoint '{name}' is no key")
    return {"authorization": f"Bearer {key}"} if key else {}
