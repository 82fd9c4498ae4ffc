"""What each verb imports: a table, so that nobody brings a second of waiting along without noticing."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from bestrun.cli.main import VERBS

OLD = Path(__file__).parents[1] / "promises" / "old" / "0.2.0.tar.xz"  # a home with finished runs

PROGRAM = """
import json, os, sys, sysconfig
from bestrun.cli.main import main
if sys.argv[1] == "ui":  # as far as starting MLflow's server, which is another process
    from bestrun.tracking import server
    def guarded(*given, **named): raise SystemExit(0)
    server.guarded = guarded
code = 1
try:
    main()
except SystemExit as end:
    code = end.code
packages = os.path.realpath(sysconfig.get_path("purelib")) + os.sep
found = set()
for name, module in list(sys.modules.items()):
    place = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", [])), "")
    if place and os.path.realpath(place).startswith(packages):
        found.add(name.partition(".")[0])
with open("imports.json", "w") as file:
    json.dump([code, sorted(found)], file)
"""

STARTED = {"_distutils_hack", "_virtualenv", "sitecustomize"}  # by Python itself, before us
BROUGHT = {  # what else comes along with a package of the table
    "pydantic": {"annotated_types", "pydantic_core", "typing_extensions", "typing_inspection"},
    "matplotlib": {"cycler", "dateutil", "fontTools", "kiwisolver", "mpl_toolkits", "packaging", "pyparsing", "six"},
    "scipy": {"_cyutility", "_csparsetools", "charset_normalizer"},
}
# MLflow and TensorFlow bring dozens, others in each version: of those, what the table must not miss
NAMED = {"PIL", "alembic", "click", "hydra", "keras", "matplotlib", "mlflow", "numpy", "omegaconf", "optuna", "pandas"}
NAMED |= {"psutil", "pyarrow", "pydantic", "pynvml", "ray", "rich", "safetensors", "scipy", "sklearn", "sqlalchemy"}
NAMED |= {"tensorflow", "yaml"}

SETTINGS = {"click", "pydantic", "yaml"}
RECORD = SETTINGS | {"numpy"}
FETCHED = RECORD | {"rich", "safetensors"}
TENSORFLOW = FETCHED | {"PIL", "keras", "psutil", "scipy", "tensorflow"}
MLFLOW = FETCHED | {"alembic", "mlflow", "pandas", "psutil", "pyarrow", "scipy", "sqlalchemy"}
TRAINED = TENSORFLOW | MLFLOW | {"hydra", "omegaconf"}
DATA = "data.path=data.npz"  # it was moved with the home
SHORT = f"data=npz {DATA} data.validation_size=15 model.filter_sizes=[3,3] model.num_filters=[2,2] model.fc_size=4 "
SHORT += "training.batch_size=8 training.max_steps=20 training.evaluate_every_steps=10 pictures=false"

QUICK = {
    "archive whole --out whole.tar": RECORD | {"safetensors"},
    "cache": {"click", "numpy"},
    "compare whole loss": FETCHED,
    "completion bash": {"click"},
    "pack pictures pictures.npz": {"PIL", "click", "numpy", "rich", "safetensors"},
    "report whole": FETCHED | {"PIL", "matplotlib"},
    "runs": SETTINGS | {"rich"},
    "runs --by settings": RECORD | {"rich", "scipy"},
    "show whole": RECORD,
    "show best --objective val/accuracy": RECORD,
    "sweep night": FETCHED | {"PIL"},
    "sync whole": MLFLOW | {"PIL"},
}
WITH_MLFLOW = {  # as `sync` above, which is quick
    "gc": MLFLOW,
    "move whole --to elsewhere --yes": MLFLOW - {"rich"},
    "ui": SETTINGS | {"alembic", "mlflow", "numpy", "pandas", "psutil", "pyarrow", "scipy", "sqlalchemy"},
}
WITH_TENSORFLOW = {
    f"check {SHORT}": TRAINED,
    "fetch whole --out out": TENSORFLOW,
    "predict whole picture.png": TENSORFLOW,
    "register whole --name digits": TENSORFLOW | MLFLOW,
    f"rerun whole {DATA}": TRAINED | {"pynvml"},
    f"restore whole {DATA}": TENSORFLOW | {"hydra", "omegaconf"},
    f"resume cut {DATA}": TRAINED | {"pynvml"},
    f"train {SHORT}": TRAINED | {"pynvml"},
    f"verify norm {DATA} --allow-other-code": TRAINED,
}
DEAR = WITH_MLFLOW | WITH_TENSORFLOW


def imported(words, home):
    """The top-level packages from site-packages that a new process of the command has at its end."""
    environment = {**os.environ, "BESTRUN_MLRUNS": str(home / "mlruns")}
    for name in [name for name in environment if name.startswith("MLFLOW_TRACKING")]:
        del environment[name]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], cwd=home, env=environment, capture_output=True, text=True, timeout=100
    )
    assert (home / "imports.json").exists(), done.stderr
    code, found = json.loads((home / "imports.json").read_text())
    assert code == 0, done.stdout + done.stderr
    return set(found)


def check(line, expected, place):
    with tarfile.open(OLD) as archive:
        archive.extractall(place, filter="data")
    home = place / "home"
    picture = Image.new("L", (8, 8))
    for path in ("picture.png", *(f"pictures/{label}/{number}.png" for label in "ab" for number in range(9))):
        (home / path).parent.mkdir(parents=True, exist_ok=True)
        picture.save(home / path)
    verb, *words = line.split()
    found = imported([verb, *words], home) - STARTED
    for package in expected & BROUGHT.keys():
        found -= BROUGHT[package]
    if expected & {"mlflow", "tensorflow"}:
        found &= NAMED
    assert not found - expected, f"{verb} imports {', '.join(sorted(found - expected))} now: do without, or add it here"
    assert not expected - found, f"{verb} no longer imports {', '.join(sorted(expected - found))}: take it out here"


@pytest.mark.parametrize("line", QUICK)
def test_a_verb_imports_what_stands_here(line, tmp_path):
    check(line, QUICK[line], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("line", DEAR, ids=lambda line: line.split()[0])
def test_a_verb_that_imports_much_imports_what_stands_here(line, tmp_path):
    check(line, DEAR[line], tmp_path)


def test_every_verb_stands_in_the_table():
    assert {line.split()[0] for line in (*QUICK, *DEAR)} == {verb.name for verb in VERBS}
