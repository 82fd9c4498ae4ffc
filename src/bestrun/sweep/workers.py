"""Where a sweep's runs are carried out: in this process, in processes of this machine, or on a Ray cluster.

A backend starts tasks and says which have ended; how a run went stands in its journal. A run is asked to stop by the
file `stop` in its folder, which every backend's processes can see.
"""

import contextlib
import logging
import multiprocessing
import multiprocessing.connection
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..errors import BestrunError, SettingsError
from ..settings.compose import Composed
from ..signals import NUMBERS
from ..storage.folder import RunFolder
from .manifest import sweep_path

LEAVE_SECONDS = 25.0  # so long a worker has to save, once nobody waits for it

PRELOAD = ["bestrun.training.device", "bestrun.training.loop", "bestrun.run.resume", "mlflow.tracking"]
PRELOAD.append("mlflow.store.tracking.sqlalchemy_store")  # 1 s at the first use of a store


@dataclass(frozen=True)
class Task:
    """One run to start, or to go on with if its folder exists. `extra` goes into its `started` event."""

    run_name: str
    composed: Composed
    home: Path
    extra: dict[str, Any]

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.home / "runs" / self.run_name)


@dataclass(frozen=True)
class Ended:
    """A task is over; `error` is why, where it is not a stop reason of its journal. `signal`: it was told to stop."""

    run_name: str
    error: str | None = None
    signal: int | None = None


def work(task: Task, on_chunk: Callable[[], None] = lambda: None) -> Ended:
    """Carry one run through, from wherever it is. Never raises: a failed trial is not the end of a sweep.

    Args:
        on_chunk: called between chunks of steps.
    """
    from ..run.resume import resume
    from ..run.start import start
    from ..views.screen import Screen

    folder, screen = task.folder, Screen(quiet=True)

    def stop_requested() -> str | None:
        on_chunk()
        with contextlib.suppress(OSError):
            return folder.stop.read_text("utf-8") or None
        return None

    try:
        if not sweep_path(task.home, task.extra["sweep"]).exists():  # else the run would be made where nobody looks
            return Ended(task.run_name, f"{task.home} is gone: it was moved or deleted")
        if folder.exists():
            uri = task.composed.config.tracking.uri  # with the password that stands in no file
            again = [f"tracking.uri='{uri}'"] if uri else []
            result = resume(folder, again, home=task.home, screen=screen, stop_requested=stop_requested)
        else:
            result = start(
                task.composed, home=task.home, screen=screen, extra=task.extra, stop_requested=stop_requested
            )
    except BestrunError as error:
        return Ended(task.run_name, str(error))
    except Exception as error:
        return Ended(task.run_name, f"{type(error).__name__}: {error}")
    code = result.exit_code - 128
    return Ended(task.run_name, signal=code if code in NUMBERS else None)


class Backend(Protocol):
    """What the scheduler needs of a place to work."""

    def start(self, task: Task, on_chunk: Callable[[], None]) -> None:
        """Begin; an inline one comes back when the run is over, and calls `on_chunk` meanwhile."""

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
        self._folder: RunFolder | None = None

    def start(self, task: Task, on_chunk: Callable[[], None]) -> None:
        self._folder = task.folder
        ended = work(task, on_chunk)  # meanwhile `ended` and `stop` are called, too
        self._folder = None
        self._ended.append(ended)

    def ended(self) -> list[Ended]:
        found, self._ended = self._ended, []
        return found

    def stop(self) -> None:
        """For a signal that came before the run heard signals itself; the file is not there before its folder."""
        with contextlib.suppress(OSError):
            if self._folder:
                self._folder.ask_to_stop("interrupted")

    def close(self) -> None:
        pass


