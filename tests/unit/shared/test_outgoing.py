"""Which hosts and addresses calls may leave for."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from shared.outgoing import Outgoing, Refused

PUBLIC, INSIDE = "93.184.216.34", "10.0.0.8"


def answers(monkeypatch: pytest.MonkeyPatch, *rounds: list[str]) -> list[str]:
    """Let every name resolve to the next of `rounds`, then to the last; returns the names asked for."""
    asked: list[str] = []
    left = list(rounds)

    def getaddrinfo(host: Any, port: Any, *_args: Any, **_options: Any) -> list[Any]:
        asked.append(host.decode() if isinstance(host, bytes) else host)
        addresses = left.pop(0) if len(left) > 1 else left[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port or 0)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


@pytest.mark.parametrize(
    ("hosts", "host", "allowed"),
    [
        ([], "anything.example", True),
        (["hooks.example.com"], "hooks.example.com", True),
        (["hooks.example.com"], "HOOKS.Example.com.", True),
        (["hooks.example.com"], "example.com", False),
        (["hooks.example.com"], "a.hooks.example.com", False),
        (["*.example.com"], "a.example.com", True),
        (["*.example.com"], "a.b.example.com", True),
        (["*.example.com"], "example.com", False),
        (["*.example.com"], "badexample.com", False),
        (["*.example.com"], "a.example.com.evil.test", False),
        (["none"], "anything.example", False),
        (["none"], "none", False),
        (["none", "a.example"], "a.example", True),
        (["8.8.8.8"], "8.8.8.8", True),
    ],
)
def test_list_of_hosts(hosts: list[str], host: str, allowed: bool) -> None:
    if allowed:
        Outgoing(hosts).check_host(host)
    else:
        with pytest.raises(Refused, match="outgoing_hosts"):
            Outgoing(hosts).check_host(host)


def test_host_outside_the_list_is_not_even_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answers(monkeypatch, [PUBLIC])
    with pytest.raises(Refused):
        asyncio.run(Outgoing(["other.example"]).resolve("secret-in-a-name.evil.test"))
    assert asked == []


@pytest.mark.parametrize("found", [[INSIDE], [PUBLIC, INSIDE], ["169.254.169.254"], ["127.0.0.1"]])
def test_name_that_leads_inside_is_refused_also_when_it_is_listed(
    monkeypatch: pytest.MonkeyPatch, found: list[str]
) -> None:
    answers(monkeypatch, found)
    with pytest.raises(Refused, match="private network"):
        asyncio.run(Outgoing(["hooks.example.com"]).resolve("hooks.example.com"))


def test_public_addresses_are_given_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, [PUBLIC, "8.8.8.8", PUBLIC])
    assert asyncio.run(Outgoing().resolve("hooks.example.com")) == [PUBLIC, "8.8.8.8"]


def test_library_is_bound_by_the_list_unless_the_operator_has_named_its_server() -> None:
    outgoing = Outgoing(["none"])
    with pytest.raises(Refused, match=r"huggingface\.co"):
        outgoing.check_library("https://huggingface.co", "HF_ENDPOINT", {})
    outgoing.check_library("https://huggingface.co", "HF_ENDPOINT", {"HF_ENDPOINT": "http://10.0.0.8"})
    Outgoing(["huggingface.co"]).check_library("https://huggingface.co", "HF_ENDPOINT", {})
