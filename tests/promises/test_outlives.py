"""Nothing that we start outlives us by more than 30 s, however we end; and waiting says for whom."""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bestrun.guard import guarded
from bestrun.sweep.backends import local
from support.looks import until
from support.pages import free_port, until_served

PROGRAM = """
import os, signal, sys, time
{signals}
if os.fork():
    open(sys.argv[1] + ".parent", "w").write(str(os.getpid()))
else:
    open(sys.argv[1] + ".child", "w").write(str(os.getpid()))
time.sleep(1000)
"""
STUBBORN = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"


def is_alive(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def pids(path: Path) -> list[int]:
    files = [path.with_name(f"{path.name}.{who}") for who in ("parent", "child")]
    until(lambda: all(file.exists() and file.read_text() for file in files), timeout=30)
    return [int(file.read_text()) for file in files]


def _guard(program, path):
    with guarded([sys.executable, "-c", program, path]) as process:
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "signals"),
    [
        pytest.param(signal.SIGKILL, "", id="killed-obeys"),
        pytest.param(signal.SIGTERM, "", id="ended-obeys"),
        pytest.param(signal.SIGKILL, STUBBORN, id="killed-stubborn"),
        pytest.param(signal.SIGTERM, STUBBORN, id="ended-stubborn", marks=pytest.mark.slow),
    ],
)
def test_a_command_and_what_it_started_end_with_us_however_we_end(start_process, tmp_path, signals, number):
    process = start_process(_guard, PROGRAM.format(signals=signals), str(tmp_path / "pid"))
    found = pids(tmp_path / "pid")
    assert all(map(is_alive, found))
    process.kill(number)
    until(lambda: not any(map(is_alive, found)), timeout=30)


def test_a_command_ends_with_its_block_and_its_code_is_known(tmp_path):
    with guarded([sys.executable, "-c", "raise SystemExit(7)"]) as process:
        assert process.wait(20) == 7
    with guarded([sys.executable, "-c", PROGRAM.format(signals=""), str(tmp_path / "pid")]):
        found = pids(tmp_path / "pid")
    until(lambda: not any(map(is_alive, found)), timeout=1)


def test_a_command_that_a_signal_ended_is_no_success():
    with guarded([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]) as process:
        assert process.wait(20) == 128 + signal.SIGKILL


@pytest.mark.parametrize("signals", ["", STUBBORN], ids=["obeys", "stubborn"])
def test_a_command_whose_guard_was_killed_ends_with_its_block(tmp_path, signals):
    with guarded([sys.executable, "-c", PROGRAM.format(signals=signals), str(tmp_path / "pid")]) as process:
        found = pids(tmp_path / "pid")
        process.kill()
        process.wait()
        assert all(map(is_alive, found))
    until(lambda: not any(map(is_alive, found)), timeout=5)


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@pytest.mark.slow
def test_a_page_whose_server_was_killed_is_no_success(bestrun, home):
    process = bestrun.start("ui")
    until_served(process)
    (guard,) = (int(word) for word in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
    for child in Path(f"/proc/{guard}/task/{guard}/children").read_text().split():
        os.killpg(int(child), signal.SIGKILL)
    assert process.wait(30).code == 128 + signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_the_page_ends_with_its_command_and_gives_its_port_back(bestrun, home, number):
    port = free_port()
    process = bestrun.start("ui", "--port", str(port))
    until_served(process)
    assert process.poll() is None and not is_free(port)
    process.kill(number)
    until(lambda: is_free(port), timeout=30)
    lines = [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(port) in _text(path)]
    until(lambda: not [path for path in lines if str(port) in _text(path)], timeout=30)


def _text(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_bytes().decode(errors="replace")
    return ""


def _hung_worker(path, how):
    """What a worker does whose scheduler is killed, and which hears no SIGTERM."""
    import multiprocessing

    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=_hang, args=(path, how))
    process.start()
    process.join()


def _hang(path, how):
    local.LEAVE_SECONDS = 0.5
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.setsid()  # as a worker does; else the kernel ends a stopped one of a group without a parent
    local._end_with_parent()
    Path(path).write_text(str(os.getpid()))
    if how == "is stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    if how == "holds Python's lock":
        ctypes.PyDLL(None).sleep(1000)
    while True:
        time.sleep(0.1)


@pytest.mark.parametrize("how", ["runs on", "is stopped", "holds Python's lock"])
def test_a_hung_worker_of_a_killed_scheduler_is_ended(start_process, tmp_path, how):
    process = start_process(_hung_worker, str(tmp_path / "pid"), how)
    until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), timeout=60)
    pid = int((tmp_path / "pid").read_text())
    children = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    process.kill()
    until(lambda: not any(map(is_alive, [pid, *children])), timeout=15)
    assert local.LEAVE_SECONDS <= 30


def test_what_watches_a_worker_ends_with_it(start_process, tmp_path):
    process = start_process(_hung_worker, str(tmp_path / "pid"), "runs on")
    until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), timeout=60)
    pid = int((tmp_path / "pid").read_text())
    (watch,) = (int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    os.kill(pid, signal.SIGKILL)
    until(lambda: not is_alive(watch), timeout=5)
    assert process.wait(20).code == 0


SESSION = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from support.processes import Starter
if __name__ == "__main__":
    print(Starter(Path(sys.argv[2]))(time.sleep, 1000).pid, flush=True)
    time.sleep(1000)
"""


def test_a_process_of_the_tests_ends_with_the_tests_however_they_end(tmp_path):
    words = [sys.executable, "-c", SESSION, str(Path(__file__).parents[1]), str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as session:
        pid = int(session.stdout.readline())
        until(lambda: (tmp_path / "1.out").exists(), timeout=60)
        time.sleep(0.5)
        assert is_alive(pid)
        session.kill()
    until(lambda: not is_alive(pid), timeout=30)


@pytest.mark.slow
def test_the_same_line_says_for_whom_it_waits(bestrun, home, settings):
    words = ["train", "-m", *settings, "training.max_steps=20", "pictures=false", "seed=1,2", "sweep.name=s"]
    assert bestrun(*words).code == 0
    folder = home / "mlruns" / "runs" / "s-001"
    (folder / "result.json").unlink()
    lines = (folder / "journal.jsonl").read_text().splitlines(keepends=True)
    (folder / "journal.jsonl").write_text("".join(line for line in lines if '"stopped"' not in line))
    holder = "import fcntl, sys, time; f = open(sys.argv[1], 'r+'); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True)"
    holding = [sys.executable, "-c", f"{holder}; time.sleep(1000)", folder / "lock"]
    with subprocess.Popen(holding, stdout=subprocess.PIPE) as held:
        try:
            held.stdout.readline()
            process = bestrun.start(*words)
            until(lambda: "waiting for s-001" in process.out or process.poll() is not None, timeout=60)
            assert process.out.count("waiting for s-001: a worker of a sweep that was killed saves there") == 1
        finally:
            held.kill()
    assert process.wait().code == 0
