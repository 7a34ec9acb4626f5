"""Asking a stack that nothing disturbs any more: every answer has to be there."""

from __future__ import annotations

import json
from typing import Any

import httpx2

from tests.faults.ledger import Answer, Ledger


class Asker:
    """Asks one api process; what is doubled in a list goes into the ledger."""

    def __init__(self, url: str, key: str, ledger: Ledger, *, transport: httpx2.BaseTransport | None = None) -> None:
        self._ledger = ledger
        headers = {"authorization": f"Bearer {key}"}
        self._http = httpx2.Client(
            base_url=f"{url}/v1", headers=headers, timeout=60, trust_env=False, transport=transport
        )

    def close(self) -> None:
        self._http.close()

    def get(self, path: str, **query: Any) -> httpx2.Response:
        return self._http.get(path, params=query)

    def post(self, path: str, body: Any = None) -> httpx2.Response:
        return self._http.post(path, json=body)

    def content(self, file_id: str) -> httpx2.Response:
        return self._http.get(f"/files/{file_id}/content")

    def lines(self, file_id: str | None) -> list[Answer]:
        """Read a file of JSON lines; None has none."""
        if file_id is None:
            return []
        content = self.content(file_id)
        assert content.status_code == 200, (file_id, content.text)
        return [json.loads(line) for line in content.text.splitlines()]

    def page(self, path: str, **query: Any) -> Answer:
        """Raises AssertionError when it is refused."""
        response = self.get(path, **query)
        assert response.status_code == 200, (path, response.status_code, response.text)
        return dict(response.json())

    def all(self, path: str) -> list[Answer]:
        """Follow a list to its end."""
        found: list[Answer] = []
        while True:
            page = self.page(path, limit=100, **({"after": found[-1]["id"]} if found else {}))
            found += page["data"]
            if not page["has_more"]:
                break
        ids = [one["id"] for one in found]
        if len(set(ids)) != len(ids):
            self._ledger.blame("doubled in a list:", path, sorted(one for one in ids if ids.count(one) > 1))
        return found
