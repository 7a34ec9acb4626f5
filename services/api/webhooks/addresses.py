"""Where webhooks may go: to the public network alone, whatever a name or a number resolves to."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import TypeAlias

import httpx2

from shared.errors import InvalidRequest

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64_LOCAL = ipaddress.IPv6Network("64:ff9b:1::/48")
"""Translated inside a network, to whatever that network likes (RFC 8215)."""
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
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


async def resolve(url: httpx2.URL, *, allow_private: bool) -> list[str]:
    """Return the addresses of the URL's host, each of them checked.

    Raises InvalidRequest when there is none, or when one of them is not public.
    """
    host = url.raw_host.decode("ascii")
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise _refusal(f"its host '{host[:100]}' cannot be resolved") from error
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    if not allow_private and not all(is_public(ipaddress.ip_address(address)) for address in addresses):
        raise _refusal(f"its host '{host[:100]}' is in this machine or a private network")
    return addresses


def is_public(address: Address) -> bool:
    """Tell whether an address, and the IPv4 address that an IPv6 one may carry, can be reached by anybody."""
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64_LOCAL or address.is_site_local or not address.is_global or address.is_multicast:
            # A mapped address counts for what it maps, and no more.
            return False if address.ipv4_mapped is None else is_public(address.ipv4_mapped)
        carried = _carried(address)
        return carried is None or is_public(carried)
    return address.is_global and not address.is_multicast


def _carried(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address behind one that is mapped (RFC 4291), 6to4 (RFC 3056) or NAT64 (RFC 6052)."""
    if address in _NAT64 or address.packed[:12] == bytes(12):
        return ipaddress.IPv4Address(address.packed[12:])
    return address.ipv4_mapped or address.sixtofour


def _refusal(reason: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid value for 'url': {reason}.", code="invalid_value", param="url")
