"""What a client does with uploads in parts."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

from tests.faults.calls import Calls
from tests.faults.ledger import Answer, KnownFile, KnownUpload

_MOST_BYTES = 300_000


class PartsClient:
    """Sends files in parts; completes most, cancels some, and leaves some lying."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._ledger = calls.ledger
        self._dice = calls.dice
        self._moves = 0
        """How often the clock had been moved when the upload began."""

    async def send(self) -> None:
        """Send one file, all its parts at once."""
        name, content = self._calls.new_name("parts"), self._dice.randbytes(self._dice.randint(4, _MOST_BYTES))
        wish = self._dice.choices(("complete", "cancel", "leave"), (6, 2, 1))[0]
        n_parts = self._dice.randint(1, 4)
        self._moves = self._ledger.clock_moves
        asked = {"filename": name, "purpose": "user_data", "bytes": len(content), "mime_type": "text/plain"}
        made = await self._calls.ask("POST", "/uploads", json=asked)
        if made is None:
            return
        upload_id = str(made["id"])
        known = self._ledger.uploads[upload_id] = KnownUpload(name, hashlib.sha256(content).hexdigest())
        parts = await self._send_parts(upload_id, content, n_parts)
        if wish == "complete" and parts:
            known.parts = parts
            md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
            await self._complete(upload_id, known, {"part_ids": parts, "md5": md5})
        elif wish == "cancel":
            known.cancel_asked = True
            known.cancelled = await self._ask(upload_id, "cancel") is not None

    async def _send_parts(self, upload_id: str, content: bytes, n_parts: int) -> list[str]:
        """Return the parts' ids in order; nothing if one of them did not come through."""
        size = -(-len(content) // n_parts)
        pieces = [content[start : start + size] for start in range(0, len(content), size)]
        sent = await asyncio.gather(
            *(self._ask(upload_id, "parts", files={"data": ("part", piece)}) for piece in pieces)
        )
        parts = [str(part["id"]) for part in sent if part is not None]
        return parts if len(parts) == len(pieces) else []

    async def _complete(self, upload_id: str, known: KnownUpload, body: Answer) -> None:
        self._ledger.maybe_files[known.filename] = known.sha256
        made = await self._ask(upload_id, "complete", json=body)
        if made is not None:
            del self._ledger.maybe_files[known.filename]
            known.file_id = made["file"]["id"]
            self._ledger.files[known.file_id] = KnownFile(known.sha256)

    async def _ask(self, upload_id: str, what: str, **more: Any) -> Answer | None:
        """Ask for something to be done with the upload; it may have expired only if the clock was moved."""
        return await self._calls.ask(
            "POST",
            f"/uploads/{upload_id}/{what}",
            excuse=lambda status: status == 400 and self._ledger.clock_moves > self._moves,
            **more,
        )
