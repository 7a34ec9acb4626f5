"""The trainer's side of reward models, with a process in the scorer's place that does as the conversations say."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from services.trainer.jobs.scoring import MAX_TAKES, Scoring
from services.trainer.launch import scoring_process
from services.trainer.protocol import encode_line
from services.trainer.scoring_protocol import Batch, Scored, batch_decoder
from services.trainer.stores import Stores
from shared.chat_data import Message
from shared.settings import Settings
from shared.store.scorings import ScoringReply, ScoringRequest
from tests.api_server import BASE, make_base

FINGERPRINT = "f" * 64


def obedient(channel: socket.socket, _: str) -> int:
    """Score by the answers: a number is its own score, `die` ends the process, `wait` takes for ever."""
    with channel.makefile("rb") as lines:
        for line in lines:
            channel.sendall(encode_line(_obeyed(batch_decoder.decode(line))))
    return 0


def _obeyed(batch: Batch) -> Scored:
    said = [conversation[-1].text for conversation in batch.conversations]
    if "die" in said:
        os._exit(9)
    while "wait" in said:
        pass
    return Scored(scores=[float(text) for text in said], problems=[""] * len(said))


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring_process, "ENTRY", f"{__name__}:obedient")


def with_scoring(
    tmp_path: Path,
    redis_url: str,
    story: Callable[[Scoring, Callable[..., Awaitable[list[ScoringReply]]]], Awaitable[None]],
) -> None:
    """Run a story with a trainer's part, and a way to queue answers and let it work until they are scored."""

    async def run() -> None:
        stores = Stores(Settings(data_dir=str(tmp_path), redis_url=redis_url))
        await stores.registry.put_base(make_base(path=str(tmp_path)))
        scoring = Scoring(stores)
        place = "0-0"

        async def scored(*said: str, fingerprint: str = FINGERPRINT, takes: int = 0) -> list[ScoringReply]:
            nonlocal place
            for number, text in enumerate(said):
                assert await scoring._scorings.add(request(str(number), text, fingerprint), lifetime_s=60.0)
            for _ in range(takes):
                await scoring._scorings.take(most=8, lease_s=0.0)
            found: list[ScoringReply] = []
            while len(found) < len(said):
                await scoring.work_once()
                place, replies = await scoring._scorings.replies("asker", place, block_ms=1)
                found += replies
            assert not await scoring.work_once()
            return sorted(found, key=lambda reply: reply.id)

        try:
            await story(scoring, scored)
        finally:
            await scoring.close()
            await stores.close()

    asyncio.run(run())


def request(request_id: str, text: str, fingerprint: str) -> ScoringRequest:
    asked = [Message(role="user", content="?"), Message(role="assistant", content=text)]
    return ScoringRequest(
        id=request_id, asker="asker", model=f"ft:{BASE}:a:b:c", base=BASE, base_fingerprint=fingerprint,
        sha256="a" * 64, messages=asked,
    )  # fmt: skip


def test_conversation_that_ends_processes_takes_no_other_with_it(tmp_path: Path, redis_url: str) -> None:
    async def story(scoring: Scoring, scored: Callable[..., Awaitable[list[ScoringReply]]]) -> None:
        found = await scored("1.5", "die", "-2", "nan")
        assert [reply.score for reply in found] == [1.5, None, -2.0, None]
        assert [reply.problem for reply in found] == [
            "", "The process that scores ended 2 times over this conversation.", "", "",
        ]  # fmt: skip
        pid = _pid(scoring)
        assert [reply.score for reply in await scored("3")] == [3.0] and _pid(scoring) == pid, "one process goes on"

    with_scoring(tmp_path, redis_url, story)


def _pid(scoring: Scoring) -> int:
    started = scoring._process._started
    assert started is not None
    return started.process.pid


def test_conversation_over_which_trainers_ended_is_given_up(tmp_path: Path, redis_url: str) -> None:
    async def story(scoring: Scoring, scored: Callable[..., Awaitable[list[ScoringReply]]]) -> None:
        [reply] = await scored("1", takes=MAX_TAKES)
        assert reply.problem == "3 trainers ended while they had this conversation to score."
        assert [reply.score for reply in await scored("1", takes=MAX_TAKES - 1)] == [1.0]

    with_scoring(tmp_path, redis_url, story)


def test_model_on_another_base_is_refused(tmp_path: Path, redis_url: str) -> None:
    async def story(scoring: Scoring, scored: Callable[..., Awaitable[list[ScoringReply]]]) -> None:
        [reply] = await scored("1", fingerprint="other")
        assert "was trained on another model" in reply.problem
        await scoring._stores.client.call("FLUSHALL")
        [reply] = await scored("1")
        assert "is not offered here any more" in reply.problem

    with_scoring(tmp_path, redis_url, story)


def test_process_ends_when_it_is_idle_and_when_it_takes_too_long(
    tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(scoring: Scoring, scored: Callable[..., Awaitable[list[ScoringReply]]]) -> None:
        assert [reply.score for reply in await scored("1")] == [1.0]
        process = scoring._process._started
        assert process is not None
        monkeypatch.setattr(scoring_process, "IDLE_S", 0.0)
        await scoring.work_once()
        assert scoring._process._started is None and process.process.returncode is not None
        monkeypatch.setattr("services.trainer.jobs.scoring.LONGEST_S", 0.5)
        [reply] = await scored("wait")
        assert reply.problem == "The trainer did not score the conversation within 0.5 s."
        assert scoring._process._started is None

    with_scoring(tmp_path, redis_url, story)
