"""Several hosts on this machine: namespaces of the kernel, joined by a switch whose cables can be pulled.

A host has a network, a name and processes of its own, as a container has. A process of it is held open by a pipe to the
test: when the test ends, however it ends, the kernel ends that process, with it all others of the host, and with the
last of them its network. Nothing is written to /run/netns, and the machine's own network is not touched.
"""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

_CLONE_NEWNET = 0x40000000
_SUBNET = "10.213.7"
_UP = b"up\n"
_NAMESPACES = ("--net", "--uts", "--mount", "--pid")


class Host:
    """A host that is up; the first process of all its own is one that waits for the test's end."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._holder = subprocess.Popen(
            ["unshare", *_NAMESPACES, "--fork", "--kill-child", "--mount-proc", "sh", "-c", f"{_START}; cat", name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != _UP:
            _, said = self._holder.communicate()
            raise OSError(said.decode(errors="replace").strip())
        (self.first,) = psutil.Process(self._holder.pid).children()

    def ip(self, *words: str) -> None:
        """Change this host's network with ip(8). Raises CalledProcessError, which has what it said."""
        command = ["nsenter", "--target", str(self.first.pid), "--net", "ip", *words]
        subprocess.run(command, check=True, capture_output=True, text=True)

    def start(self, command: Sequence[str], *, env: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
        """Start a process in this host; it ends with the host at the latest."""
        entering = ["nsenter", "--target", str(self.first.pid), *_NAMESPACES]
        with log.open("ab") as output:
            return subprocess.Popen(
                [*entering, *command], env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Have sockets that this thread opens belong to the host's network."""
        with (
            Path("/proc/thread-self/ns/net").open("rb") as own,
            Path(f"/proc/{self.first.pid}/ns/net").open("rb") as other,
        ):
            _set_network(other.fileno())
            try:
                yield
            finally:
                _set_network(own.fileno())

    def end(self) -> None:
        """End every process of this host, and its network, at once."""
        if self.first.is_running():
            self.first.kill()
        self._holder.communicate(timeout=20)


_START = 'hostname "$0" && ip link set lo up && echo up'


class Network:
    """Hosts by name, each at an address of its own on one switch."""

    def __init__(self) -> None:
        self.hosts: dict[str, Host] = {}
        self.addresses: dict[str, str] = {}
        self._switch = Host("switch")
        self._switch.ip("link", "add", "br0", "type", "bridge")
        self._switch.ip("link", "set", "br0", "up")

    def add(self, name: str) -> Host:
        """Bring a host up and plug it in."""
        number = len(self.hosts) + 1
        host = Host(name)
        self.hosts[name] = host
        self.addresses[name] = f"{_SUBNET}.{number}"
        cable = ("name", name, "type", "veth", "peer", "name", "eth0", "netns", str(host.first.pid))
        self._switch.ip("link", "add", *cable)
        host.ip("address", "add", f"{self.addresses[name]}/24", "dev", "eth0")
        host.ip("link", "set", "eth0", "up")
        self.plug_in(name)
        return host

    def unplug(self, name: str) -> None:
        """Pull a host's cable: what it sends is lost, and nobody hears that it is gone."""
        self._switch.ip("link", "set", "dev", name, "nomaster")

    def plug_in(self, name: str) -> None:
        self._switch.ip("link", "set", "dev", name, "master", "br0")
        self._switch.ip("link", "set", "dev", name, "up")

    def end(self) -> None:
        for host in (*self.hosts.values(), self._switch):
            host.end()


@functools.cache
def why_not() -> str:
    """Say what keeps this machine from having hosts; empty when nothing does."""
    if os.geteuid() != 0:
        return "namespaces of the network need root"
    try:
        network = Network()
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no namespaces here: {getattr(error, 'stderr', '') or error}"
    network.end()
    return ""


@contextmanager
def network() -> Iterator[Network]:
    """Give an empty network; whatever was started in its hosts has ended afterwards."""
    made = Network()
    try:
        yield made
    finally:
        made.end()


def _set_network(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")
