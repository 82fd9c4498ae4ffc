"""Where a sweep's runs are carried out: in this process, in processes of this machine, or on a Ray cluster.

A backend starts tasks and says which have ended; how a run went stands in its journal. A run is asked to stop by the
file `stop` in its folder, which every backend's processes can see.
"""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from .compose import Composed
from .errors import BestrunError, SettingsError
from .folder import RunFolder

PRELOAD = ["bestrun.device", "bestrun.loop", "bestrun.resume", "mlflow.tracking"]
PRELOAD.append("mlflow.store.tracking.sqlalchemy_store")  # 1 s at the first use of a store


@dataclass(frozen=True)
class Task:
    """One run to start, or to go on with if its folder exists. `extra` goes into its `started` event."""

    run_name: str
    composed: Composed
    home: Path
    extra: dict[str, Any]


@dataclass(frozen=True)
class Ended:
    """A task is over; `error` is why, where it is not a stop reason of its journal. `signal`: it was told to stop."""

    run_name: str
    error: str | None = None
    signal: int | None = None


def work(task: Task, poke: Callable[[], None] = lambda: None) -> Ended:
    """Carry one run through, from wherever it is. Never raises: a failed trial is not the end of a sweep.

    Args:
        poke: called between chunks of steps.
    """
    from .resume import resume
    from .run import start
    from .screen import Screen

    folder, screen = RunFolder(task.home / "runs" / task.run_name), Screen(quiet=True)

    def asked() -> str | None:
        poke()
        with contextlib.suppress(OSError):
            return folder.stop.read_text() or None
        return None

    try:
        if folder.exists():
            uri = task.composed.config.tracking.uri  # with the password that stands in no file
            again = [f"tracking.uri='{uri}'"] if uri else []
            result = resume(folder, again, home=task.home, screen=screen, asked=asked)
        else:
            result = start(task.composed, home=task.home, screen=screen, extra=task.extra, asked=asked)
    except BestrunError as error:
        return Ended(task.run_name, str(error))
    except Exception as error:
        return Ended(task.run_name, f"{type(error).__name__}: {error}")
    code = result.exit_code - 128
    return Ended(task.run_name, signal=code if code in (signal.SIGINT, signal.SIGTERM) else None)


class Backend(Protocol):
    """What the scheduler needs of a place to work."""

    def start(self, task: Task, poke: Callable[[], None]) -> None:
        """Begin; an inline one comes back when the run is over, and calls `poke` meanwhile."""

    def ended(self) -> list[Ended]:
        """Those that are over, each once."""

    def stop(self) -> None:
        """Ask all runs to save and leave."""

    def close(self) -> None:
        """After the last run."""


class Inline:
    """In this process, one after the other."""

    def __init__(self) -> None:
        self._ended: list[Ended] = []

    def start(self, task: Task, poke: Callable[[], None]) -> None:
        ended = work(task, poke)  # meanwhile `ended` is called, too
        self._ended.append(ended)

    def ended(self) -> list[Ended]:
        found, self._ended = self._ended, []
        return found

    def stop(self) -> None:
        pass  # the signal went to the run itself

    def close(self) -> None:
        pass


class Local:
    """A process for each run, from a server that has imported TensorFlow and MLflow: ready in 0.1 s instead of 10."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOAD)
        self._running: dict[str, tuple[Any, multiprocessing.connection.Connection[Any, Any]]] = {}

    def start(self, task: Task, poke: Callable[[], None]) -> None:
        receiver, sender = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_in_worker, args=(task, sender), name=task.run_name)
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
            del self._running[name]
        return found

    def stop(self) -> None:
        for process, _ in self._running.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM)

    def close(self) -> None:
        pass


def _in_worker(task: Task, sender: Any) -> None:
    os.setsid()  # Ctrl-C on the terminal is for the scheduler, which tells each worker once
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    ended = work(task)
    with contextlib.suppress(BrokenPipeError):  # the scheduler is gone
        sender.send(ended)


def _leave_with_parent() -> None:
    """A killed scheduler tells nobody: its end of this pipe closes. Then this run saves and leaves, as on SIGTERM."""
    parent = multiprocessing.parent_process()
    if parent:
        multiprocessing.connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)


class Ray:
    """Tasks of a Ray cluster: RAY_ADDRESS, or one on this machine. All nodes must see the mlruns folder."""

    def __init__(self, threads: int, uri: str) -> None:
        try:
            import ray
        except ImportError:
            raise SettingsError(
                "sweep.backend=ray: Ray is not installed; see docs/sweeps.md, or sweep.backend=local"
            ) from None
        self._ray = ray
        if not ray.is_initialized():
            ray.init(address=os.environ.get("RAY_ADDRESS"), log_to_driver=False, configure_logging=False)
        nodes = sum(bool(node["Alive"]) for node in ray.nodes())
        if uri.startswith("sqlite:") and nodes > 1:
            self.close()
            raise SettingsError(
                f"sweep.backend=ray: {nodes} nodes cannot share an SQLite store; start a server (mlflow server ...) "
                "and type tracking.uri=http://HOST:PORT"
            )
        # Retried by the scheduler, not by Ray: it goes on with the same run, once its lock is free
        self._work = ray.remote(num_cpus=threads, max_retries=0, max_calls=1)(work)
        self._running: dict[Any, Task] = {}
        self._environment = {"env_vars": {"MLFLOW_TRACKING_URI": uri}}

    def start(self, task: Task, poke: Callable[[], None]) -> None:
        self._running[self._work.options(name=task.run_name, runtime_env=self._environment).remote(task)] = task

    def ended(self) -> list[Ended]:
        if not self._running:
            return []
        ready, _ = self._ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        found = []
        for reference in ready:
            task = self._running.pop(reference)
            try:
                found.append(self._ray.get(reference))
            except self._ray.exceptions.RayError as error:
                found.append(Ended(task.run_name, f"its worker was lost: {type(error).__name__}"))
        return found

    def stop(self) -> None:
        for task in self._running.values():
            RunFolder(task.home / "runs" / task.run_name).stop.write_text("interrupted")

    def close(self) -> None:
        self._ray.shutdown()
