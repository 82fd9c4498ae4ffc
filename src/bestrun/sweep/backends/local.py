"""The runs of a sweep in processes of this machine, which end with the scheduler."""

import contextlib
import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ... import environment, lab
from .devices import Devices
from .work import Ended, Task, work

LEAVE_SECONDS = 25.0  # so long a worker has to save, once nobody waits for it

COMMAND = "bestrun.sweep.backends._command"
SERVER = "bestrun.sweep.backends._forked"
PRELOAD = [
    "bestrun.training.device",  # first, as it makes TensorFlow's start quiet
    "bestrun.training.loop",
    "bestrun.training.networks.cnn",
    "bestrun.run.gallery",
    "bestrun.run.resume",
    "bestrun.run.start",
    "bestrun.views.screen",
    "mlflow.tracking",
    "mlflow.store.tracking.sqlalchemy_store",  # 1 s at the first use of a store
    "mlflow.store.tracking.sqlalchemy_workspace_store",
    "alembic.command",
    "sqlalchemy.dialects.sqlite",
]


class Local:
    """A process for each run, from a server that has imported TensorFlow and MLflow: ready in 0.1 s instead of 10.

    Where there are graphics cards, each is an interpreter of its own: importing TensorFlow starts CUDA, which takes
    CUDA_VISIBLE_DEVICES as it is then, and which no fork of that process can use.
    """

    def __init__(self, devices: Devices) -> None:
        self._devices = devices
        self._context: Any = multiprocessing.get_context("spawn" if devices.names else "forkserver")
        if not devices.names:
            is_plain = environment.is_command and not lab.current()  # a lab's code may take anything of Keras
            self._context.set_forkserver_preload([COMMAND, SERVER] if is_plain else [SERVER])
            multiprocessing.forkserver.ensure_running()  # it imports while the sweep's store and data are looked at
        self._running: dict[str, tuple[Any, multiprocessing.connection.Connection[Any, Any]]] = {}

    def start(self, task: Task, on_chunk: Callable[[], None]) -> None:
        receiver, sender = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_in_worker, args=(task, sender), name=task.run_name)
        with _environment(self._devices.take(task.run_name)):
            process.start()
        sender.close()
        self._running[task.run_name] = process, receiver

    def ended(self) -> list[Ended]:
        found = []
        for name, (process, receiver) in list(self._running.items()):
            if process.exitcode is None:
                continue
            how = f"killed by signal {-process.exitcode}" if process.exitcode < 0 else f"exit {process.exitcode}"
            answer = Ended(name, f"its process ended without a word: {how}")
            with contextlib.suppress(EOFError, OSError):
                answer = receiver.recv()
            found.append(answer)
            receiver.close()
            process.close()
            self._devices.give_back(name)
            del self._running[name]
        return found

    def stop(self) -> None:
        for process, _ in self._running.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM)

    def close(self) -> None:
        pass


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """With these variables a process that is started in here is born."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _in_worker(task: Task, sender: Any) -> None:
    os.setsid()  # Ctrl-C on the terminal is for the scheduler, which tells each worker once
    _end_with_parent()
    ended = work(task)
    with contextlib.suppress(BrokenPipeError):  # the scheduler is gone
        sender.send(ended)


def _end_with_parent() -> None:
    """A killed scheduler tells nobody: its end of this pipe closes. Then this run saves and leaves, as on SIGTERM.

    If it hangs, it is ended: the same line again must not wait for it for ever. A process of its own sees to that, as
    one that is stopped, or waits in a library with Python's lock in hand, runs no thread and no handler.
    """
    parent, worker = multiprocessing.parent_process(), os.getpid()
    if not parent or os.fork():
        return
    try:
        sentinel = int(parent.sentinel)
        os.closerange(3, sentinel)  # the worker's end of its own pipes is to close with the worker
        os.closerange(sentinel + 1, os.sysconf("SC_OPEN_MAX"))
        while not multiprocessing.connection.wait([sentinel], 1.0):
            if os.getppid() != worker:
                return
        deadline = time.monotonic() + LEAVE_SECONDS
        os.kill(worker, signal.SIGTERM)
        while os.getppid() == worker and time.monotonic() < deadline:
            time.sleep(0.1)
        if os.getppid() == worker:
            os.kill(worker, signal.SIGKILL)
    finally:
        os._exit(0)
