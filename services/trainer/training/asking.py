"""How the training process comes by rollouts: it says what it wants, and waits to be told where they lie."""

from __future__ import annotations

from typing import Protocol

from services.trainer.protocol import Reporter, Rollouts, WantRollouts, command_decoder


class Commands(Protocol):
    """Lines from the supervisor; an empty one at their end, and when the process is asked to stop."""

    def readline(self) -> bytes: ...


class Asking:
    """Asks the supervisor."""

    def __init__(self, report: Reporter, commands: Commands) -> None:
        self._report = report
        self._commands = commands

    def __call__(self, wanted: WantRollouts) -> Rollouts | None:
        """Return the answer to this question; None when the process is to stop instead."""
        self._report(wanted)
        while line := self._commands.readline():
            command = command_decoder.decode(line)
            if not isinstance(command, Rollouts):
                return None
            if (command.step, command.validation) == (wanted.step, wanted.validation):
                return command
        return None
