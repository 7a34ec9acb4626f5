"""What a service chooses for its machine, as it tells `selftune doctor`."""

from __future__ import annotations

from msgspec import Struct


class Choice(Struct, frozen=True):
    """One thing that is chosen, and why."""

    name: str
    value: str
    why: str
