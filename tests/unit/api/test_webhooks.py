"""Webhooks without a socket: which addresses are public, how deliveries are signed, when they are tried again."""

from __future__ import annotations

import ipaddress

import pytest

from services.api.webhooks import addresses
from services.api.webhooks.dispatch import event_id_of, retry_delay_s
from services.api.webhooks.sender import new_secret, sign
from shared.errors import InvalidRequest
from shared.outgoing import is_public


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1",
        "192.0.0.8", "192.88.99.1", "::ffff:0:7f00:1", "5f00::1", "::8.8.8.8",
        "::", "::1", "fe80::1", "fe80::1%1", "fc00::1", "fec0::1", "ff02::1", "ff0e::1", "2001:db8::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "2002:7f00:1::",
        "2002:a00:1::", "64:ff9b::127.0.0.1", "64:ff9b::169.254.169.254", "64:ff9b:1::1", "2001:0:1::1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_for_everybody(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "93.184.216.34", "2606:2800:220:1::1", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::"],
)
def test_public_addresses(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://example.com/", "must begin with https://"),
        ("ftp://example.com/", "must begin with https://"),
        ("example.com/hook", "must begin with https://"),
        ("file:///etc/passwd", "must begin with https://"),
        ("https://", "names no host"),
        ("https:///hook", "names no host"),
        ("https://me:secret@example.com/", "user name or password"),
        ("https://example.com/#part", "fragment"),
        ("https://example.com:99999/", "not between 1 and 65535"),
        ("https://exa mple.com/", "characters that no host has"),
        ("https://example.com:0/", "not between 1 and 65535"),
        ("https://example.com/\n", "not a URL"),
    ],
)
def test_bad_urls_are_named(url: str, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason) as caught:
        addresses.parse(url, allow_private=False)
    assert caught.value.param == "url"


def test_signature_is_that_of_the_standard() -> None:
    """The example of the Standard Webhooks specification."""
    signature = sign(
        b'{"test": 2432232314}',
        event_id="msg_p5jXN8AQM9LWM0D4loKWxJek",
        timestamp=1614265330,
        keys=["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
    )
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_each_key_signs() -> None:
    keys = [new_secret(), new_secret()]
    both = sign(b"{}", event_id="evt_1", timestamp=1, keys=keys)
    assert both.split() == [sign(b"{}", event_id="evt_1", timestamp=1, keys=[key]) for key in keys]


def test_retries_follow_the_schedule() -> None:
    waits = [retry_delay_s(attempts, 5.0) for attempts in range(1, 10)]
    assert waits == [5, 30, 120, 600, 3600, 10800, 21600, 21600, 21600]


def test_event_id_depends_on_the_outcome_alone() -> None:
    assert event_id_of("ftjob-a succeeded") == event_id_of("ftjob-a succeeded")
    assert event_id_of("ftjob-a succeeded") != event_id_of("ftjob-a failed")
