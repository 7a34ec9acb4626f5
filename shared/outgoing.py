"""Calls that leave the installation: to which hosts, and to which addresses behind their names.

Two questions, each asked of every call that somebody else than the operator has a word in:

    is the host one of `outgoing_hosts`?          exact names, *.example.com, or 'none'; an empty list is every host
    are all of its addresses public ones?         never this machine, a private network, link-local, metadata services

Who connects uses one of the addresses that were checked, so that a name cannot lead elsewhere a moment later. Libraries
that resolve names themselves are asked the first question only, and so are judges, whose addresses the operator has set
and projects choose among. Addresses that are the operator's word alone (Redis, MLflow, HF_ENDPOINT, WANDB_BASE_URL,
inference servers) are not checked.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Mapping, Sequence
from typing import TypeAlias
from urllib.parse import urlsplit

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

NONE = "none"

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_UNICAST = ipaddress.IPv6Network("2000::/3")
"""All of IPv6 that anybody may have been given (RFC 4291); every other form of an address leads somewhere inside."""
_SPECIAL = (ipaddress.IPv4Network("192.0.0.0/24"), ipaddress.IPv4Network("192.88.99.0/24"))
"""Protocol assignments and relays, which Python's own list took for public until 3.11.10 (CVE-2024-4032)."""


class Refused(Exception):
    """A call that may not be made; the text says why, as in "its host 'x' …"."""


class Outgoing:
    """What `outgoing_hosts` lets through; `allow_private` lets calls go inside as well."""

    def __init__(self, hosts: Sequence[str] = (), *, allow_private: bool = False) -> None:
        self._hosts = frozenset(host.lower() for host in hosts)
        self.allow_private = allow_private

    def check_host(self, host: str) -> None:
        """Raise Refused for a host that the list does not have. Case and a final dot do not matter."""
        name = host.lower().removesuffix(".")
        parents = (name[at + 1 :] for at, letter in enumerate(name) if letter == ".")
        if not self._hosts or name in self._hosts - {NONE} or any(f"*.{parent}" in self._hosts for parent in parents):
            return
        raise Refused(f"its host '{name[:100]}' is none of those that this server may call (outgoing_hosts)")

    async def resolve(self, host: str) -> list[str]:
        """Return the addresses of a host that may be called, each of them checked; there is at least one.

        Raises Refused when the host is not in the list, has no address, or one that is not public.
        """
        self.check_host(host)
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise Refused(f"its host '{host[:100]}' cannot be resolved") from error
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        if not self.allow_private and not all(is_public(ipaddress.ip_address(address)) for address in addresses):
            raise Refused(f"its host '{host[:100]}' is in this machine or a private network")
        return addresses

    def check_library(self, default: str, variable: str, environ: Mapping[str, str]) -> None:
        """Raise Refused unless a library may call its service, at `default` unless the operator has set `variable`."""
        if not environ.get(variable):
            self.check_host(urlsplit(default).hostname or "")


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
