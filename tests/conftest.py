"""What the tests stand on: quick real processes, a ready-made store, a real MLflow server, small data.

Nothing here is started before a test asks for it; what is dear (TensorFlow, the store, the server) is made once.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import http.client
import json
import multiprocessing
import multiprocessing.context
import multiprocessing.forkserver
import multiprocessing.process
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

# The package sets what its libraries read from the environment; the tests' processes start from it.
import bestrun as package
from bestrun.guard import guarded

# oneDNN decides at TensorFlow's import, so every process of the tests, the forkserver first, has the same kernels.
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

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


# ---- processes ----


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
            target=_run_as_program, args=(target, args, str(cwd or Path.cwd()), environment, str(out), str(err))
        )
        process.start()
        self.started.append(Process(process, out, err))
        return self.started[-1]


def _run_as_program(
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


def _print_missing() -> None:
    print(*(name for name in LIBRARIES if name not in sys.modules))


def _command(argv: tuple[str, ...]) -> None:
    from bestrun.cli.main import main

    sys.argv = [str(Path(sys.executable).with_name("bestrun")), *argv]
    main()


@pytest.fixture(scope="session")
def _forkserver(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The first process takes about 10 s, while the server imports; each later one 0.05 s."""
    multiprocessing.set_forkserver_preload([*LIBRARIES, *OURS])
    starter = Starter(tmp_path_factory.mktemp("forkserver"))
    # The server ignores a failing import; every process would then quietly import TensorFlow for itself.
    result = starter(_print_missing).wait(120)
    if result.code or result.out.split():
        pytest.fail(f"the forkserver could not import: {result.out}{result.err}; what does python -c 'import ...' say?")


@pytest.fixture
def start_process(_forkserver: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starter]:
    """`start_process(function, *args, cwd=, env=) -> Process`; what still runs at the test's end is killed."""
    starter = Starter(tmp_path_factory.mktemp("processes"))
    yield starter
    for process in starter.started:
        process.end()


@dataclass(frozen=True)
class Command:
    """The command `bestrun` in a process of its own, by default in the test's home."""

    starter: Starter
    home: Path

    def start(self, *argv: object, cwd: Path | None = None, env: Mapping[str, str | None] | None = None) -> Process:
        return self.starter(_command, tuple(map(str, argv)), cwd=cwd or self.home, env=env)

    def __call__(
        self,
        *argv: object,
        cwd: Path | None = None,
        env: Mapping[str, str | None] | None = None,
        timeout: float = 120,
    ) -> Result:
        """Run to the end."""
        return self.start(*argv, cwd=cwd, env=env).wait(timeout)


@pytest.fixture
def bestrun(start_process: Starter, home: Path) -> Command:
    """`bestrun("train", "seed=1") -> Result`, or `bestrun.start(...) -> Process`."""
    return Command(start_process, home)


# ---- stores ----


