"""Where webhooks may go: to the public network alone, whatever a name or a number resolves to."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import TypeAlias

import httpx2

from shared.errors import InvalidRequest

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_UNICAST = ipaddress.IPv6Network("2000::/3")
"""All of IPv6 that anybody may have been given (RFC 4291); every other form of an address leads somewhere inside."""
_SPECIAL = (ipaddress.IPv4Network("192.0.0.0/24"), ipaddress.IPv4Network("192.88.99.0/24"))
"""Protocol assignments and relays, which Python's own list took for public until 3.11.10 (CVE-2024-4032)."""
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
    """Tell whether an address, or the IPv4 address that an IPv6 one carries, can be reached by anybody."""
    if isinstance(address, ipaddress.IPv4Address):
        return address.is_global and not address.is_multicast and not any(address in net for net in _SPECIAL)
    carried = _carried(address)
    return is_public(carried) if carried is not None else address in _UNICAST and address.is_global


def _carried(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address behind one that is mapped (RFC 4291), 6to4 (RFC 3056) or NAT64 (RFC 6052)."""
    if address in _NAT64:
        return ipaddress.IPv4Address(address.packed[12:])
    return address.ipv4_mapped or address.sixtofour


def _refusal(reason: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid value for 'url': {reason}.", code="invalid_value", param="url")
