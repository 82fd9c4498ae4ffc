"""What the tests stand on: quick real processes, a ready-made store, a real MLflow server, small data.

Nothing here is started before a test asks for it; what is dear (TensorFlow, the store, the server) is made once.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import multiprocessing.context
import multiprocessing.forkserver
import multiprocessing.process
import os
import shutil
import sqlite3
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.lines import SHORT, SMALL, SMALL_NETWORK
from support.processes import LIBRARIES, OURS, Command, Starter, print_missing
from support.stores import Server, copy_home, make_home

# oneDNN decides at TensorFlow's import, so every process of the tests, the forkserver first, has the same kernels.
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"


@pytest.hookimpl(tryfirst=True)  # before `-m "not slow"` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of the cases of a test marked `sampled(n)` n are quick, the first and others evenly apart. And files of few tests
    go first: those are the long ones, and two processes then end at about the same time.
    """
    cases: dict[tuple[Path, str], list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("sampled") and not item.get_closest_marker("slow"):
            cases.setdefault((item.path, item.name.partition("[")[0]), []).append(item)
    for of_one_test in cases.values():
        count = of_one_test[0].get_closest_marker("sampled").args[0]
        quick = {len(of_one_test) * number // count for number in range(count)}
        for number, item in enumerate(of_one_test):
            if number not in quick:
                item.add_marker("slow")
    tests_of = Counter(item.path for item in items)
    items.sort(key=lambda item: (tests_of[item.path], item.path))


def pytest_collection_finish() -> None:
    """What the tests import stays, and no collection of garbage looks at it: Keras begins each network with one, which
    else takes half a second.
    """
    gc.freeze()


# ---- processes ----


@pytest.fixture(scope="session")
def _forkserver(tmp_path_factory: pytest.TempPathFactory, ready_made_store: Path) -> None:
    """The first process takes about 10 s, while the server imports; each later one 0.05 s."""
    multiprocessing.set_forkserver_preload([*LIBRARIES, *OURS, "support.warm"])
    folder = tmp_path_factory.mktemp("forkserver")
    starter = Starter(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))  # where the server finds support.warm
        patch.setenv("WARM_PATH", os.pathsep.join(filter(None, sys.path)))  # '' is another folder in each process
        patch.setenv("WARM_STORE", f"sqlite:///{shutil.copy(ready_made_store, folder)}")
        # The server ignores a failing import; every process would then quietly import TensorFlow for itself.
        result = starter(print_missing).wait(120)
    if result.code or result.out.split():
        pytest.fail(f"the forkserver could not import: {result.out}{result.err}; what does python -c 'import ...' say?")


@pytest.fixture
def start_process(_forkserver: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starter]:
    """`start_process(function, *args, cwd=, env=) -> Process`; what still runs at the test's end is killed."""
    starter = Starter(tmp_path_factory.mktemp("processes"))
    yield starter
    for process in starter.started:
        process.end()


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


@pytest.fixture
def home(tmp_path: Path, ready_made_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an empty, marked `mlruns/`, which this process and those it starts take for theirs."""
    folder = make_home(tmp_path / "home", ready_made_store)
    monkeypatch.setenv("BESTRUN_MLRUNS", str(folder / "mlruns"))
    about_runs = ("RUN_ID", "EXPERIMENT_ID", "EXPERIMENT_NAME", "RUN_CONTEXT", "TAGS")
    for name in ("TRACKING_URI", "REGISTRY_URI", *about_runs):
        monkeypatch.delenv(f"MLFLOW_{name}", raising=False)
    return folder


@pytest.fixture(scope="session")
def own_home(
    _forkserver: None, tmp_path_factory: pytest.TempPathFactory, ready_made_store: Path
) -> Callable[..., tuple[Path, Command]]:
    """`home, bestrun = own_home()`: a home and its command for what tests of a file share; `own_home(Stubbed)`."""

    def make(command: type[Command] = Command) -> tuple[Path, Command]:
        home = make_home(tmp_path_factory.mktemp("own") / "home", ready_made_store)
        return home, command(Starter(tmp_path_factory.mktemp("processes")), home)

    return make


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
    """Of a small network on little data, trained for three evaluations after the one at step 0; nothing is drawn."""
    network = ["model.num_filters=[4,8]", "model.fc_size=16", "optimizer.learning_rate=2e-3"]
    steps = ["training.max_steps=60", "training.evaluate_every_steps=20", "training.patience_steps=60"]
    return ["data=npz", f"data.path={small_mnist_npz}", *network, *steps, "tracking.log_model=none", "pictures=false"]


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


@pytest.fixture(scope="session")
def tiny_npz(tmp_path_factory: pytest.TempPathFactory, small_mnist_npz: Path) -> Path:
    """Every third pixel of some MNIST images: 10 high, 10 wide."""
    with np.load(small_mnist_npz) as arrays:
        few = {name: array[:400] for name, array in arrays.items()}
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    np.savez(path, **{name: array[:, ::3, ::3] if array.ndim == 3 else array for name, array in few.items()})  # type: ignore[arg-type]
    return path


@pytest.fixture(scope="session")
def _trained_once(
    own_home: Callable[..., tuple[Path, Command]], tmp_path_factory: pytest.TempPathFactory, small_mnist_npz: Path
) -> tuple[Trained, Path]:
    """The run, and a copy of its home as the training left it."""
    home, command = own_home()
    result = command("train", "data=npz", f"data.path={small_mnist_npz}", *SMALL, "name=trained", "--json")
    assert result.code == 0, result.err
    run_id = json.loads(result.out)["run_id"]
    untouched = shutil.copytree(home, tmp_path_factory.mktemp("untouched") / "home", symlinks=True)
    return Trained(home, command, home / "mlruns" / "runs" / "trained", run_id), untouched


@pytest.fixture(scope="module")
def trained(_trained_once: tuple[Trained, Path]) -> Trained:
    """Trained once; each file of tests finds the home as the training left it, at the same place."""
    from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as Registry
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as Store

    found, untouched = _trained_once
    for engine in (*Store._engine_map.values(), *Registry._engine_map.values()):
        engine.dispose()  # connections of this process, which would go on to read the file that is removed here
    shutil.rmtree(found.home)
    shutil.copytree(untouched, found.home, symlinks=True)
    return found


@pytest.fixture(scope="session")
def finished(own_home: Callable[..., tuple[Path, Command]], small_mnist_npz: Path) -> Path:
    """A home in which a small run, `k`, has finished, without an MLflow model; tests look at it or at a copy of it."""
    home, command = own_home()
    words = ["data=npz", f"data.path={small_mnist_npz}", *SMALL_NETWORK, *SHORT, "name=k", "tags.author=ada"]
    result = command("train", *words)
    assert result.code == 0, result.err
    return home


@pytest.fixture
def copied(finished: Path, home: Path) -> Path:
    """The test's home as a copy of `finished`, to do anything with."""
    copy_home(finished, home)
    return home


@pytest.fixture
def without_bestrun(tmp_path: Path) -> dict[str, str]:
    """The environment of a Python that cannot import bestrun, as it is for people who do not have it."""
    folder = tmp_path / "without_bestrun"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text("import sys\nsys.modules['bestrun'] = None\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "BESTRUN_"))}
    return environment | {"PYTHONPATH": str(folder), "MLFLOW_DISABLE_TELEMETRY": "true"}


@pytest.fixture
def changed(trained):
    """`changed(path)`: a file of the home that a test may damage; it is put back."""
    kept = {}

    def change(path):
        kept[path] = path.read_bytes()
        return path

    yield change
    for path, content in kept.items():
        path.unlink(missing_ok=True)
        path.write_bytes(content)


@pytest.fixture
def database(trained):
    """The rows of the home's store, which a test may falsify; they are put back."""
    path = trained.home / "mlruns" / "mlflow.db"
    kept = path.read_bytes()
    connection = sqlite3.connect(path)
    yield connection
    connection.close()
    path.write_bytes(kept)
