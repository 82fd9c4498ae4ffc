"""Quick real processes: each begins as an interpreter that has TensorFlow, MLflow and bestrun imported already."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import multiprocessing
import multiprocessing.context
import multiprocessing.forkserver
import multiprocessing.process
import multiprocessing.util
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest

import bestrun as package

LIBRARIES = [
    "tensorflow",
    "keras",
    "mlflow.tracking",
    "mlflow.store.tracking.sqlalchemy_store",  # 1 s at the first use of a store
    "click",
    "hydra",
    "matplotlib.backends.backend_agg",
    "pydantic",
    "pytest",  # a child imports the program that started it, and this file
    "rich",
    "safetensors.numpy",
]


PACKAGE = Path(package.__file__).parent


OURS = [
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for path in sorted(PACKAGE.rglob("*.py"))
    if not path.stem.startswith("_")
]


@dataclass(frozen=True)
class Result:
    """How a process ended: exit code (-9: killed by SIGKILL) and all it printed."""

    code: int
    out: str
    err: str


class Process:
    """A process of its own group, its output in files."""

    def __init__(self, process: multiprocessing.process.BaseProcess, out: Path, err: Path) -> None:
        assert process.pid is not None
        self.pid = process.pid
        self._process, self._out, self._err = process, out, err

    @property
    def out(self) -> str:
        """What it has printed so far."""
        return self._out.read_text(errors="replace") if self._out.exists() else ""

    @property
    def err(self) -> str:
        return self._err.read_text(errors="replace") if self._err.exists() else ""

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        return self._process.exitcode

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to this process, not to its children; nothing happens if it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def wait(self, timeout: float = 120) -> Result:
        """Wait for its end. A process that takes longer than `timeout` seconds is killed and fails the test."""
        self._process.join(timeout)
        code = self.poll()
        if code is None:
            self.end()
            pytest.fail(f"process {self.pid} still ran after {timeout} s\n{self.out[-3000:]}\n{self.err[-3000:]}")
        return Result(code, self.out, self.err)

    def end(self) -> None:
        """Kill whatever is left of it, its children too."""
        self.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.join(10)


@dataclass
class Starter:
    """Starts Python functions in fresh processes that have TensorFlow, MLflow and bestrun imported already.

    A process begins as an interpreter would that has just imported all that: no TensorFlow operation has run, signals
    stand at their defaults, nothing of multiprocessing is left, standard input is empty. Two things differ: what
    modules are loaded (use `subprocess` to test that `--help` does not import TensorFlow), and the hash seed, which all
    processes of a session share. Output is line-buffered.
    """

    folder: Path
    started: list[Process] = field(default_factory=list)

    def __call__(
        self,
        target: Callable[..., object],
        *args: object,
        cwd: Path | None = None,
        env: Mapping[str, str | None] | None = None,
    ) -> Process:
        """Start `target(*args)`, a function of a module, in `cwd` with this environment and `env` (None removes)."""
        number = len(self.started) + 1
        out, err = self.folder / f"{number}.out", self.folder / f"{number}.err"
        environment = {name: value for name, value in {**os.environ, **(env or {})}.items() if value is not None}
        process = multiprocessing.get_context("forkserver").Process(
            target=run_as_program, args=(target, args, str(cwd or Path.cwd()), environment, str(out), str(err))
        )
        process.start()
        self.started.append(Process(process, out, err))
        return self.started[-1]


def run_as_program(
    target: Callable[..., object], args: tuple[object, ...], cwd: str, env: dict[str, str], out: str, err: str
) -> NoReturn:
    """In the child: become what a new interpreter is, run `target`, end as an interpreter ends."""
    os.setpgid(0, 0)
    # However pytest ends, no process of a test stays: once nobody holds this the forkserver ends, and this with that
    alive = multiprocessing.forkserver._forkserver._forkserver_alive_fd  # type: ignore[attr-defined]
    if alive is not None:  # None in a process of failing_calls, which forks by itself
        os.close(alive)
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # Python gives an OSError instead
        signal.signal(ignored, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for descriptor, path in ((1, out), (2, err)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, descriptor)
        os.close(file)
    sys.stdout.reconfigure(encoding="utf-8", line_buffering=True)  # type: ignore[union-attr]
    sys.stderr.reconfigure(encoding="utf-8", line_buffering=True)  # type: ignore[union-attr]
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    if warm := sys.modules.get("support.warm"):  # what is installed was read for this path, letter by letter
        sys.path[:] = warm.PATH
    np.random.seed()
    warnings.filterwarnings("error", module="bestrun")  # as in pyproject.toml for this process
    # A main process, not a worker: else workers that it starts itself would come from the tests' forkserver, with the
    # tests' environment in place of its own.
    multiprocessing.process._parent_process = None  # type: ignore[attr-defined]
    multiprocessing.current_process().name = "MainProcess"
    multiprocessing.context._default_context._actual_context = None  # type: ignore[attr-defined]
    multiprocessing.forkserver._forkserver.__init__()  # type: ignore[misc]

    code: object = 0
    interrupted = False
    try:
        target(*args)
    except SystemExit as end:
        code = end.code
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        code, interrupted = 1, isinstance(error, KeyboardInterrupt)
    threading._shutdown()  # type: ignore[attr-defined]  # joins threads, as the end of a main program does
    atexit._run_exitfuncs()
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    if interrupted:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit((code or 0) & 0xFF)


def print_missing() -> None:
    print(*(name for name in [*LIBRARIES, "support.warm"] if name not in sys.modules))


def bestrun_command(argv: tuple[str, ...]) -> None:
    from bestrun.cli.main import main

    sys.argv = [str(Path(sys.executable).with_name("bestrun")), *argv]
    main()


def scheduler_command(argv: tuple[str, ...]) -> None:
    """The command `bestrun`, whose workers come from a fork of this process in place of a new interpreter, which takes
    10 s."""
    fork_workers_from_here()
    bestrun_command(argv)


def forget_bestrun() -> None:
    """From now on this process has what an interpreter has for which bestrun is not installed."""
    import keras

    for name in [name for name in sys.modules if name.partition(".")[0] == "bestrun"]:
        del sys.modules[name]
    sys.modules["bestrun"] = None  # type: ignore[assignment]  # whoever imports it gets an ImportError
    keras.saving.get_custom_objects().clear()


def fork_workers_from_here() -> None:
    def fork(path: str, args: list[str], descriptors: list[int]) -> int:
        if "forkserver" not in args[-1]:
            return spawn(path, args, descriptors)  # type: ignore[no-any-return]
        if pid := os.fork():
            return pid
        try:
            os.close(sys._getframe(1).f_locals["alive_w"])  # the server ends when nobody else holds this end
            exec(args[-1], {})
        finally:
            os._exit(0)

    spawn, multiprocessing.util.spawnv_passfds = multiprocessing.util.spawnv_passfds, fork  # type: ignore[attr-defined]
    multiprocessing.forkserver.ensure_running()


@dataclass(frozen=True)
class Command:
    """The command `bestrun` in a process of its own, by default in the test's home."""

    starter: Starter
    home: Path

    def start(self, *argv: object, cwd: Path | None = None, env: Mapping[str, str | None] | None = None) -> Process:
        return self.starter(bestrun_command, tuple(map(str, argv)), cwd=cwd or self.home, env=env)

    def __call__(
        self,
        *argv: object,
        cwd: Path | None = None,
        env: Mapping[str, str | None] | None = None,
        timeout: float = 120,
    ) -> Result:
        """Run to the end."""
        return self.start(*argv, cwd=cwd, env=env).wait(timeout)
