"""Rollouts: the answers that a reinforcement job tried, with what graders made of them, as its folder keeps them.

One file a step and kind, `rollouts/train-000012.jsonl` or `rollouts/valid-000012.jsonl`: its first line is a
RolloutHeader, each further one a RolloutGroup. Step N learns from train-N, which the model of step N - 1 has written;
valid-N is by the model of step N, and valid-0 by the one that training starts from.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from shared.schemas.graders import JudgeUsage

ROLLOUTS_FOLDER = "rollouts"


class RolloutSample(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One answer."""

    tokens: list[int]
    """Token ids as sampled, the end of the turn included where there is one."""
    logprobs: list[float]
    """Of each, in nats, by the server that sampled it, at temperature 1."""
    text: str = ""
    tool_calls: list[dict[str, Any]] | None = None
    finish_reason: str = "stop"
    """`stop`, `length` where it was cut off, `tool_calls`."""
    reward: float | None = None
    """None where no grader could say anything, because a judge or the cage was away: it is left out of its group."""
    scores: dict[str, float] = {}
    """By the name of the grader, those in a multi grader."""
    errors: list[str] = []
    """Names of the flags in GraderErrors that are set."""
    detail: str = ""
    """What went wrong, in words, as far as that is known."""

    @property
    def is_truncated(self) -> bool:
        return self.finish_reason == "length"


class RolloutGroup(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answers to one prompt."""

    line: int
    """Of the training or validation file, from 1."""
    prompt_tokens: list[int]
    item: dict[str, Any]
    """The line itself, with its messages."""
    samples: list[RolloutSample]


class RolloutStats(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a step's rollouts were like; means are over samples that have a reward, 0.0 where there are none."""

    groups: int
    samples: int
    reward_mean: float
    reward_std: float
    """Over all samples."""
    standard_error: float = 0.0
    """Of the mean, over prompts."""
    scores: dict[str, float] = {}
    """Mean by grader."""
    zero_variance_share: float = 0.0
    """Share of groups whose samples all have one reward: nothing can be learnt from them."""
    completion_tokens_mean: float = 0.0
    prompt_tokens_mean: float = 0.0
    truncated_share: float = 0.0
    repeated_share: float = 0.0
    """Of 4-grams that stood in the same answer before."""
    agreement: dict[str, float] = {}
    """Of a multi grader: how each part's scores correlate with the mean of the others'."""
    ungraded: int = 0
    """Samples without a reward."""
    errors: dict[str, int] = {}
    """How often each flag of GraderErrors was set."""
    usage: dict[str, JudgeUsage] = {}
    """Tokens of judges by model."""
    sampling_s: float = 0.0
    grading_s: float = 0.0


class RolloutHeader(Struct, frozen=True, kw_only=True):
    """The first line of a file."""

    step: int
    validation: bool
    policy: str
    """SHA-256 of the adapter that wrote the answers."""
    stats: RolloutStats
    lines: list[int] = []
    """Of the prompts, as RolloutGroup has them; empty where it was not noted."""


decode_header = msgspec.json.Decoder(RolloutHeader).decode
decode_group = msgspec.json.Decoder(RolloutGroup).decode


_NAME = re.compile(r"(train|valid)-(\d{6,9})\.jsonl")


class Place(NamedTuple):
    """Which of a job's files; in order, the answers of a step's model come after those that the step learnt from."""

    step: int
    validation: bool


def place_of(name: str) -> Place | None:
    """Return which file a name is; None for others."""
    found = _NAME.fullmatch(name)
    return None if found is None else Place(int(found[2]), found[1] == "valid")


def rollout_file(job_folder: Path, step: int, *, validation: bool) -> Path:
    """Return where a step's rollouts lie."""
    return job_folder / ROLLOUTS_FOLDER / f"{'valid' if validation else 'train'}-{step:06d}.jsonl"


def read_rollouts(path: Path) -> tuple[RolloutHeader, list[RolloutGroup]]:
    """Read a whole file. Raises OSError, msgspec.DecodeError."""
    first, *lines = path.read_bytes().splitlines()
    return decode_header(first), [decode_group(line) for line in lines]


def write_rollouts(header: RolloutHeader, groups: list[RolloutGroup]) -> bytes:
    """Form the bytes of a file."""
    return b"".join(msgspec.json.encode(part) + b"\n" for part in (header, *groups))
