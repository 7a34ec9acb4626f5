"""Graders that try to get out of their cage, each by a real attempt, and what they get for it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from shared.grading.cage import Cages, Limits, Outcome, open_cage, run_python, why_not

_missing = why_not()
pytestmark = pytest.mark.skipif(bool(_missing), reason=_missing)

_LIMITS = Limits(seconds=20, output_bytes=1 << 16)


def _run(body: str, limits: Limits = _LIMITS, item: dict[str, object] | None = None) -> Outcome:
    lines = "\n".join("    " + line for line in body.splitlines())
    source = f"import ctypes, os, sys\ndef grade(sample, item):\n{lines}\n"
    return asyncio.run(run_python(source, sample={"output_text": "seven"}, item=item or {}, limits=limits))


def test_grader_sees_sample_and_item() -> None:
    body = "return 0.5 if (sample['output_text'], item['x']) == ('seven', 7) else 0.0"
    assert _run(body, item={"x": 7}) == Outcome(score=0.5)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("open('/etc/passwd')", "FileNotFoundError"),
        ("open('/proc/1/environ')", "FileNotFoundError"),
        ("open('/proc/self/maps')", "FileNotFoundError"),
        ("open(os.__file__.rpartition('/')[0] + '/../../../../../../../../etc/passwd')", "FileNotFoundError"),
        ("open('/x', 'w')", "OSError"),
        ("open(os.__file__, 'w')", "OSError"),
        ("os.symlink('/etc/passwd', '/x')", "PermissionError"),
        ("import socket; socket.socket()", "PermissionError"),
        ("import socket; socket.socketpair()", "PermissionError"),
        ("os.fork()", "PermissionError"),
        ("os.kill(1, 9)", "PermissionError"),
        ("os.execv('/bin/sh', ['sh'])", "PermissionError"),
        ("import subprocess; subprocess.run(['true'])", "Error"),
        ("os.setuid(0)", "PermissionError"),
        ("os.chroot('/')", "PermissionError"),
        ("os.memfd_create('x')", "PermissionError"),
        ("import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))", "Error"),
        ("import torch", "ModuleNotFoundError"),
        ("import msgspec", "ModuleNotFoundError"),
        ("raise ValueError('x' * 10**6)", "ValueError: xxx"),
        ("sys.exit(3)", "SystemExit"),
        ("os._exit(0)", "without a result"),
        ("os.abort()", "without a result"),
        ("ctypes.string_at(0)", "without a result"),
        ("os.close(3)\nreturn 1.0", "without a result"),
        ("os.write(3, b'\\0\\0\\0\\1\\0')\nreturn 1.0", "without a result"),
        ("os.write(3, b'\\xff')\nos._exit(0)", "without a result"),
        ("os.write(3, b'{\"score\": 1e999}')\nos._exit(0)", "without a result"),
        ("os.write(3, b'[' * 60000)\nos._exit(0)", "without a result"),
        ("os.write(1, b'\\0\\0\\0\\1\\0')", "OSError"),
    ],
)
def test_attempt_fails(body: str, error: str) -> None:
    outcome = _run(body)
    assert (outcome.score, outcome.problem) == (None, "runtime_error")
    assert error in outcome.details
    assert len(outcome.details) <= 2000


@pytest.mark.parametrize(
    ("name", "number"),
    [
        *[("ptrace", 101), ("mount", 165), ("unshare", 272), ("setns", 308), ("keyctl", 250), ("bpf", 321)],
        *[("socket", 41), ("connect", 42), ("fork", 57), ("vfork", 58), ("execve", 59), ("shmget", 29)],
        *[("process_vm_writev", 311), ("prlimit64", 302), ("pidfd_open", 434), ("io_uring_setup", 425)],
        *[("userfaultfd", 323), ("perf_event_open", 298), ("setuid", 105), ("pivot_root", 155), ("kill", 62)],
        *[("x32 write", 0x40000001), ("unknown", 1000)],
    ],
)
def test_system_call_is_refused(name: str, number: int) -> None:
    body = f"c = ctypes.CDLL(None, use_errno=True)\nr = c.syscall({number}, 0, 0, 0, 0, 0)\n"
    assert _run(body + "return float(ctypes.get_errno() if r == -1 else -1)") == Outcome(score=1.0), name


def test_processes_by_clone_are_refused_and_threads_are_not() -> None:
    body = "c = ctypes.CDLL(None, use_errno=True)\nr = c.syscall(56, 17, 0, 0, 0, 0)\n"
    assert _run(body + "return float(ctypes.get_errno() if r == -1 else -1)") == Outcome(score=1.0)
    body = "import threading\nseen = []\nt = threading.Thread(target=seen.append, args=(1,))\nt.start()\nt.join()\n"
    assert _run(body + "return float(seen[0])") == Outcome(score=1.0)


def test_cage_is_empty_but_for_the_standard_library() -> None:
    body = "found = [f for d, _, fs in os.walk('/') for f in fs if 'site-packages' in d]\n"
    body += "return float(len(found) + len(os.environ) + len(os.listdir('/')))"
    assert _run(body) == Outcome(score=1.0)
    assert _run("return float(os.getuid() == os.geteuid() == os.getgid() == 65534)") == Outcome(score=1.0)


def test_data_and_environment_of_the_caller_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAGE_SECRET", "hush")
    (tmp_path / "secret").write_text("hush")
    body = "return float(os.path.exists(item['path'])) + float('CAGE_SECRET' in os.environ)"
    assert _run(body, item={"path": str(tmp_path / "secret")}) == Outcome(score=0.0)


def test_listening_server_hears_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        body = "import socket\nsocket.create_connection(('127.0.0.1', item['port']), 1)\nreturn 1.0"
        assert _run(body, item={"port": server.getsockname()[1]}).score is None
        with pytest.raises(BlockingIOError):
            server.accept()


@pytest.mark.parametrize("value", ["float('nan')", "float('inf')", "'1'", "None", "True", "[1]"])
def test_result_must_be_a_finite_number(value: str) -> None:
    assert _run(f"return {value}").problem == "invalid_value"


@pytest.mark.parametrize("body", ["while True: pass", "import signal\nsignal.raise_signal(signal.SIGSTOP)"])
def test_time_has_an_end(body: str) -> None:
    assert _run(body, Limits(seconds=1)).problem == "timeout"


def test_memory_has_an_end() -> None:
    assert _run("x = []\nwhile True: x.append(bytearray(1 << 24))", Limits(memory_bytes=1 << 28)).problem == "memory"


@pytest.mark.parametrize("body", ["while True: print('x' * 1000)", "while True: os.write(3, b'x' * 4096)"])
def test_output_has_an_end(body: str) -> None:
    assert _run(body, _LIMITS).problem == "output"


def test_thread_left_over_does_not_hold_the_result() -> None:
    body = "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,)).start()\nreturn 1.0"
    assert _run(body) == Outcome(score=1.0)


def test_items_share_nothing_and_survive_one_another() -> None:
    source = "import os\nseen = []\ndef grade(sample, item):\n    seen.append(1)\n"
    source += "    if item['die']: os._exit(1)\n    return float(len(seen))\n"

    async def story() -> list[float | None]:
        async with open_cage(source, _LIMITS) as cage:
            return [(await cage.grade({}, {"die": die})).score for die in (False, True, False)]

    assert asyncio.run(story()) == [1.0, None, 1.0]


def _gone(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


async def _until_gone(group: int) -> None:
    async with asyncio.timeout(30):
        while not _gone(group):
            await asyncio.sleep(0.01)


def test_nothing_is_left_after_cancellation() -> None:
    async def story() -> None:
        async with open_cage("def grade(s, i):\n    while i['spin']: pass\n    return 1.0\n", _LIMITS) as cage:
            await cage.start()
            assert cage.process_id is not None
            group = cage.process_id
            asking = asyncio.ensure_future(cage.grade({}, {"spin": True}))
            await asyncio.sleep(0)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            await _until_gone(group)
            assert await cage.grade({}, {"spin": False}) == Outcome(score=1.0)

    asyncio.run(story())


def test_cage_that_was_killed_is_built_again() -> None:
    async def story() -> None:
        async with open_cage("def grade(s, i):\n    return 1.0\n", _LIMITS) as cage:
            await cage.start()
            assert cage.process_id is not None
            os.killpg(cage.process_id, signal.SIGKILL)
            assert (await cage.grade({}, {})).problem == "runtime_error"
            assert await cage.grade({}, {}) == Outcome(score=1.0)

    asyncio.run(story())


def test_cages_stay_open_for_their_sources_and_no_longer_than_room_allows() -> None:
    sources = [f"def grade(s, i):\n    return {n}.0\n" for n in range(3)]

    async def story() -> list[float | None]:
        cages = Cages(_LIMITS, most=1)
        try:
            return [outcome.score for outcome in await asyncio.gather(*(cages.grade(s, {}, {}) for s in sources * 2))]
        finally:
            await cages.close()

    assert asyncio.run(story()) == [0.0, 1.0, 2.0] * 2


def test_cage_ends_with_its_caller() -> None:
    script = "import asyncio, sys\nfrom shared.grading.cage import Limits, OpenCage\n"
    script += "async def main():\n    cage = OpenCage('', Limits())\n    await cage.start()\n"
    script += "    print(cage.process_id, flush=True)\n    await asyncio.sleep(600)\nasyncio.run(main())\n"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as caller:
        assert caller.stdout is not None
        group = int(caller.stdout.readline())
        caller.kill()
    asyncio.run(_until_gone(group))
