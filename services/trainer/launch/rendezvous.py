"""Where the processes of a group find one another: on this machine alone.

torch's own rendezvous listens on every address of the machine, to whoever comes. A group over several machines would
need it, and a way to start processes there; this is for one.
"""

from __future__ import annotations

import socket

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousParameters
from torch.distributed.elastic.rendezvous.api import RendezvousStoreInfo, rendezvous_handler_registry

LOOPBACK = "127.0.0.1"
NAME = "selftune-loopback"


class Loopback(RendezvousHandler):
    """A key-value store on a free port of the loopback address; a new one at each start of the group."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id

    def get_backend(self) -> str:
        return NAME

    @property
    def use_agent_store(self) -> bool:
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        listener = socket.create_server((LOOPBACK, 0))
        port = listener.getsockname()[1]
        store = TCPStore(LOOPBACK, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())
        return RendezvousInfo(PrefixStore(self._run_id, store), 0, 1, RendezvousStoreInfo(LOOPBACK, port))

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        pass

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return self._run_id

    def shutdown(self) -> bool:
        return True


def register() -> None:
    """Make it known to torch's launcher as NAME; once a process."""

    def create(parameters: RendezvousParameters) -> RendezvousHandler:
        return Loopback(parameters.run_id)

    rendezvous_handler_registry.register(NAME, create)
