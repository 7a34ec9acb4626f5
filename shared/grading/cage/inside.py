"""The program that builds the cage around itself and grades in it; run by path, with the standard library alone.

Three processes: the outer one writes the id maps and waits; the builder makes the namespaces and the file system; the
keeper is process 1 inside and forks a child for each item. A child has one thing of the outside: the pipe for its
result. The keeper never looks into what comes out of a child; it puts a length before it and passes it on.
Frames both ways: four bytes of length, big-endian; answers have a byte more before their text, of _END.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import resource
import select
import signal
import struct
import sys
import sysconfig
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
# Beside this file: the package itself cannot be imported here.
import filter as system_calls  # type: ignore[import-not-found]

del sys.path[0]

_COMMON = "ast base64 bisect collections copy csv dataclasses datetime decimal difflib enum fractions functools hashlib"
_COMMON += " heapq html io itertools math operator random re statistics string textwrap typing unicodedata zlib"
_ENDED, _TIMEOUT, _OUTPUT = b"\0", b"\1", b"\2"
_NOBODY = 65534
_NAMESPACES = 0x10000000 | 0x00020000 | 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000 | 0x02000000
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
_KEPT_FLAGS = {8: 8, 1024: 1024, 2048: 2048, 4096: 1 << 21}  # of statvfs: as of mount
_MAX_DETAIL_CHARS = 2000
_libc = ctypes.CDLL(None, use_errno=True)


class _TooMuchPrinted(BaseException):
    pass


def _checked(what: str, result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _die_with_parent(parent: int) -> None:
    """Be killed when the parent ends; after the last change of ids, which would undo it."""
    _checked("prctl", _libc.prctl(1, signal.SIGKILL, 0, 0, 0))
    if parent and os.getppid() != parent:
        os._exit(1)


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    arguments = [text.encode() for text in (source, target, kind)]
    _checked(f"mount {target}", _libc.mount(*arguments, ctypes.c_ulong(flags), data.encode()))


def _write(path: str, text: str) -> None:
    with Path(path).open("w") as file:
        file.write(text)


def _map_ids(pid: int) -> None:
    """Make the builder nobody: root keeps a root inside until everything is mounted, others are nobody at once."""
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        _write(f"/proc/{pid}/uid_map", f"0 0 1\n{_NOBODY} {_NOBODY} 1\n")
        _write(f"/proc/{pid}/gid_map", f"0 0 1\n{_NOBODY} {_NOBODY} 1\n")
    else:
        _write(f"/proc/{pid}/setgroups", "deny")
        _write(f"/proc/{pid}/uid_map", f"{_NOBODY} {uid} 1\n")
        _write(f"/proc/{pid}/gid_map", f"{_NOBODY} {gid} 1\n")


def _enter_empty_root(stdlib: str) -> None:
    """Make a file system of the standard library alone, read-only; /proc serves as the place to build it at."""
    _mount("none", "/", "", _REC | _PRIVATE)
    _mount("tmpfs", "/proc", "tmpfs", _NOSUID | _NODEV | _NOEXEC, "size=1m,mode=755")
    inside = "/proc" + stdlib
    Path(inside).mkdir(parents=True)
    _mount(stdlib, inside, "", _BIND | _REC)
    has = os.statvfs(inside).f_flag
    kept = sum(flag for bit, flag in _KEPT_FLAGS.items() if has & bit)
    _mount("none", inside, "", _REMOUNT | _BIND | _RDONLY | _NOSUID | _NODEV | kept)
    for packages in ("site-packages", "dist-packages"):
        if Path(inside, packages).is_dir():
            _mount("tmpfs", f"{inside}/{packages}", "tmpfs", _RDONLY | _NOSUID | _NODEV | _NOEXEC, "size=4k,mode=755")
    os.chdir("/proc")
    _checked("pivot_root", _libc.syscall(155, b".", b"."))
    _checked("umount", _libc.umount2(b".", 2))
    os.chdir("/")
    _mount("none", "/", "", _REMOUNT | _BIND | _RDONLY | _NOSUID | _NODEV | _NOEXEC)


def _drop_privileges() -> None:
    if os.geteuid() == 0:
        os.setgroups([])
    for capability in range(64):
        if _libc.prctl(24, capability, 0, 0, 0):  # PR_CAPBSET_DROP: ends with the last that the kernel knows
            break
    if os.geteuid() == 0:
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    header, none = struct.pack("=Ii", 0x20080522, 0), bytes(24)
    _checked("capset", _libc.capset(header, none))
    _checked("no_new_privs", _libc.prctl(38, 1, 0, 0, 0))
    _checked("dumpable", _libc.prctl(4, 0, 0, 0, 0))


def _limit(limits: dict[str, float]) -> None:
    seconds = math.ceil(limits["seconds"]) + 1
    for kind, most in (
        (resource.RLIMIT_AS, int(limits["memory_bytes"])),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_NPROC, 32),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
    ):
        resource.setrlimit(kind, (most, most))


class _Discarding:
    """What a grader prints goes nowhere, and has an end."""

    def __init__(self, most: int) -> None:
        self.left = most

    def write(self, text: str) -> int:
        self.left -= len(text)
        if self.left < 0:
            raise _TooMuchPrinted
        return len(text)

    def flush(self) -> None:
        pass


def _score(source: bytes, request: bytes) -> dict[str, object]:
    given = json.loads(request)
    names: dict[str, object] = {"__name__": "grader"}
    exec(compile(source, "grader.py", "exec", dont_inherit=True), names)  # noqa: S102 - it is what the cage is for
    function = names.get("grade")
    if not callable(function):
        return {"problem": "runtime_error", "details": "the source defines no function grade(sample, item)"}
    score = function(given["sample"], given["item"])
    if type(score) not in (int, float):
        return {"problem": "invalid_value", "details": f"grade returned {type(score).__name__}, not a number"}
    if not math.isfinite(score):
        return {"problem": "invalid_value", "details": f"grade returned {score}, not a finite number"}
    return {"score": float(score)}


def _graded(source: bytes, request: bytes) -> dict[str, object]:
    try:
        return _score(source, request)
    except MemoryError:
        return {"problem": "memory", "details": "the grader asked for more memory than it may have"}
    except _TooMuchPrinted:
        return {"problem": "output", "details": "the grader printed more than it may"}
    except BaseException as error:  # noqa: BLE001 - whatever a grader raises is its result
        text = "".join(traceback.format_exception_only(type(error), error))
        return {"problem": "runtime_error", "details": text[:_MAX_DETAIL_CHARS]}


def _be_child(source: bytes, request: bytes, result: int, limits: dict[str, float]) -> None:
    """Grade one item; never returns."""
    try:
        os.dup2(result, 3)
        os.closerange(4, 4096)
        os.closerange(0, 3)
        sys.stdin = None
        sys.stdout = sys.stderr = _Discarding(int(limits["output_bytes"]))
        _limit(limits)
        system_calls.install(_libc)
        left = json.dumps(_graded(source, request)).encode()
        while left:
            left = left[os.write(3, left) :]
    finally:
        os._exit(0)


def _collect(child: int, pipe: int, limits: dict[str, float]) -> tuple[bytes, bytes]:
    """Return how the child ended and what it wrote; afterwards nothing but the keeper lives in the cage."""
    deadline, most = time.monotonic() + limits["seconds"], int(limits["output_bytes"])
    end, written = _ENDED, b""
    handle = os.pidfd_open(child)
    try:
        while True:
            ready, _, _ = select.select([pipe, handle], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                end = _TIMEOUT
                break
            more = os.read(pipe, 65536) if pipe in ready else b""
            written += more
            if len(written) > most:
                end = _OUTPUT
                break
            if not more:  # its end, or the pipe's, which without an end of its own has nothing more to say
                break
    finally:
        os.close(handle)
    _kill_all()
    return end, written if end == _ENDED else b""


def _kill_all() -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _read_exactly(size: int) -> bytes:
    parts = b""
    while len(parts) < size:
        part = os.read(0, min(size - len(parts), 1 << 20))
        if not part:
            os._exit(0)
        parts += part
    return parts


def _read_frame() -> bytes:
    return _read_exactly(struct.unpack(">I", _read_exactly(4))[0])


def _answer(end: bytes, text: bytes) -> None:
    left = struct.pack(">I", len(text) + 1) + end + text
    while left:
        left = left[os.write(1, left) :]


def _keep(limits: dict[str, float]) -> None:
    source = _read_frame()
    while True:
        request = _read_frame()
        out, into = os.pipe()
        child = os.fork()
        if child == 0:
            _be_child(source, request, into, limits)
        os.close(into)
        answer = _collect(child, out, limits)
        os.close(out)
        _answer(*answer)


def _be_builder(ready: int, mapped: int, stdlib: str, limits: dict[str, float]) -> None:
    _checked("unshare", _libc.unshare(_NAMESPACES))
    os.write(ready, b"x")
    if not os.read(mapped, 1):
        raise OSError("no ids were mapped")
    if os.getuid() == 0:
        os.setresgid(0, 0, 0)
    _enter_empty_root(stdlib)
    _die_with_parent(0)
    keeper = os.fork()
    if keeper == 0:
        _drop_privileges()
        _die_with_parent(0)
        os.closerange(2, 4096)
        _answer(_ENDED, b"ready")
        _keep(limits)
    os.closerange(0, 4096)
    os.waitpid(keeper, 0)


def main() -> None:
    os.environ.clear()  # the interpreter adds LC_CTYPE
    limits = json.loads(sys.argv[1])
    _die_with_parent(int(limits["parent"]))
    for name in _COMMON.split():
        __import__(name)
    os.nice(10)
    stdlib = os.path.realpath(sysconfig.get_path("stdlib"))
    ready_out, ready = os.pipe()
    mapped, mapped_in = os.pipe()
    builder = os.fork()
    if builder == 0:
        os.close(mapped_in)
        _be_builder(ready, mapped, stdlib, limits)
        os._exit(0)
    os.close(ready)
    if os.read(ready_out, 1):
        _map_ids(builder)
        os.write(mapped_in, b"x")
    os.closerange(0, 2)
    os.waitpid(builder, 0)


if __name__ == "__main__":
    main()