class Local:
    """A process for each run, from a server that has imported TensorFlow and MLflow: ready in 0.1 s instead of 10."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOAD)
        self._running: dict[str, tuple[Any, multiprocessing.connection.Connection[Any, Any]]] = {}

    def start(self, task: Task, on_chunk: Callable[[], None]) -> None:
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


class Ray:
    """Tasks of a Ray cluster: RAY_ADDRESS, or one on this machine. All nodes must see the mlruns folder."""

    def __init__(self, threads: int, uri: str) -> None:
        address = os.environ.get("RAY_ADDRESS") or "local"  # Ray itself would first look for a cluster in /tmp
        if "://" in address:
            raise SettingsError(
                "RAY_ADDRESS: a sweep joins the cluster itself, not through Ray's client; on one of its nodes "
                "type RAY_ADDRESS=HOST:6379 or RAY_ADDRESS=auto"
            )
        self._ray = ray = _import_ray(address == "local")
        alone = dict(include_dashboard=False) if address == "local" else {}
        try:
            if ":" in address:  # Ray tries a silent address for minutes
                host, _, port = address.rpartition(":")
                socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
            ray.init(address=address, log_to_driver=False, configure_logging=False, **alone)
            nodes = sum(bool(node["Alive"]) for node in ray.nodes())
        except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
            ray.shutdown()
            why = str(error).strip().splitlines() or [type(error).__name__]
            raise SettingsError(
                f"sweep.backend=ray: RAY_ADDRESS={address}: {why[0]}; see docs/sweeps.md, or sweep.backend=local"
            ) from None
        if uri.startswith("sqlite:") and nodes > 1:
            self.close()
            raise SettingsError(
                f"sweep.backend=ray: {nodes} nodes cannot share an SQLite store; start a server (mlflow server ...) "
                "and type tracking.uri=http://HOST:PORT"
            )
        self._threads = threads
        # Retried by the scheduler, not by Ray: it goes on with the same run, once its lock is free. A process for each
        # run: TensorFlow's threads are set once a process.
        self._work = ray.remote(max_retries=0, max_calls=1)(_on_node)
        self._running: dict[Any, Task] = {}
        self._lost: dict[str, tuple[Task, Ended]] = {}
        # Not by Ray's runtime environment: that stands in its logs, and a password may be among these
        self._environment = {key: text for key, text in os.environ.items() if key.startswith("MLFLOW_")}
        self._environment["MLFLOW_TRACKING_URI"] = uri

    def start(self, task: Task, on_chunk: Callable[[], None]) -> None:
        work = self._work.options(name=task.run_name, num_cpus=task.composed.config.threads or self._threads)
        self._running[work.remote(task, sys.argv, self._environment)] = task

    def ended(self) -> list[Ended]:
        found = []
        ready, _ = (
            self._ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
            if self._running
            else ([], [])
        )
        for reference in ready:
            task = self._running.pop(reference)
            try:
                found.append(self._ray.get(reference))
            except self._ray.exceptions.TaskCancelledError:
                self._lost[task.run_name] = task, Ended(task.run_name)
            except self._ray.exceptions.RayError as error:
                why = (str(error).strip().splitlines() or [""])[-1 if hasattr(error, "cause") else 0]
                self._lost[task.run_name] = (
                    task,
                    Ended(task.run_name, f"its worker was lost: {type(error).__name__}: {why}"),
                )
        # A node's end is known before its workers have left: until then the run is theirs
        for name, (task, answer) in list(self._lost.items()):
            if not task.folder.is_owned():
                found.append(answer)
                del self._lost[name]
        return found

    def stop(self) -> None:
        for reference, task in self._running.items():
            folder = task.folder
            with contextlib.suppress(OSError):  # there is no folder yet
                folder.ask_to_stop("interrupted")
            if not folder.is_owned():  # waits for a place, or imports; if it has begun by now, it saves and leaves
                self._ray.cancel(reference)

    def close(self) -> None:
        self._ray.shutdown()


def _import_ray(alone: bool) -> Any:
    """Ray, told by its environment to be silent and, with a cluster of its own, to be reached by nobody else.

    Raises:
        SettingsError: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # else a warning that this will change
    if alone:  # read at Ray's import
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # the address of such a one is 127.0.0.1
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # else Ray leaves one in the home folder
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        import ray
    except ImportError:
        raise SettingsError(
            "sweep.backend=ray: Ray is not installed; in a clone type "
            "pip install --require-hashes -r requirements-ray.lock, elsewhere pip install 'bestrun[ray]'"
        ) from None
    return ray


def _on_node(task: Task, argv: list[str], environment: dict[str, str]) -> Ended:
    """In a Ray worker, whose environment and command line are those of its node."""
    if not sweep_path(task.home, task.extra["sweep"]).exists():  # else the run would be made where nobody looks
        return Ended(task.run_name, f"{socket.gethostname()}: {task.home} is not there; all nodes must share it")
    os.environ.update(environment)
    sys.argv = argv
    return work(task)
