"""Routines that take turns in one thread, each with random numbers of its own.

One thread, because OpenMP keeps a team of workers and malloc a heap for every thread that computes: turns in several
threads would need the memory of all of them, and find their cores taken by workers that spin.
"""

from __future__ import annotations

import gc
import select
import socket
from collections.abc import Callable
from dataclasses import dataclass

import torch
from greenlet import getcurrent, greenlet


@dataclass(eq=False)
class _Routine:
    greenlet: greenlet
    hears: socket.socket
    random_state: list[torch.Tensor]
    waits: bool = False
    """Whether it has nothing to do until something arrives."""


class Turns:
    """Runs routines until each gives way, again and again. All methods belong to the thread that made it."""

    def __init__(self) -> None:
        self._hub = getcurrent()
        self._routines: list[_Routine] = []
        self._current: _Routine | None = None

    @property
    def busy(self) -> bool:
        return bool(self._routines)

    def add(self, work: Callable[[], None], hears: socket.socket) -> None:
        """Begin a routine at the next round. One that hears something comes first, and ends a wait."""
        self._routines.append(_Routine(greenlet(work, self._hub), hears, _random_state()))

    def give_way(self, *, wait: bool = False) -> None:
        """Let the others have their turns; with `wait` for as long as there is nothing to hear. Inside a routine."""
        assert self._current is not None
        self._current.waits = wait
        self._hub.switch()

    def round(self, also_hear: socket.socket | None) -> bool:
        """Give every routine that has something to do a turn; returns whether there is something at `also_hear`."""
        for routine in self._in_order(heard := self._listen(also_hear)):
            self._switch_to(routine)
        if any(routine.greenlet.dead for routine in self._routines):
            self._routines = [routine for routine in self._routines if not routine.greenlet.dead]
            gc.collect()  # a model and its replaced parts refer to one another
        return also_hear in heard

    def _listen(self, also_hear: socket.socket | None) -> list[socket.socket]:
        channels = [routine.hears for routine in self._routines]
        if also_hear is not None:
            channels.append(also_hear)
        is_idle = all(routine.waits for routine in self._routines)
        return select.select(channels, [], [], None if is_idle else 0)[0]

    def _in_order(self, heard: list[socket.socket]) -> list[_Routine]:
        """What was heard may be the wish to stop, which shall not wait for everybody's step."""
        due = [routine for routine in self._routines if not routine.waits or routine.hears in heard]
        return sorted(due, key=lambda routine: routine.hears not in heard)

    def _switch_to(self, routine: _Routine) -> None:
        self._current = routine
        _set_random_state(routine.random_state)
        routine.greenlet.switch()
        routine.random_state = _random_state()
        self._current = None


def _random_state() -> list[torch.Tensor]:
    on_gpus = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if on_gpus else [])]


def _set_random_state(state: list[torch.Tensor]) -> None:
    torch.set_rng_state(state[0])
    if len(state) > 1:
        torch.cuda.set_rng_state_all(state[1:])