@pytest.fixture(scope="session")
def ready_made_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file with MLflow's tables and no rows: making them takes 3 s, copying the file no time."""
    from mlflow.store.db.utils import _initialize_tables
    from sqlalchemy import create_engine

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    engine = create_engine(f"sqlite:///{path}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's migrations use what SQLAlchemy has deprecated
        _initialize_tables(engine)
    engine.dispose()
    return path


def make_home(folder: Path, store: Path) -> Path:
    """Make of `folder` a home: an empty, marked `mlruns/` with a copy of `store`."""
    mlruns = folder / "mlruns"
    mlruns.mkdir(parents=True)
    (mlruns / ".bestrun").touch()
    shutil.copyfile(store, mlruns / "mlflow.db")
    return folder


@pytest.fixture
def home(tmp_path: Path, ready_made_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an empty, marked `mlruns/`, which this process and those it starts take for theirs."""
    folder = make_home(tmp_path / "home", ready_made_store)
    monkeypatch.setenv("BESTRUN_MLRUNS", str(folder / "mlruns"))
    for name in ("TRACKING_URI", "REGISTRY_URI", "RUN_ID", "EXPERIMENT_ID", "EXPERIMENT_NAME"):
        monkeypatch.delenv(f"MLFLOW_{name}", raising=False)
    return folder


class Server:
    """A real `mlflow server` on loopback; after `stop`, `start` brings it back with all it had, at the same address."""

    def __init__(self, folder: Path, store: Path) -> None:
        self.folder = folder
        shutil.copyfile(store, folder / "mlflow.db")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None
        self._until_stopped = contextlib.ExitStack()

    def start(self) -> None:
        """Start it unless it runs, and wait until it answers, 11 to 15 s."""
        if self._process and self._process.poll() is None:
            return
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.folder / 'mlflow.db'}", "--workers", "1"]
        command += ["--serve-artifacts", "--artifacts-destination", str(self.folder / "artifacts")]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        environment |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with open(self.folder / "server.log", "ab") as log:
            # However pytest ends, it does not stay behind
            watched = guarded(command, cwd=self.folder, env=environment, stdout=log, stderr=log)
            self._process = self._until_stopped.enter_context(watched)
        deadline = time.monotonic() + 60
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                pytest.fail("mlflow server did not start\n" + (self.folder / "server.log").read_text()[-3000:])
            time.sleep(0.1)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End its whole process group, as uvicorn's workers outlive the process that started them; the guard waits."""
        if not self._process:
            return
        pid = self._process.pid
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
                os.killpg(int(child), number)
        self._until_stopped.close()
        self._process = None

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory, ready_made_store: Path) -> Iterator[Server]:
    """One server for all tests; a test that stops it starts it again."""
    server = Server(tmp_path_factory.mktemp("server"), ready_made_store)
    try:
        server.start()
        yield server
    finally:
        server.stop()


# ---- data ----


@pytest.fixture(scope="session")
def small_mnist_npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real MNIST, little of it: 2,000 / 500 / 500 images, for `data=npz data.path=...`."""
    from bestrun.data.dataset import load_dataset

    mnist = load_dataset("mnist")
    arrays: dict[str, Any] = {}
    for part, split, count in (("train", mnist.train, 2000), ("val", mnist.validation, 500), ("test", mnist.test, 500)):
        arrays[f"x_{part}"] = split.images[:count, ..., 0]
        arrays[f"y_{part}"] = split.labels[:count].astype(np.uint8)
    path = tmp_path_factory.mktemp("data") / "small_mnist.npz"
    np.savez(path, **arrays)
    return path


@pytest.fixture
def settings(small_mnist_npz: Path) -> list[str]:
    """Of a small network on little data, trained for three evaluations after the one at step 0."""
    network = ["model.num_filters=[4,8]", "model.fc_size=16", "optimizer.learning_rate=2e-3"]
    steps = ["training.max_steps=60", "training.evaluate_every_steps=20", "training.patience_steps=60"]
    return ["data=npz", f"data.path={small_mnist_npz}", *network, *steps]


@pytest.fixture(scope="session")
def colour_npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Colour images, 12 high and 10 wide, of 5 classes that differ in hue and in where a bright bar is; 300 / 100."""
    random = np.random.default_rng(0)
    hues = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200], [180, 180, 40], [40, 180, 180]])
    arrays: dict[str, Any] = {}
    for part, count in (("train", 300), ("test", 100)):
        labels = np.arange(count) % 5
        images = hues[labels][:, None, None, :] + random.normal(0, 40, (count, 12, 10, 3))
        for image, label in zip(images, labels, strict=True):
            image[2 * label + 1 : 2 * label + 3] += 60
        arrays[f"x_{part}"] = images.clip(0, 255).astype(np.uint8)
        arrays[f"y_{part}"] = labels
    path = tmp_path_factory.mktemp("data") / "colour.npz"
    np.savez(path, **arrays)
    return path


# ---- a run to look at ----


@dataclass(frozen=True)
class Trained:
    """A home in which one run, `trained`, has finished with its MLflow model; tests leave it as they found it."""

    home: Path
    bestrun: Command
    folder: Path
    run_id: str

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.home / 'mlruns' / 'mlflow.db'}"

    @property
    def artifacts(self) -> Path:
        return self.home / "mlruns" / "artifacts" / "npz" / self.run_id / "artifacts"


SMALL = ["model.num_filters=[4,8]", "model.fc_size=16", "optimizer.learning_rate=2e-3", "training.max_steps=60"]
SMALL += ["training.evaluate_every_steps=20", "training.patience_steps=60", "tracking.log_model=true"]


@pytest.fixture(scope="module")
def trained(
    _forkserver: None, tmp_path_factory: pytest.TempPathFactory, ready_made_store: Path, small_mnist_npz: Path
) -> Trained:
    home = make_home(tmp_path_factory.mktemp("trained"), ready_made_store)
    command = Command(Starter(tmp_path_factory.mktemp("processes")), home)
    result = command("train", "data=npz", f"data.path={small_mnist_npz}", *SMALL, "name=trained", "--json")
    assert result.code == 0, result.err
    return Trained(home, command, home / "mlruns" / "runs" / "trained", json.loads(result.out)["run_id"])


@pytest.fixture
def without_bestrun(tmp_path: Path) -> dict[str, str]:
    """The environment of a Python that cannot import bestrun, as it is for people who do not have it."""
    folder = tmp_path / "without_bestrun"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text("import sys\nsys.modules['bestrun'] = None\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "BESTRUN_"))}
    return environment | {"PYTHONPATH": str(folder), "MLFLOW_DISABLE_TELEMETRY": "true"}
