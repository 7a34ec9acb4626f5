"""The few calls that moving needs, to OpenAI or to a server like it, with failures that an operator understands."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2
import msgspec

from shared.errors import InvalidRequest, NotAuthenticated, NotFound, SelftuneError, Unavailable

_TIMEOUT = httpx2.Timeout(600, connect=10)
_AGAIN = frozenset({408, 429, 500, 502, 503, 504})
_WAITS_S = (1.0, 4.0)


class OpenAIApi:
    """A base URL, with its `/v1`, and a key.

    Every call raises Unavailable when the server is away, NotAuthenticated for a wrong key, NotFound, and
    InvalidRequest with the server's own words for what it refuses.
    """

    def __init__(self, base_url: str, key: str) -> None:
        if not key:
            raise NotAuthenticated("no API key: give --api-key, or set OPENAI_API_KEY")
        self.base_url = base_url.rstrip("/")
        if not self.base_url.startswith(("http://", "https://")):
            raise InvalidRequest(f"the base URL '{base_url}' must begin with http:// or https://")
        try:
            self._http = httpx2.Client(
                base_url=self.base_url, headers={"authorization": f"Bearer {key}"}, timeout=_TIMEOUT
            )
        except (httpx2.InvalidURL, UnicodeEncodeError) as error:
            raise InvalidRequest(f"base URL or key cannot be used: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def get(self, path: str, **query: Any) -> dict[str, Any]:
        return self._call("GET", path, params=query)

    def post(self, path: str, body: dict[str, Any], *, idempotency_key: str) -> dict[str, Any]:
        return self._call("POST", path, json=body, headers={"idempotency-key": idempotency_key})

    def delete(self, path: str) -> dict[str, Any]:
        return self._call("DELETE", path)

    def upload(self, content: Path, *, filename: str, purpose: str, kept_s: int | None = None) -> dict[str, Any]:
        """Send a file; its bytes are read while they are sent. It is kept for ever, or for `kept_s` seconds."""
        fields = {"purpose": purpose}
        if kept_s is not None:
            fields |= {"expires_after[anchor]": "created_at", "expires_after[seconds]": str(kept_s)}
        with content.open("rb") as stream:
            return self._call("POST", "/files", data=fields, files={"file": (filename, stream)}, tries=1)

    def all(self, path: str, **query: Any) -> Iterator[dict[str, Any]]:
        """Yield the objects of every page of a list."""
        after: dict[str, str] = {}
        while True:
            page = self.get(path, **query, **after)
            yield from page["data"]
            if not page.get("has_more") or not page["data"]:
                return
            after = {"after": page["data"][-1]["id"]}

    def download(self, path: str, target: Path) -> None:
        """Write a file's bytes to `target`, whole or not at all."""
        partial = target.with_name(f".{target.name}.partial")
        try:
            with self._http.stream("GET", path) as response, partial.open("wb") as out:
                if not response.is_success:
                    response.read()
                    raise _refused(response)
                for piece in response.iter_bytes():
                    out.write(piece)
        except httpx2.TransportError as error:
            raise self._away(error) from error
        else:
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    def _call(self, method: str, path: str, *, tries: int = 3, **options: Any) -> dict[str, Any]:
        for wait_s in _WAITS_S[: tries - 1]:
            try:
                response = self._http.request(method, path, **options)
            except httpx2.TransportError as error:
                raise self._away(error) from error
            if response.status_code not in _AGAIN:
                return _decoded(response)
            time.sleep(wait_s)
        try:
            return _decoded(self._http.request(method, path, **options))
        except httpx2.TransportError as error:
            raise self._away(error) from error

    def _away(self, error: httpx2.TransportError) -> Unavailable:
        return Unavailable(f"{self.base_url} does not answer ({type(error).__name__}); is the server running?")


def _decoded(response: httpx2.Response) -> dict[str, Any]:
    if not response.is_success:
        raise _refused(response)
    try:
        return msgspec.json.decode(response.content, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{response.url} does not answer with JSON. Does the base URL end in /v1?") from error


def _refused(response: httpx2.Response) -> SelftuneError:
    param = None
    try:
        error = msgspec.json.decode(response.content)["error"]
        message, param = str(error["message"]), error.get("param")
        if error.get("code") == "unknown_url":
            message += " Does the base URL end in /v1?"
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        message = f"{response.url} answers with status {response.status_code}; Does the base URL end in /v1?"
    if response.status_code in (401, 403):
        return NotAuthenticated(f"{response.url.host} refuses the API key: {message}")
    if response.status_code == 404:
        return NotFound(message, param=param)
    return Unavailable(message) if response.status_code >= 500 else InvalidRequest(message)
