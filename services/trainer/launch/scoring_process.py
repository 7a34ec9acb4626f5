"""Having conversations scored by a process beside the training, seen from the worker."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

import structlog

from services.trainer.failures import ProcessDied
from services.trainer.launch.child_process import training_environment
from services.trainer.launch.processes import Connection, start
from services.trainer.protocol import encode_line
from services.trainer.scoring_protocol import Batch, NotScored, Scored, answer_decoder
from shared.settings import Settings

ENTRY = "services.trainer.training.scoring_child:run"
IDLE_S = 180.0
"""After so long without work it ends, and its memory is free."""

log = structlog.get_logger()


class ScoringProcess:
    """services.trainer.training.scoring_child, started when it is needed. One batch at a time."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._started: Connection | None = None
        self._used_at = 0.0

    async def score(self, batch: Batch, *, within_s: float) -> Scored | NotScored:
        """Return what comes of a batch. Raises ProcessDied, and TimeoutError, after which a new process begins."""
        started = await self._running()
        try:
            async with asyncio.timeout(within_s):
                with suppress(ConnectionError):  # it has died: there is no answer either
                    started.writer.write(encode_line(batch))
                    await started.writer.drain()
                    if answer := await started.reader.readline():
                        return answer_decoder.decode(answer)
            raise ProcessDied(f"The process that scores ended (exit status {await started.process.wait()}).")
        except BaseException:
            await self.close()
            raise
        finally:
            self._used_at = time.monotonic()

    async def end_if_idle(self) -> None:
        """End the process where nothing was to be scored for a while."""
        if self._started is not None and time.monotonic() - self._used_at > IDLE_S:
            log.info("scoring_process.idle", pid=self._started.process.pid)
            await self.close()

    async def close(self) -> None:
        """End the process, whatever it does."""
        if self._started is None:
            return
        started, self._started = self._started, None
        if started.process.returncode is None:
            started.process.kill()
        started.writer.close()
        await started.process.wait()

    async def _running(self) -> Connection:
        if self._started is None or self._started.process.returncode is not None:
            await self.close()
            self._started = await start(ENTRY, "", environment=training_environment(self._settings))
            log.info("scoring_process.started", pid=self._started.process.pid)
        return self._started
