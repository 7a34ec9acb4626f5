"""Sampled answers of an alias as they are stored; reading is tolerant, as in shared/records.py."""

from __future__ import annotations

from msgspec import Struct

from shared.drift.traits import Traits


class DueSample(Struct, frozen=True, kw_only=True):
    """A sampled answer that is to be graded; its text is the stored completion of that id."""

    id: str
    at: float
    """Unix time of the answer."""
    model: str
    since: int
    """The alias's revision since which `model` has been its model."""


class Sample(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A sampled answer, graded."""

    id: str
    at: float
    model: str
    since: int
    traits: Traits
    """Of what was asked."""
    scores: dict[str, float] = {}
    """By grader, without those that could not grade it."""


class TrainingTraits(Struct, frozen=True, kw_only=True):
    """What the training file of a model's job asks."""

    model: str
    file_id: str = ""
    traits: list[Traits] = []
    note: str = ""
    """Why there are none."""
