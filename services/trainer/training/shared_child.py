"""The process that trains several jobs on one base, in turns: a step of this one, a step of that one.

The base is in memory once; adapter, optimiser, random numbers, metrics and outcome are each job's own, so each gets the
numbers that it would get alone. Jobs join while others train: the worker sends a job's folder through the process's
channel, and with it the job's end of a channel of its own. When nobody can join any more, it ends with its last job.
"""

from __future__ import annotations

import select
import socket
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from services.trainer.launch.observed import configure_lines
from services.trainer.protocol import Message, Stop, command_decoder, encode_line
from services.trainer.training.child import main, use_threads

if TYPE_CHECKING:
    from services.trainer.training.bases import LoadBase
    from services.trainer.training.turns import Turns

_MAX_PATH_BYTES = 1 << 16
_MAX_PIECE_BYTES = 1 << 16


def run(channel: socket.socket, _: str) -> int:
    """Be the process: take jobs in from the channel until its end, and train them to theirs."""
    from services.trainer.training.bases import SharedBases
    from services.trainer.training.turns import Turns

    configure_lines()
    use_threads()
    turns, bases = Turns(), SharedBases()
    open_channel: socket.socket | None = channel
    while open_channel or turns.busy:
        if turns.round(open_channel) and open_channel:
            job = _joining(open_channel)
            if job is None:
                open_channel = None
            else:
                lane = _Lane(*job, turns)
                turns.add(lambda lane=lane: lane.train(bases), lane.channel)  # type: ignore[misc]
    return 0


def _joining(channel: socket.socket) -> tuple[Path, socket.socket] | None:
    """Receive a job's folder and channel; None at the end of the process's channel."""
    folder, descriptors, _, _ = socket.recv_fds(channel, _MAX_PATH_BYTES, 1)
    return (Path(folder.decode()), socket.socket(fileno=descriptors[0])) if descriptors else None


class _Lane:
    """One job among others: its messages, and the commands that came for it."""

    def __init__(self, folder: Path, channel: socket.socket, turns: Turns) -> None:
        self.channel = channel
        self._folder = folder
        self._turns = turns
        self._unfinished = b""
        self._commands: deque[bytes] = deque()
        self._is_to_stop = False

    def train(self, load: LoadBase) -> None:
        with self.channel:
            main(self._folder, self._report, self._should_stop, self, load=load)

    def _report(self, message: Message) -> None:
        with suppress(ConnectionError):  # nobody listens any longer: the next look at the channel says so
            self.channel.sendall(encode_line(message))

    def _should_stop(self) -> bool:
        self._turns.give_way()
        self._hear()
        return self._is_to_stop

    def readline(self) -> bytes:
        """Return the next command, and let the others train until it comes; b"" if none will."""
        self._hear()
        while not self._commands and not self._is_to_stop:
            self._turns.give_way(wait=True)
            self._hear()
        return self._commands.popleft() if self._commands else b""

    def _hear(self) -> None:
        while not self._is_to_stop and select.select([self.channel], [], [], 0)[0]:
            piece = self._received()
            self._is_to_stop = not piece
            *lines, self._unfinished = (self._unfinished + piece).split(b"\n")
            for line in lines:
                if isinstance(command_decoder.decode(line), Stop):
                    self._is_to_stop = True
                else:
                    self._commands.append(line)

    def _received(self) -> bytes:
        try:
            return self.channel.recv(_MAX_PIECE_BYTES)
        except ConnectionError:
            return b""
