"""Trying a chat template out before it is stored, in a process of its own that ends whatever the template does."""

from __future__ import annotations

import asyncio
import sys

import msgspec
from msgspec import Struct

from shared.errors import Unavailable

_WALL_S = 20.0
"""For a machine that is busy; what the template itself may use is bounded in the process."""
_AT_ONCE = 2
_MODULE = "services.api.model_settings.template_child"


class Trial(Struct, frozen=True, kw_only=True):
    """What the process is asked."""

    template: str
    with_system: bool


class Verdict(Struct, frozen=True, kw_only=True):
    """What it answers; `fault` is None for a template that is right."""

    fault: str | None


class TemplateCheck:
    """Checks a few templates at a time."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(_AT_ONCE)

    async def fault(self, template: str, *, with_system: bool) -> str | None:
        """Say what is wrong with a template, None if it writes a short conversation as it should.

        With `with_system` the conversation begins with a system message. Raises Unavailable when the machine is too
        busy to tell.
        """
        async with self._places:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", _MODULE,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            try:
                async with asyncio.timeout(_WALL_S):
                    asked = msgspec.json.encode(Trial(template=template, with_system=with_system))
                    answer, _ = await process.communicate(asked)
            except TimeoutError as error:
                raise Unavailable("The server is too busy to try the chat template out; please try again.") from error
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
        if process.returncode is not None and process.returncode < 0:  # by a signal
            return "it takes more time or memory than a template may to write a short conversation"
        if process.returncode:
            return "it breaks the process that tries it out"
        return msgspec.json.decode(answer, type=Verdict).fault
