"""Where webhooks may go: to hosts that this server may call, over https."""

from __future__ import annotations

import httpx2

from shared.errors import InvalidRequest
from shared.outgoing import Outgoing, Refused

_SCHEMES = ("https",)
_SCHEMES_ANYWHERE = ("https", "http")


def parse(text: str, *, allow_private: bool) -> httpx2.URL:
    """Read an endpoint's URL. Raises InvalidRequest that says what is wrong with it."""
    try:
        url = httpx2.URL(text)
    except httpx2.InvalidURL as error:
        raise _refusal(f"it is not a URL ({error})") from error
    schemes = _SCHEMES_ANYWHERE if allow_private else _SCHEMES
    if url.scheme not in schemes:
        raise _refusal(f"it must begin with {' or '.join(f'{scheme}://' for scheme in schemes)}")
    if not url.host:
        raise _refusal("it names no host")
    if b"%" in url.raw_host:
        raise _refusal("its host holds characters that no host has")
    if url.port is not None and not 0 < url.port < 65536:
        raise _refusal("its port is not between 1 and 65535")
    if url.userinfo:
        raise _refusal("it holds a user name or password; put secrets into its path or query")
    if url.fragment:
        raise _refusal("it holds a fragment (#…), which is never sent")
    return url


def check_host(url: httpx2.URL, outgoing: Outgoing) -> None:
    """Raises InvalidRequest for a host that this server may not call; what it resolves to is not asked."""
    try:
        outgoing.check_host(_host(url))
    except Refused as error:
        raise _refusal(str(error)) from error


async def resolve(url: httpx2.URL, outgoing: Outgoing) -> list[str]:
    """Return the addresses of the URL's host, each of them checked.

    Raises InvalidRequest when there is none, or when one of them may not be called.
    """
    try:
        return await outgoing.resolve(_host(url))
    except Refused as error:
        raise _refusal(str(error)) from error


def _host(url: httpx2.URL) -> str:
    return url.raw_host.decode("ascii")


def _refusal(reason: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid value for 'url': {reason}.", code="invalid_value", param="url")
