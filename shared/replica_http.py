"""The HTTP client with which a service asks inference servers: long answers are waited for, lost hosts are not."""

from __future__ import annotations

import socket
import sys

import httpx2

PRIORITY_HEADER = "x-vllm-priority"
"""Wins over the body's `priority` in vLLM; smaller numbers are answered earlier."""
LATER = 1000
"""Priority of what nobody waits for at a screen; live requests have 0 unless they ask to be later."""

_SILENCE_S = 10
"""A server whose host confirms nothing that it is sent, for so long, is given up; one that computes is not silent."""
_GIVE_UP = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
if sys.platform == "linux":
    _GIVE_UP += [
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _SILENCE_S // 2),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _SILENCE_S * 1000),
    ]


def replica_client(internal_key: str, *, user_agent: str) -> httpx2.AsyncClient:
    """Make a client that replicas let in; whoever has it closes it."""
    return httpx2.AsyncClient(
        headers={"authorization": f"Bearer {internal_key}", "user-agent": user_agent},
        # No read timeout: a long answer from a busy CPU is no failure. A dead replica closes its sockets; one whose
        # host is gone does not, and the kernel finds out.
        timeout=httpx2.Timeout(None, connect=5.0, pool=30.0),
        transport=httpx2.AsyncHTTPTransport(
            limits=httpx2.Limits(max_connections=1000, max_keepalive_connections=100, keepalive_expiry=2.0),
            socket_options=_GIVE_UP,
            trust_env=False,
        ),
        trust_env=False,
    )
