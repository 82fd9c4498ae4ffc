"""Commands in which the N-th call of libc below a folder fails, is cut short, or is the last: see failing_calls.c.

A server process has the library preloaded and everything imported, as the tests' forkserver has; it forks a process for
each command. With `stub` the command is the real one, from its line to its exit code, around a network of three arrays:
no TensorFlow operation runs, and a whole run takes half a second.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import importlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

KINDS = ["create", "write", "fsync", "rename", "link", "unlink", "mkdir", "truncate", "open", "read", "list"]
TAKES_ROOM = {"create", "write", "fsync", "rename", "link", "mkdir"}
CLASSES = ["database", "log", "mirror", "pictures", "run", "artifacts", "home", "sweeps", "elsewhere"]
FAULTS = ["none", "once", "from", "half", "kill before", "kill after", "sleep"]
MODES = {  # what is done to a call: the library's fault, with this error
    "EIO": ("once", errno.EIO),
    "EMFILE": ("once", errno.EMFILE),
    "ENOSPC": ("from", errno.ENOSPC),
    "half": ("half", 0),
    "before": ("kill before", 0),
    "after": ("kill after", 0),
    "late": ("sleep", errno.EIO),
}


@dataclass(frozen=True)
class Call:
    """A call that was counted. `n` counts apart what the main thread and others, what reads and what writes do."""

    hit: bool
    thread: str
    reads: bool
    n: int
    of: str
    kind: str
    size: int
    path: str

    def modes(self) -> list[str]:
        """What makes sense to do to a call of this kind. Killed before a reading is killed after the writing before."""
        if self.reads:
            return ["EIO"] if self.kind == "read" else ["EMFILE"]
        room = ["ENOSPC"] if self.kind in TAKES_ROOM else []
        half = ["half"] if self.kind == "write" and self.size > 1 else []
        return ["EIO", *room, *half, "before", "after"]

    def __str__(self) -> str:
        return f"{self.kind} of {self.path}"


@dataclass(frozen=True)
class Fault:
    """What to do to which call; its text is its name in a case's ID."""

    thread: str
    reads: bool
    n: int
    mode: str

    def __str__(self) -> str:
        return f"{self.thread}-{'r' if self.reads else 'w'}{self.n}-{self.mode}"

    @classmethod
    def parse(cls, text: str) -> Fault:
        thread, number, mode = text.split("-")
        return cls(thread, number[0] == "r", int(number[1:]), mode)


@dataclass(frozen=True)
class Ended:
    """How a command ended, and the calls that were counted."""

    words: list[str]
    code: int
    out: str
    err: str
    calls: list[Call]

    @property
    def hit(self) -> Call | None:
        return next((call for call in self.calls if call.hit), None)

    def __str__(self) -> str:
        said = "\n".join(f"      | {line}" for line in (self.out + self.err).splitlines()[-12:])
        return f"    bestrun {' '.join(self.words)}  -> {self.code}\n{said}"


def read_trace(path: Path) -> list[Call]:
    calls = []
    for line in path.read_text(errors="surrogateescape").splitlines() if path.exists() else ():
        hit, other, reads, n, of, kind, size, name = line.split(" ", 7)
        thread = "other" if other == "1" else "main"
        of, kind = CLASSES[int(of).bit_length() - 1], KINDS[int(kind).bit_length() - 1]
        calls.append(Call(hit == "1", thread, reads == "1", int(n), of, kind, int(size), name))
    return calls


