"""Files of rollouts as the API reads them: by line, summed up once, and as far as a damaged one goes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from services.api.rollouts import summing
from services.api.rollouts.files import RolloutFiles
from services.api.rollouts.listing import Wanted, rollouts_of
from services.api.rollouts.summing import Summaries
from shared.blobs.local import LocalBlobs
from shared.grading.hacking import alarms
from shared.paths import Paths
from shared.rollout_records import (
    Place,
    RolloutGroup,
    RolloutHeader,
    RolloutSample,
    RolloutStats,
    rollout_file,
    write_rollouts,
)
from shared.schemas.rollouts import RolloutAlarm

JOB = "ftjob-1"


class Folder:
    """A job's folder, and who reads it."""

    def __init__(self, folder: Path) -> None:
        self.paths = Paths(folder)
        self.files = RolloutFiles(LocalBlobs(self.paths))

    def write(self, step: int, *lines: int, noted: Sequence[int] | None = None, repeated: float = 0.0) -> Path:
        """Write a step with an answer to each of these prompts; its header says that they are those `noted`."""
        groups = [
            RolloutGroup(
                line=line, prompt_tokens=[1], item={}, samples=[RolloutSample(tokens=[1], logprobs=[-1.0], reward=1.0)]
            )
            for line in lines
        ]  # fmt: skip
        stats = RolloutStats(
            groups=len(lines), samples=len(lines), reward_mean=1.0, reward_std=0.0, repeated_share=repeated
        )
        header = RolloutHeader(
            step=step, validation=False, policy="0", stats=stats, lines=[*(lines if noted is None else noted)]
        )
        path = rollout_file(self.paths.job_folder(JOB), step, validation=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(write_rollouts(header, groups))
        return path

    async def steps_with(self, line: int) -> list[int]:
        page = await rollouts_of(self.files, JOB, Wanted(line=line), after=None, limit=100, newest_first=False)
        return [rollout.step for rollout in page.data]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_only_files_whose_header_names_the_line_are_read(folder: Folder) -> None:
    folder.write(1, 3, 7)
    folder.write(2, 7, noted=[5])  # not read: else its answer were found
    folder.write(3, 7, noted=[])  # by a trainer that did not note lines
    assert asyncio.run(folder.steps_with(7)) == [1, 3]
    assert asyncio.run(folder.steps_with(4)) == []


@pytest.mark.parametrize("damage", [b'{"line":9', b'{"line":9,"samples":[\xff]}', b"\x00\x00"])
def test_damaged_file_is_read_as_far_as_it_is_whole(folder: Folder, damage: bytes) -> None:
    whole, damaged, last = folder.write(1, 4), folder.write(2, 5, 9, 6), folder.write(3, 4)
    header, first, _, third = damaged.read_bytes().splitlines()
    damaged.write_bytes(b"\n".join((header, first, damage, third, b"")))
    assert whole.stat().st_size == last.stat().st_size

    async def story() -> None:
        page = await rollouts_of(folder.files, JOB, Wanted(), after=None, limit=9, newest_first=False)
        assert [(one.step, one.line) for one in page.data] == [(1, 4), (2, 5), (3, 4)]
        assert [group.line async for group in folder.files.groups(JOB, Place(2, False))] == [5]

    asyncio.run(story())


def test_alarms_are_found_off_the_loop_and_once(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, bool]] = []

    def noting(history: Sequence[RolloutHeader]) -> list[RolloutAlarm]:
        asked.append((len(history), threading.current_thread() is threading.main_thread()))
        return alarms(history)

    monkeypatch.setattr(summing, "alarms", noting)
    for step in range(1, 11):
        folder.write(step, 1, repeated=0.9 if step > 5 else 0.0)
    summaries = Summaries(folder.files)

    async def story() -> None:
        first, again = [await summaries.of(JOB) for _ in range(2)]
        assert first == again and [alarm.kind for alarm in first.alarms] == ["repetition"]
        folder.write(10, 1, repeated=0.001)  # the step was taken again, and is another one
        folder.write(11, 1)
        assert len((await summaries.of(JOB)).steps) == 11

    asyncio.run(story())
    assert asked == [(10, False), (11, False)]
