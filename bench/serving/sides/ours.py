"""Ours: `python -m services.inference` on a Valkey and a data folder of its own, told what exists by the registry."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.serving.adapters import RANK, Adapter
from bench.serving.server import Server
from services.trainer.base.description import describe_base
from shared.records import AdapterRecord
from shared.settings import EMBEDDED_ID, Settings
from shared.store.client import Client
from shared.store.presence import Presence
from shared.store.registry import Registry
from tests.conftest import start_valkey

KEY = "internal-bench-key"


class Ours(Server):
    """The inference service with the product's defaults. One without a database of its own uses that of its home."""

    def __init__(
        self, home: Path, base: Path, *, name: str = "ours", own_database: bool = True, threads: int = 0
    ) -> None:
        self.name = name
        super().__init__(home, EMBEDDED_ID, key=KEY)
        self.home = home
        self.settings = Settings(
            data_dir=str(home), redis_url=f"unix://{home}/valkey.sock", base_model=str(base), max_lora_rank=RANK,
            base_model_id=self.base_id, internal_key=KEY, inference_port=self.port, threads=threads,
        )  # fmt: skip
        self.base = describe_base(base, self.base_id)
        self._own_database = own_database
        self._valkey: subprocess.Popen[bytes] | None = None
        self._client = Client(self.settings.redis_url)
        self.registry = Registry(self._client)

    def command(self) -> Sequence[str]:
        return [sys.executable, "-m", "services.inference"]

    def environment(self) -> Mapping[str, str]:
        return {**os.environ, **self.settings.to_env()}

    async def open(self) -> None:
        """Have a database that knows the base; `start` needs it, and does it unless it was done before."""
        if self._own_database and self._valkey is None:
            self._valkey = start_valkey(self.home)
            await self.registry.put_base(self.base)

    async def start(self) -> float:
        """Also wait until the gateway could find it; the seconds are those to its own first answer."""
        await self.open()
        seconds = await super().start()
        while not await self._is_found():
            await asyncio.sleep(0.1)
        return seconds

    async def _is_found(self) -> bool:
        """Tell whether its own record is ready; another server may be in the same database."""
        found = await Presence(self._client).replicas()
        return any(replica.state == "ready" and replica.url.endswith(f":{self.port}") for replica in found)

    async def publish(self, model: str, adapter: Adapter) -> None:
        await self.registry.publish(self.record(model, adapter))

    def record(self, model: str, adapter: Adapter) -> AdapterRecord:
        return AdapterRecord(
            name=model, base=self.base_id, base_fingerprint=self.base.fingerprint,
            folder=str(adapter.folder.relative_to(self.home)), sha256=adapter.sha256, rank=RANK,
            project="proj_default", job_id="ftjob-bench", created_at=int(time.time()), listed=True,
        )  # fmt: skip

    async def retire(self, model: str) -> None:
        await self.registry.retire(model)

    async def close(self) -> None:
        """End the service and its database."""
        await super().close()
        await self._client.close()
        if self._valkey is not None:
            self._valkey.terminate()
            self._valkey.wait(timeout=20)