def build(folder: Path) -> Path | None:
    """The library, or None where no C compiler is."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler or sys.platform != "linux":
        return None
    library = folder / "failing_calls.so"
    source = Path(__file__).with_suffix(".c")
    words = [compiler, "-std=gnu11", "-O1", "-shared", "-fPIC", "-Wall", "-o", str(library), str(source), "-ldl"]
    subprocess.run(words, check=True)
    return library


# ---- in the tests' process ----


class Forker:
    """The process that forks. Each `place` has a process of its own there, so that several commands run at once."""

    def __init__(self, folder: Path, library: Path) -> None:
        self.address = str(folder / "socket")
        environment = os.environ | {"LD_PRELOAD": str(library), "PYTHONPATH": str(Path(__file__).parents[1])}
        self._log = open(folder / "server.log", "wb")  # noqa: SIM115  (as long as the server)
        words = [sys.executable, "-m", "support.failing_calls", self.address]
        self._process = subprocess.Popen(
            words,
            env=environment,
            stdin=subprocess.PIPE,  # its end tells the server that the tests are over, however they ended
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        deadline = time.monotonic() + 120
        while not os.path.exists(self.address):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError("did not start: " + (folder / "server.log").read_text()[-2000:])
            time.sleep(0.05)

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self.address)
        return connection

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process.stdin.close()  # type: ignore[union-attr]
        self._log.close()


class Place:
    """A folder with a home `mlruns`, and commands in it, one at a time. Its path stays as its content is replaced."""

    def __init__(self, folder: Path, server: Forker, store: Path, environment: Mapping[str, str]) -> None:
        self.folder, self.mlruns = folder, folder / "mlruns"
        self._store = store
        self._saved = folder.with_name(f"{folder.name}-saved")
        with server.connect() as connection:
            self._files = connection.makefile("rw")
        self._notes = folder.with_name(f"{folder.name}-notes")
        self._notes.mkdir()
        self._environment = environment

    def reset(self, name: str, prepare: Callable[[Place], None]) -> None:
        """Make the folder as `prepare` makes it of an empty home; it is asked once."""
        saved = self._saved / name
        if not saved.exists():
            self._empty()
            prepare(self)
            saved.parent.mkdir(exist_ok=True)
            shutil.copytree(self.folder, saved, symlinks=True)
            return
        shutil.rmtree(self.folder)
        shutil.copytree(saved, self.folder, symlinks=True)

    def _empty(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.mlruns.mkdir(parents=True)
        (self.folder / "tmp").mkdir()
        (self.mlruns / ".bestrun").touch()
        shutil.copyfile(self._store, self.mlruns / "mlflow.db")

    def run(
        self,
        *words: str,
        fault: Fault | None = None,
        classes: Sequence[str] = CLASSES[1:],
        stub: bool = True,
        env: Mapping[str, str] | None = None,
    ) -> Ended:
        """Type `bestrun WORDS` and wait; of the calls below the folder, those of `classes` are counted."""
        out, err, trace = (self._notes / name for name in ("out", "err", "trace"))
        for path in (out, err, trace):
            path.unlink(missing_ok=True)
        of = sum(1 << CLASSES.index(name) for name in classes)
        what, error = MODES[fault.mode] if fault else ("none", 0)
        arm = [str(self.folder), of, (1 << len(KINDS)) - 1]
        arm += [fault.thread == "other", fault.reads, fault.n] if fault else [0, 0, 0]
        arm += [FAULTS.index(what), error, str(trace)]
        environment = {name: text for name, text in os.environ.items() if not name.startswith(("MLFLOW_", "BESTRUN_"))}
        environment |= {"MLFLOW_DISABLE_TELEMETRY": "true", "BESTRUN_MLRUNS": str(self.mlruns)}
        environment |= {"TMPDIR": str(self.folder / "tmp"), **self._environment, **(env or {})}
        request = {"words": words, "arm": arm, "stub": stub, "env": environment, "cwd": str(self.folder)}
        self._files.write(json.dumps(request | {"out": str(out), "err": str(err)}) + "\n")
        self._files.flush()
        code = int(self._files.readline())
        text = (path.read_text(errors="replace") for path in (out, err))
        return Ended(list(words), code, *text, read_trace(trace))


# ---- in the server and its children ----

SECONDS = 180  # a command that takes longer has hung


def serve(address: str) -> None:
    """Import everything, then fork a process for each connection, which forks one for each command."""
    from support.processes import LIBRARIES, OURS

    for name in ("support.stub", *LIBRARIES, *OURS):
        importlib.import_module(name)
    _warm_up()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address + ".new")
    listener.listen()
    os.rename(address + ".new", address)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
        connection, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            _serve_place(connection)
            os._exit(0)
        connection.close()


def _warm_up() -> None:
    """Do once what each command would do for itself: a fifth of its processor time."""
    from sqlalchemy.orm import configure_mappers

    from bestrun.settings.compose import compose

    compose(["training.batch_size=8", "pictures=false"])
    configure_mappers()
    gc.freeze()


def _serve_place(connection: socket.socket) -> None:
    with connection.makefile("rw") as file:
        for line in file:
            request = json.loads(line)
            child = os.fork()
            if child == 0:
                connection.close()
                _become(request)
            _, status = os.waitpid(child, 0)
            with contextlib.suppress(ProcessLookupError):  # what it has started itself
                os.killpg(child, signal.SIGKILL)
            file.write(f"{os.waitstatus_to_exitcode(status)}\n")
            file.flush()


def _become(request: dict[str, Any]) -> None:
    from support.processes import run_as_program

    arguments = (request["words"], request["arm"], request["stub"])
    run_as_program(bestrun_command, arguments, request["cwd"], request["env"], request["out"], request["err"])


def bestrun_command(words: list[str], arm: list[Any], stub: bool) -> None:
    from bestrun.cli.main import main
    from bestrun.storage.provenance import Code, code

    signal.alarm(SECONDS)
    warnings.filterwarnings("ignore", category=ResourceWarning)  # of a file left open by an error: as for a user
    tempfile.tempdir = None  # TMPDIR is another one
    _everywhere(code, lambda: Code("c" * 40, "+ a line\n"))  # the clone may change meanwhile
    if stub:
        replace_what_computes()
    sys.argv = [str(Path(sys.executable).with_name("bestrun")), *words]
    folder, *numbers, trace = arm
    ctypes.CDLL(None).calls_arm(folder.encode(), *map(int, numbers), trace.encode())
    main()


def _modules() -> Iterator[ModuleType]:
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "bestrun":
            yield module


def _everywhere(function: object, replacement: object) -> None:
    """Replace a function in every module that has imported it."""
    for module in _modules():
        for name, value in list(vars(module).items()):
            if value is function:
                setattr(module, name, replacement)


class _Logits(dict):  # type: ignore[type-arg]
    """What the stub's network answers: itself, from which `figures` tells how good it is."""

    def argmax(self, axis: int) -> Any:
        import numpy as np

        return np.zeros(8, int)


