"""The caller's side of the cage: starting it, asking it, and ending it whatever happens."""

from __future__ import annotations

import asyncio
import os
import platform
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from shared.grading.cage.filter import ARCHITECTURE

Problem: TypeAlias = Literal["", "runtime_error", "invalid_value", "timeout", "memory", "output", "unavailable"]

_INSIDE = Path(__file__).with_name("inside.py")
_GRACE_S = 10.0
"""What the cage has beyond an item's own limit, to start and to answer; after it the whole cage is killed."""
_ENDED, _TIMEOUT = 0, 1


class Limits(Struct, frozen=True, kw_only=True):
    """What one item may use."""

    seconds: Annotated[float, Meta(gt=0, le=600)] = 30.0
    memory_bytes: Annotated[int, Meta(ge=1 << 26)] = 2 << 30
    """Address space, of which the interpreter itself needs some 50 MB."""
    output_bytes: Annotated[int, Meta(ge=4096)] = 1 << 20
    """What it may print, and write as its result."""


class Outcome(Struct, frozen=True, kw_only=True):
    """A finite score, or a problem with its details."""

    score: float | None = None
    problem: Problem = ""
    details: str = ""


class CageFailed(Exception):
    """No cage can be built here; the text is one sentence."""


class _Result(Struct, frozen=True):
    score: float | None = None
    problem: Literal["", "runtime_error", "invalid_value", "memory", "output"] = ""
    details: Annotated[str, Meta(max_length=4096)] = ""


class OpenCage:
    """A cage around one source; items are graded one after another, each in a process of its own."""

    def __init__(self, source: str, limits: Limits) -> None:
        self._source = source
        self._limits = limits
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    @property
    def process_id(self) -> int | None:
        """Also the id of the process group that all of the cage is in; None while none is built."""
        return self._process.pid if self._process else None

    async def grade(self, sample: dict[str, Any], item: dict[str, Any]) -> Outcome:
        """Return what `grade(sample, item)` gives; whatever the grader does is an Outcome, nothing is raised for it."""
        request = msgspec.json.encode({"sample": sample, "item": item})
        async with self._turn:
            try:
                async with asyncio.timeout(self._limits.seconds + _GRACE_S):
                    process = self._process or await self._start()
                    return _outcome(await _ask(process, request), self._limits)
            except CageFailed as error:
                return Outcome(problem="unavailable", details=str(error))
            except TimeoutError:
                await self._kill()
                return Outcome(problem="timeout", details="the grader's process did not answer in time")
            except (OSError, asyncio.IncompleteReadError):
                await self._kill()
                return Outcome(problem="runtime_error", details="the grader's process ended")
            except BaseException:
                await self._kill()
                raise

    async def start(self) -> None:
        """Build the cage. Raises CageFailed."""
        if self._process is None:
            await self._start()

    async def close(self) -> None:
        """End every process of the cage; closing twice is the same as once."""
        await self._kill()

    async def _start(self) -> asyncio.subprocess.Process:
        if platform.machine() != ARCHITECTURE or sys.platform != "linux":
            raise CageFailed(f"Python graders need Linux on {ARCHITECTURE}")
        given = msgspec.json.encode({**msgspec.to_builtins(self._limits), "parent": os.getpid()}).decode()
        pipe = asyncio.subprocess.PIPE
        command = [sys.executable, "-I", "-S", "-B", str(_INSIDE), given]
        self._process = process = await asyncio.create_subprocess_exec(
            *command, stdin=pipe, stdout=pipe, stderr=pipe, env={}, cwd="/", start_new_session=True
        )
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        try:
            await _read(process.stdout)
        except asyncio.IncompleteReadError:
            said = (await process.stderr.read()).decode(errors="replace").strip().rpartition("\n")[2]
            await self._kill()
            raise CageFailed(
                f"no cage for Python graders can be built here ({said[:300]}): user namespaces must be allowed "
                "(user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns=0; in a container a seccomp "
                "profile that permits unshare, mount and pivot_root, and systempaths=unconfined)"
            ) from None
        process.stdin.write(_frame(self._source.encode()))
        return process

    async def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            process.kill()
        await asyncio.shield(process.wait())


@asynccontextmanager
async def open_cage(source: str, limits: Limits) -> AsyncIterator[OpenCage]:
    """Yield a cage for many items of one source; it is built at the first, and again after it was lost."""
    cage = OpenCage(source, limits)
    try:
        yield cage
    finally:
        await cage.close()


async def run_python(source: str, *, sample: dict[str, Any], item: dict[str, Any], limits: Limits) -> Outcome:
    """Return what `grade(sample, item)` of a source gives, in a cage for it alone."""
    async with open_cage(source, limits) as cage:
        return await cage.grade(sample, item)


def why_not() -> str:
    """Return why no cage can be built here, in one sentence; empty when one was, which takes a tenth of a second.

    Blocks; call it where no event loop runs, or in a thread.
    """
    return asyncio.run(_why_not())


async def _why_not() -> str:
    outcome = await run_python("def grade(sample, item):\n    return 1.0\n", sample={}, item={}, limits=Limits())
    return "" if outcome.score == 1.0 else outcome.details or "the cage gave no answer"


def _frame(text: bytes) -> bytes:
    return struct.pack(">I", len(text)) + text


async def _read(stream: asyncio.StreamReader) -> bytes:
    (size,) = struct.unpack(">I", await stream.readexactly(4))
    return await stream.readexactly(size)


async def _ask(process: asyncio.subprocess.Process, request: bytes) -> bytes:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(_frame(request))
    await process.stdin.drain()
    return await _read(process.stdout)


def _outcome(answer: bytes, limits: Limits) -> Outcome:
    end, text = answer[0], answer[1:]
    if end == _TIMEOUT:
        return Outcome(problem="timeout", details=f"the grader took longer than {limits.seconds:g} s")
    if end != _ENDED:
        return Outcome(problem="output", details=f"the grader wrote more than {limits.output_bytes} bytes")
    try:
        result = msgspec.json.decode(text, type=_Result)
    except (msgspec.MsgspecError, ValueError):
        return Outcome(problem="runtime_error", details="the grader's process ended without a result")
    if result.problem:
        return Outcome(problem=result.problem, details=result.details)
    if result.score is None:
        return Outcome(problem="runtime_error", details="the grader's process ended without a result")
    return Outcome(score=result.score)
