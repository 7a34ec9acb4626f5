"""The stack under test, and what it stands on: a tiny base, a small disk, a clock that can be moved.

`selftune up` runs one api and one trainer; beside it are another api and another trainer, which nobody but `start()`
starts again.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import redis

from services.cli.database import database_of
from shared import embedded_valkey
from shared.paths import Paths
from shared.settings import Settings
from tests.api_server import free_port
from tests.e2e.running_stack import RunningStack, kill_tree, launch, still_alive, wait_for
from tests.integration.inference_stack import BASE_ID, make_base

DISK_BYTES = 512 << 20
LEASE_S = 5.0
_OTHERS = {"other_api": "services.api", "other_trainer": "services.trainer"}
_ROOT = Path(__file__).parents[2]


class Site:
    """One data folder, and the processes that work on it. `can_fill` and `can_move` say which plugs there are."""

    def __init__(self, folder: Path, *, can_fill: bool, can_move: bool) -> None:
        self.can_fill = can_fill
        self.can_move = can_move
        self.folder = folder
        self._disk = folder / "disk"
        self._clock = folder / "clock"
        self.paths = Paths(self._disk / "data")
        self._port, self._other_port = free_port(), free_port()
        self._launcher: subprocess.Popen[bytes] | None = None
        self._others: dict[str, subprocess.Popen[bytes]] = {}
        self._latest_ns = 0
        """How far the date has been ahead at most."""
        self.urls = tuple(f"http://127.0.0.1:{port}" for port in (self._port, self._other_port))
        """Of the two api processes, the launcher's first."""
        self.settings = Settings(
            data_dir=str(self.paths.home), base_model=str(folder / BASE_ID), port=self._port, lease_ttl_s=LEASE_S,
            lora_rank=4, max_lora_rank=4, max_model_len=256, max_num_seqs=4, kv_cache_bytes=16 << 20, threads=1,
            max_cpu_loras=8, organization="faults", trainer_memory_bytes=4 << 30,
        )  # fmt: skip

    @property
    def key(self) -> str:
        return self.paths.admin_key.read_text().strip()

    @property
    def redis_url(self) -> str:
        return embedded_valkey.url(self.paths.valkey)

    def redis(self) -> redis.Redis:
        """Connect to the stack's own database."""
        return redis.Redis(
            unix_socket_path=str(embedded_valkey.socket_path(self.paths.valkey)),
            socket_timeout=10,
            decode_responses=True,
        )

    def start(self) -> None:
        """Start whatever does not run."""
        self.paths.home.mkdir(parents=True, exist_ok=True)
        if self._launcher is None or self._launcher.poll() is not None:
            self._launcher = launch(self.paths.home, self._port, self._environment(), log=self.folder / "up.log")
        wait_for(self.paths.internal_key.exists, 60)
        for name, service in _OTHERS.items():
            if name not in self._others or self._others[name].poll() is not None:
                self._others[name] = self._start_other(name, service)

    def _start_other(self, name: str, service: str) -> subprocess.Popen[bytes]:
        port = {"SELFTUNE_PORT": str(self._other_port)}
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", service], cwd=_ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, env={**os.environ, **self._environment(), **port},
            )  # fmt: skip

    def wait_until_ready(self) -> None:
        for url in self.urls:
            self._stack(url).wait_until_ready()

    def processes(self, target: str) -> list[psutil.Process]:
        """Return what runs of a target of plan.PROCESSES; nothing while it is being started."""
        with suppress(psutil.NoSuchProcess):
            found = self._family(target)
            return [process for process in found if process.status() != psutil.STATUS_ZOMBIE]
        return []

    def _family(self, target: str) -> list[psutil.Process]:
        assert self._launcher is not None
        match target:
            case "launcher":
                return [psutil.Process(self._launcher.pid)]
            case "other_api" | "other_trainer":
                return [psutil.Process(self._others[target].pid)]
            case "training":
                trainers = [*self.processes("trainer"), *self.processes("other_trainer")]
                everything = [child for trainer in trainers for child in trainer.children(recursive=True)]
                return [child for child in everything if "services.trainer.training" in _words(child)]
            case "engine":
                launchers = self.processes("inference")
                forked = [child for one in launchers for child in one.children(recursive=True)]
                return [child for child in forked if child.ppid() not in {one.pid for one in launchers}]
            case "valkey":
                return self._services("valkey-server")
            case _:
                return self._services(f"services.{target}")

    def _services(self, word: str) -> list[psutil.Process]:
        assert self._launcher is not None
        return [child for child in psutil.Process(self._launcher.pid).children() if word in _words(child)]

    def fill_disk(self) -> None:
        """Leave nothing free."""
        with (self._disk / "filler").open("wb") as filler, suppress(OSError):
            while True:
                filler.write(b"\0" * (1 << 16))
                filler.flush()

    def free_disk(self) -> None:
        (self._disk / "filler").unlink(missing_ok=True)

    def move_clock(self, seconds: int) -> None:
        """Move the date for every process of the site, from where it is."""
        (moved_ns,) = struct.unpack("q", self._clock.read_bytes())
        self._set_clock(moved_ns + seconds * 1_000_000_000)

    def move_clock_beyond(self, seconds: int) -> None:
        """Move the date to `seconds` after the latest that any process of the site has seen, or the file system."""
        self._set_clock(self._latest_ns + seconds * 1_000_000_000)

    def _set_clock(self, moved_ns: int) -> None:
        self._latest_ns = max(self._latest_ns, moved_ns)
        with self._clock.open("r+b") as file:
            file.write(struct.pack("q", moved_ns))

    def stop(self) -> list[str]:
        """Stop it as Ctrl-C does; returns what is left of it after that."""
        assert self._launcher is not None
        descendants = [
            process
            for one in (self._launcher, *self._others.values())
            if one.poll() is None
            for process in psutil.Process(one.pid).children(recursive=True)
        ]
        for other in self._others.values():
            _end(other)
        self._launcher.send_signal(2)
        self._launcher.wait(timeout=120)
        return still_alive(descendants, 10.0)

    @contextmanager
    def rebuilt(self) -> Iterator[str]:
        """With everything stopped, lose the database, make it again from the data folder, and run the other api on it.

        Gives what `selftune rebuild` has printed.
        """
        shutil.rmtree(self.paths.valkey)
        command = [sys.executable, "-m", "services.cli", "rebuild", "--data-dir", str(self.paths.home)]
        done = subprocess.run(
            command, cwd=_ROOT, capture_output=True, text=True, timeout=300, check=False,
            env={**os.environ, **self._environment()},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        with database_of(self.settings, self.paths.valkey):
            api = self._others["other_api"] = self._start_other("other_api", _OTHERS["other_api"])
            wait_for(self._other_api_has_database, 60)
            yield done.stdout
            _end(api)

    def _other_api_has_database(self) -> bool:
        _, report = self._stack(self.urls[1]).readiness()
        return bool(report and report["redis"]["ready"])

    def kill(self) -> None:
        """End it, whatever state it is in."""
        for process in (*self._others.values(), self._launcher):
            if process is not None:
                kill_tree(process)

    def _stack(self, url: str) -> RunningStack:
        assert self._launcher is not None
        return RunningStack(url, self.folder, self._launcher)  # where its log is

    def _environment(self) -> dict[str, str]:
        moved = {"LD_PRELOAD": str(self.folder / "clock.so"), "MOVED_CLOCK": str(self._clock)} if self.can_move else {}
        # not the settings' own to_env(): the launcher has to find the embedded database by itself
        chosen = {
            name: value for name, value in self.settings.to_env().items() if value and name != "SELFTUNE_SETTINGS"
        }
        return {**chosen, **moved}


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(timeout=60)


def _words(process: psutil.Process) -> str:
    return " ".join([process.name(), *process.cmdline()])


@contextmanager
def site() -> Iterator[Site]:
    """Prepare a site that nothing runs on yet; nothing of it is left at the end."""
    folder = Path(tempfile.mkdtemp(prefix="st-faults-"))
    disk = folder / "disk"
    disk.mkdir()
    mounted = _mounted(disk)
    try:
        (folder / "clock").write_bytes(struct.pack("q", 0))
        make_base(folder / BASE_ID)
        place = Site(folder, can_fill=mounted, can_move=_compiled(folder / "clock.so"))
        try:
            yield place
        finally:
            place.kill()
            time.sleep(0.5)
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(disk)], check=True)
        shutil.rmtree(folder, ignore_errors=True)


def _mounted(disk: Path) -> bool:
    """Give the folder a disk of its own, where this user may."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "selftune-faults", str(disk)]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _compiled(library: Path) -> bool:
    """Compile the clock, where there is a compiler and a linker that knows LD_PRELOAD."""
    source = Path(__file__).with_name("clock.c")
    command = ["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(source)]
    try:
        return sys.platform == "linux" and subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False
