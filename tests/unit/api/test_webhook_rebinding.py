"""A name that leads elsewhere the second time it is looked up (DNS rebinding)."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from services.api.webhooks.sender import Undeliverable, WebhookSender, new_secret
from shared.outgoing import Outgoing
from shared.webhook_records import WebhookRecord
from tests.unit.shared.test_outgoing import answers


@contextmanager
def listening(address: str, port: int = 0) -> Iterator[tuple[int, list[str]]]:
    """An HTTP server on one address of this machine: its port, and the Host of each request."""
    hosts: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            hosts.append(self.headers["host"])
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Keep the test's output clean."""

    server = HTTPServer((address, port), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server.server_port, hosts
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def send(url: str, outgoing: Outgoing) -> int:
    endpoint = WebhookRecord(
        id="we_x", project="p", name="n", url=url, event_types=[], secret=new_secret(), created_at=1, updated_at=1
    )

    async def run() -> int:
        sender = WebhookSender(outgoing)
        try:
            return await sender.send(endpoint, event_id="evt_x", body=b"{}")
        finally:
            await sender.close()

    return asyncio.run(run())


def test_connection_goes_to_the_address_that_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening("127.0.0.2") as (port, right), listening("127.0.0.1", port) as (_, wrong):
        asked = answers(monkeypatch, ["127.0.0.2"], ["127.0.0.1"])
        assert send(f"http://rebound.test:{port}/", Outgoing(allow_private=True)) == 204
    assert asked.count("rebound.test") == 1
    assert (right, wrong) == ([f"rebound.test:{port}"], [])


def test_name_that_leads_inside_at_delivery_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening("127.0.0.1") as (port, hosts):
        answers(monkeypatch, ["127.0.0.1"])
        with pytest.raises(Undeliverable, match="private network"):
            send(f"https://rebound.test:{port}/", Outgoing())
    assert hosts == []
