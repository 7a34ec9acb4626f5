"""One delivery of a webhook: signed as Standard Webhooks has it, sent to an address that was checked just before."""

from __future__ import annotations

import asyncio
import base64
import hmac
import secrets
import time
from collections.abc import Sequence

import httpx2

from services.api.webhooks import addresses
from shared.errors import InvalidRequest
from shared.outgoing import Outgoing
from shared.webhook_records import WebhookRecord

TIMEOUT_S = 10.0
_PREFIX = "whsec_"


class Undeliverable(Exception):
    """No answer came, or the address may not be asked; the text says why."""


def new_secret() -> str:
    """Return a signing secret: 192 random bits (https://www.standardwebhooks.com, "Signature scheme")."""
    return _PREFIX + base64.b64encode(secrets.token_bytes(24)).decode()


def sign(body: bytes, *, event_id: str, timestamp: int, keys: Sequence[str]) -> str:
    """Form the `webhook-signature` header: a signature for each key, separated by spaces."""
    signed = b"%s.%d.%s" % (event_id.encode(), timestamp, body)
    digests = (hmac.digest(base64.b64decode(key.removeprefix(_PREFIX)), signed, "sha256") for key in keys)
    return " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests)


class WebhookSender:
    """Posts events; follows no redirect, keeps no cookie and no connection."""

    def __init__(self, outgoing: Outgoing) -> None:
        self.outgoing = outgoing
        # A connection is found again by its address alone: kept, it would serve another name at the same address.
        self._transport = httpx2.AsyncHTTPTransport(
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=0), trust_env=False
        )

    async def send(self, endpoint: WebhookRecord, *, event_id: str, body: bytes) -> int:
        """Return the status that the endpoint answered within TIMEOUT_S. Raises Undeliverable."""
        now = time.time()
        headers = {
            "content-type": "application/json",
            "user-agent": "selftune-webhooks",
            "webhook-id": event_id,
            "webhook-timestamp": str(int(now)),
            "webhook-signature": sign(body, event_id=event_id, timestamp=int(now), keys=endpoint.secrets(now)),
        }
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return await self._post(endpoint.url, headers, body)
        except TimeoutError as error:
            raise Undeliverable(f"no answer within {TIMEOUT_S:.0f} s") from error
        except InvalidRequest as error:
            raise Undeliverable(error.message) from error
        except (httpx2.TransportError, httpx2.InvalidURL) as error:
            raise Undeliverable(f"the connection failed ({type(error).__name__})") from error

    async def close(self) -> None:
        await self._transport.aclose()

    async def _post(self, text: str, headers: dict[str, str], body: bytes) -> int:
        url = addresses.parse(text, allow_private=self.outgoing.allow_private)
        *others, last = await addresses.resolve(url, self.outgoing)
        for address in others:
            try:
                return await self._post_to(address, url, headers, body)
            except (httpx2.ConnectError, httpx2.ConnectTimeout):
                continue
        return await self._post_to(last, url, headers, body)

    async def _post_to(self, address: str, url: httpx2.URL, headers: dict[str, str], body: bytes) -> int:
        """Connect to the address itself, so that no second look at the name can lead elsewhere."""
        request = httpx2.Request(
            "POST",
            url.copy_with(host=address),
            headers={"host": url.netloc.decode("ascii"), **headers},
            content=body,
            extensions={"sni_hostname": url.raw_host.decode("ascii")},
        )
        response = await self._transport.handle_async_request(request)
        await response.aclose()
        return response.status_code
