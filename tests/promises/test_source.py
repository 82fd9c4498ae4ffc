"""Promises about the source itself: what it never calls and imports, and that docs/dependencies.md is complete."""

import ast
import os
import re
import sys
import tomllib
from pathlib import Path

import pytest

import bestrun
from support.processes import Starter

ROOT = Path(__file__).parents[2]
SOURCES = sorted(Path(bestrun.__file__).parent.rglob("*.py"))

# What turns data into code, or a name in data into an import. `load` of modules that read pickles is among them.
FORBIDDEN = {"eval", "exec", "compile", "__import__", "globals", "system", "popen", "instantiate", "import_module"}
FORBIDDEN |= {
    "get_class",
    "get_method",
    "get_object",
    "unsafe_load",
    "full_load",
    "load_module",
    "run_path",
    "run_module",
}
FORBIDDEN |= {
    "deserialize_keras_object",
    "enable_unsafe_deserialization",
    "model_from_json",
    "from_config",
    "load_weights",
}
MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "importlib", "runpy", "hydra.utils"}


def faults(source: str, name: str) -> list[str]:
    """Lines of a file that could run what somebody else wrote."""
    found = []
    for node in ast.walk(ast.parse(source)):
        line = f"{name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None)
            modules = [module] if module else [alias.name for alias in node.names]
            found += [f"{line} imports {module}" for module in modules if module in MODULES]
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        words = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        last = called.rpartition(".")[2]
        if last in FORBIDDEN and called != "re.compile":
            found.append(f"{line} calls {called}")
        if words.get("shell", "False") != "False" or words.get("allow_pickle", "False") != "False":
            found.append(f"{line} calls {called} with a shell or with pickles")
        if called in ("np.load", "numpy.load") and "allow_pickle" not in words:
            found.append(f"{line}: say allow_pickle=False")
        is_text_alone = [ast.unparse(argument) for argument in node.args[1:]] == ["yaml.BaseLoader"]
        if called in ("yaml.load", "yaml.unsafe_load", "yaml.full_load") and not is_text_alone:
            found.append(f"{line} calls {called}: yaml.safe_load makes data only")
        if last == "load_model" and words.get("safe_mode") != "True":
            found.append(f"{line}: say safe_mode=True")
    return found


ALLOWED = {
    # The one pickle is MNIST's, of a wheel with a pinned hash, by an unpickler that makes arrays and nothing else
    "known.py": ["imports pickle"],
    # A network, by its name: of the files in training/networks/ and of no others, which test_hostile.py holds
    "model.py": ["imports importlib", "calls importlib.import_module"],
    # What workers are born with, by the names that stand in backends/local.py
    "_forked.py": ["imports importlib", "calls importlib.import_module"],
    # A code.py of one's own, by the path that a person typed and by no other, which test_own_code.py holds
    "lab.py": ["calls exec", "calls compile"],
    # Numbers of an .h5 file into layers that stand already; no layer is made because the file says so
    "pretrained.py": [".load_weights"],
}


@pytest.mark.parametrize("path", SOURCES, ids=[path.name for path in SOURCES])
def test_no_data_becomes_code(path: Path) -> None:
    found = faults(path.read_text("utf-8"), path.name)
    allowed = ALLOWED.get(path.name, [])
    assert [line for line in found if not line.endswith(tuple(allowed))] == [], found
    assert len(found) >= len(allowed), "nothing to allow any more"


@pytest.mark.parametrize(
    "code",
    [
        "eval(text)",
        "__import__(name)",
        "import pickle",
        "from importlib import import_module",
        "from hydra.utils import instantiate",
        "hydra.utils.instantiate(config)",
        "os.system(text)",
        "subprocess.run(text, shell=True)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, Loader=Loader)",
        "keras.saving.load_model(path)",
        "keras.saving.load_model(path, safe_mode=False)",
    ],
)
def test_the_search_sees_what_it_looks_for(code: str) -> None:
    assert faults(code, "x.py")


def dependencies() -> dict[str, list[str]]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    kinds = {"run": project["dependencies"], **project["optional-dependencies"]}
    return {kind: [re.split(r"[<>=]", line)[0] for line in lines] for kind, lines in kinds.items()}


def test_each_dependency_has_a_reason_and_a_licence() -> None:
    text = (ROOT / "docs/dependencies.md").read_text("utf-8")
    rows = {cells[1].strip(): [cell.strip() for cell in cells[2:4]] for cells in table(text)}
    names = {name for kind in dependencies().values() for name in kind}
    assert {name for name in rows if name in names} == names
    assert all(reason and licence for name in names for reason, licence in [rows[name]])


def table(text: str) -> list[list[str]]:
    return [line.split("|") for line in text.splitlines() if line.startswith("| ") and line.count("|") >= 4]


def test_nothing_is_imported_that_is_not_declared() -> None:
    """pandas and PyYAML come with MLflow and OmegaConf, which cannot do without them."""
    modules = {"hydra-core": "hydra", "pillow": "PIL", "nvidia-ml-py": "pynvml"}
    declared = {modules.get(name, name) for name in dependencies()["run"]}
    declared |= {"pandas", "yaml", "pydantic_core", "ray"}
    imported = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.partition(".")[0])
    assert imported - set(sys.stdlib_module_names) == declared


def print_what_mlflow_is_told() -> None:
    """By a bestrun that is imported anew."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "bestrun"]:
        del sys.modules[name]
    from bestrun.tracking.store import import_mlflow

    import_mlflow()
    print(*map(os.environ.get, ["MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION"]))


def test_telemetry_is_off_and_pickles_are_refused_unless_the_user_says_otherwise(start_process: Starter) -> None:
    plain = {name: None for name in os.environ if name.startswith(("MLFLOW_", "DO_NOT"))}
    for said, expected in (({}, "true true false"), ({"DO_NOT_TRACK": "no"}, "true no false")):
        done = start_process(print_what_mlflow_is_told, env=plain | said).wait()
        assert done.code == 0 and done.out.strip() == expected, done