def replace_what_computes() -> None:
    import numpy as np

    from bestrun.data import dataset
    from bestrun.results import export, restore
    from bestrun.training import device, evaluation, loop, variables
    from bestrun.training.proof import Function
    from support import stub

    stub.replace_what_computes(loop)
    _everywhere(dataset.load_dataset, lambda **_: stub.stub_data())
    _everywhere(variables.assign_variables, _assign)
    device.prepare = lambda threads, quiet=False: 1
    evaluation.figures, evaluation.further_figures = loop.figures, loop.further_figures
    evaluation.compile_predict = loop.compile_predict = lambda model, _: lambda images: _Logits(model)
    _everywhere(evaluation.confusion_matrix, lambda logits, labels, classes: np.eye(classes, dtype=int) * 4)
    same = Function(True, "it answers as it did then")
    restore.rebuild = lambda fetched, **_: restore.Rebuilt(fetched.checkpoint.tensors, same)
    export.write_keras = lambda fetched, path, **_: path.write_bytes(b"a network") and same
    _quicken()
    steps = loop.compile_steps
    loop.compile_steps = lambda *arguments: _after_the_mirror(steps(*arguments))


def _assign(variables: dict[str, Any], tensors: Mapping[str, Any], where: object) -> None:
    variables.update({name: tensors[name].copy() for name in variables})


_rests = 0


def _quicken() -> None:
    """No thread rests for longer than 20 ms, and no wait of ours for MLflow takes longer than a second."""
    wait, sleep = threading.Event.wait, time.sleep

    def short_wait(event: threading.Event, timeout: float | None = None) -> bool:
        global _rests
        if timeout is None or threading.current_thread() is threading.main_thread():
            return wait(event, timeout)
        _rests += 1
        return wait(event, min(timeout, 0.02))

    def short_sleep(seconds: float) -> None:
        sleep(seconds if threading.current_thread() is threading.main_thread() else min(seconds, 0.02))

    threading.Event.wait, time.sleep = short_wait, short_sleep
    for module in _modules():
        for name, value in vars(module).items():
            if name.endswith("_SECONDS") and isinstance(value, float) and value > 1:
                setattr(module, name, 1.0)


def _is_mirrored() -> bool:
    """Whether a thread other than the one that draws works beside this one."""
    mine = threading.current_thread()
    return any(thread is not mine and thread.name != "gallery" for thread in threading.enumerate())


def _after_the_mirror(run_steps: Callable[..., Any]) -> Callable[..., Any]:
    """Train when the mirror rests, so that its calls come between the same two of training in every run."""

    def run(batches: Any, rates: Any, first_step: int, *sums: Any) -> Any:
        until, deadline = _rests + 2, time.monotonic() + 1  # the pass before the second began after the last evaluation
        if first_step % 10 == 0:
            while _rests < until and time.monotonic() < deadline and _is_mirrored():
                time.sleep(0.002)
        return run_steps(batches, rates, first_step, *sums)

    return run


if __name__ == "__main__":
    serve(sys.argv[1])
